"""A Llama with our layers and caches writes what `transformers`' own writes.

Its configuration is small, its weights random: nothing is downloaded.
"""

import copy
import warnings

import pytest
import torch
from torch import nn

from attention import Attention, KVCache, Rotary

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip(
        "transformers", reason="an oracle: pip install 'building-attention[peers]'"
    )

LENGTH = 13
CACHES = {
    "dynamic": lambda config: transformers.DynamicCache(config=config),
    "static": lambda config: transformers.StaticCache(config, max_cache_len=17),
}


class Ours(nn.Module):
    """Our layer, with the weights of theirs and a cache of ours, in its place."""

    def __init__(self, theirs, base):
        super().__init__()
        options = {"num_kv_heads": 2, "head_dim": 8, "out_bias": False}
        rotary = Rotary(8, base=base)
        self.layer = Attention(42, 42, 6, process_heads=rotary, **options)
        names = {"W_query": "q_proj", "W_key": "k_proj", "W_value": "v_proj"}
        for own, name in (names | {"out_proj": "o_proj"}).items():
            weights = getattr(theirs, name).state_dict()
            getattr(self.layer, own).load_state_dict(weights)
        self.cache = None

    def forward(self, hidden_states, attention_mask=None, **given):
        return self.layer(hidden_states, **self.given, cache=self.cache), None


@pytest.fixture
def models():
    """Theirs, and a copy of it with our layers."""
    torch.manual_seed(2357)
    config = transformers.LlamaConfig(
        hidden_size=42,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=8,
        num_hidden_layers=3,
        intermediate_size=28,
        vocab_size=31,
        attn_implementation="sdpa",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = transformers.LlamaForCausalLM(config).eval().requires_grad_(False)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.2)
    ours, base = copy.deepcopy(theirs), config.rope_parameters["rope_theta"]
    for block in ours.model.layers:
        block.self_attn = Ours(block.self_attn, base).requires_grad_(False)
    return theirs, ours


def begin(model, **options):
    """A new cache of ours in each of its layers."""
    for block in model.model.layers:
        block.self_attn.cache = KVCache(**options)


def read_ours(model, ids, real, positions):
    """Logits of new tokens; `real` tells of all tokens so far which are no padding."""
    for block in model.model.layers:
        mask = real[:, None, None, :]
        block.self_attn.given = {"mask": mask, "positions": positions}
    with torch.no_grad():
        return model(ids, position_ids=positions, use_cache=False).logits


def read_theirs(model, ids, real, positions, cache):
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"attention_mask": real.long(), "position_ids": positions}
        return model(ids, cache=cache, use_cache=True, **options).logits


def texts():
    """Three texts, two of them padded on the left."""
    ids, real = torch.randint(31, (3, LENGTH)), torch.ones(3, LENGTH).bool()
    real[1, :3] = real[2, :6] = False
    return ids, real, (real.cumsum(dim=-1) - 1).clamp(min=0)


@pytest.mark.parametrize("sizes", [[13], [7, 1, 1, 1, 1, 1, 1], [4, 4, 3, 1, 1]])
@pytest.mark.parametrize("kind", CACHES)
def test_llama_says_the_same_with_our_cache_as_with_its_own(models, kind, sizes):
    (theirs, ours), (ids, real, positions) = models, texts()
    cache, start = CACHES[kind](theirs.config), 0
    begin(ours)
    for size in sizes:
        end = start + size
        new = ids[:, start:end], real[:, :end], positions[:, start:end]
        must, got = read_theirs(theirs, *new, cache), read_ours(ours, *new)
        seen = real[:, start:end]
        torch.testing.assert_close(got[seen], must[seen], rtol=1e-4, atol=1e-4)
        start = end


def test_llama_takes_back_what_ours_takes_back(models):
    (theirs, ours), (ids, real, positions) = models, texts()
    cache, guesses = CACHES["dynamic"](theirs.config), torch.randint(31, (3, 4))
    begin(ours, capacity=17)
    first = ids[:, :9], real[:, :9], positions[:, :9]
    read_theirs(theirs, *first, cache), read_ours(ours, *first)
    guessed = guesses, real, positions[:, 9:]
    read_theirs(theirs, *guessed, cache), read_ours(ours, *guessed)
    cache.crop(-4)
    for block in ours.model.layers:
        block.self_attn.cache.truncate(9)
    then = ids[:, 9:], real, positions[:, 9:]
    must = read_theirs(theirs, *then, cache)
    torch.testing.assert_close(read_ours(ours, *then), must, rtol=1e-4, atol=1e-4)


def test_both_write_the_same_text(models):
    """Greedily, for prompts of several lengths, by its own `generate`."""
    (theirs, ours), (ids, real, positions) = models, texts()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"attention_mask": real.long(), "do_sample": False}
        must = theirs.generate(ids, max_new_tokens=20, pad_token_id=0, **options)
    begin(ours)
    new = ids
    for _ in range(20):
        logits = read_ours(ours, new, real, positions[:, -new.shape[1] :])
        new = logits[:, -1:].argmax(dim=-1)
        ids = torch.cat([ids, new], dim=1)
        real = torch.cat([real, torch.ones(3, 1).bool()], dim=1)
        positions = torch.cat([positions, positions[:, -1:] + 1], dim=1)
    assert torch.equal(ids[:, : must.shape[1]], must)


def test_a_wrong_position_is_told_apart(models):
    """The oracle sees a mistake: positions that count the padding."""
    (theirs, ours), (ids, real, positions) = models, texts()
    must = read_theirs(theirs, ids, real, positions, None)
    begin(ours)
    flat = torch.arange(LENGTH).expand(3, -1)
    read_ours(ours, ids[:, :6], real[:, :6], positions[:, :6])
    got = read_ours(ours, ids[:, 6:], real, flat[:, 6:])
    assert not torch.allclose(got[1], must[1, 6:], atol=0.01)
