"""Models of Mistral, with random weights, give what ours give past their window."""

from collections import defaultdict

import pytest
import torch

pytest.importorskip("transformers", reason="the extra `peers` brings transformers")

from transformers import DynamicCache, MistralConfig, MistralForCausalLM
from transformers.cache_utils import DynamicSlidingWindowLayer
from transformers.masking_utils import sliding_window_overlay
from transformers.modeling_flash_attention_utils import (
    _process_flash_attention_kwargs as flash_options,
)

from attention import Attention, RollingCache, Rotary, window

equal = torch.testing.assert_close
SIZE, LENGTH = 5, 17
WAYS = [[], [*range(1, LENGTH)], [3, 4, 5], [5, 6, 12], [12, 13], [2, 9, 16]]


def model_of_mistral():
    sizes = {"hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 3}
    heads = {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 4}
    config = MistralConfig(
        vocab_size=29,
        sliding_window=SIZE,
        attn_implementation="eager",
        **sizes,
        **heads,
    )
    torch.manual_seed(2357)
    return MistralForCausalLM(config).eval().requires_grad_(False)


def attention_of(layer):
    """Our layer with the matrices of one of theirs."""
    theirs = layer.self_attn
    slots = {"process_heads": Rotary(4), "masks": (window(SIZE),)}
    ours = Attention(24, 24, 6, num_kv_heads=2, head_dim=4, out_bias=False, **slots)
    names = {"W_query": theirs.q_proj, "W_key": theirs.k_proj}
    names |= {"W_value": theirs.v_proj, "out_proj": theirs.o_proj}
    for name, linear in names.items():
        getattr(ours, name).weight = linear.weight
    return ours.requires_grad_(False)


def ours(model, text, ends):
    """Logits of our layers, a cache for each, among norms and networks of theirs."""
    layers = [
        (layer, attention_of(layer), RollingCache(SIZE)) for layer in model.model.layers
    ]
    read = []
    for tokens in torch.tensor_split(text, ends, dim=1):
        x = model.model.embed_tokens(tokens)
        for layer, attention, cache in layers:
            x = x + attention(layer.input_layernorm(x), cache=cache)
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        read.append(model.lm_head(model.model.norm(x)))
    assert all(len(cache.positions) == SIZE for *_, cache in layers)
    return torch.cat(read, dim=1)


@pytest.mark.parametrize("ends", WAYS)
def test_a_model_of_mistral_past_its_window(ends):
    model, text = model_of_mistral(), torch.randint(29, (2, LENGTH))
    equal(ours(model, text, ends), model(text).logits)


def test_its_own_rolling_cache_says_the_same():
    model, text = model_of_mistral(), torch.randint(29, (2, LENGTH))
    cache, read = DynamicCache(config=model.config), []
    for tokens in torch.tensor_split(text, [7, *range(8, LENGTH)], dim=1):
        read.append(model(tokens, cache=cache).logits)
    equal(ours(model, text, [7, *range(8, LENGTH)]), torch.cat(read, dim=1))
    for layer in cache.layers:
        assert isinstance(layer, DynamicSlidingWindowLayer)
        assert layer.keys.shape[-2] == SIZE - 1  # the next one makes it full


def test_it_counts_the_query_itself_as_we_do():
    seen, places = sliding_window_overlay(SIZE), range(LENGTH)
    table = [[k <= q and seen(0, 0, q, k) for k in places] for q in places]
    at = torch.arange(LENGTH)
    assert window(SIZE)(at, at).tolist() == table


def test_flash_attention_gets_one_less():
    arguments = {"query_length": LENGTH, "key_length": LENGTH, "is_causal": True}
    supported = defaultdict(bool, window_size=True)
    options = flash_options(
        **arguments, sliding_window=SIZE, supports_mapping=supported
    )
    assert options["window_size"][0] == SIZE - 1
