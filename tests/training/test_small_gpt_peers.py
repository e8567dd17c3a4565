"""With biases and learned positions, our GPT is `transformers`' GPT-2.

Its configuration is small, its weights random: nothing is downloaded.
"""

import warnings

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from attention import KVCache
from attention.training.small_gpt import GPT

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip(
        "transformers", reason="an oracle: pip install 'building-attention[peers]'"
    )

PARTS = {
    "transformer.wte": "embedding",
    "transformer.wpe": "places.table",
    "transformer.ln_f": "norm",
    "ln_1": "attention_norm",
    "ln_2": "mlp_norm",
    "attn.c_proj": "attention.out_proj",
    "mlp.c_fc": "mlp.0",
    "mlp.c_proj": "mlp.2",
}


@pytest.fixture
def models():
    """Theirs and ours, with the same weights."""
    config = transformers.GPT2Config(
        vocab_size=31, n_positions=17, n_embd=12, n_layer=3, n_head=2
    )
    theirs = transformers.GPT2LMHeadModel(config).eval().requires_grad_(False)
    for weights in theirs.parameters():
        nn.init.normal_(weights, std=0.3)
    options = {"num_heads": 2, "positions": "learned", "context_length": 17}
    ours = GPT(31, d=12, num_blocks=3, bias=True, **options).requires_grad_(False)
    ours.load_state_dict(converted(theirs))
    return theirs, ours


def converted(theirs) -> dict[str, torch.Tensor]:
    """Their weights under our names; their linear maps are stored transposed."""
    state = {}
    for name, weights in theirs.named_parameters():
        (part, kind), prefix = name.rsplit(".", 1), ""
        if part.startswith("transformer.h."):
            _, _, number, part = part.split(".", 3)
            prefix = f"blocks.{number}."
        linear = "c_" in part and weights.ndim == 2
        weights = weights.mT if linear else weights
        if part == "attn.c_attn":
            names = ("W_query", "W_key", "W_value")
            for own, third in zip(names, weights.chunk(3), strict=True):
                state[f"{prefix}attention.{own}.{kind}"] = third
        else:
            state[f"{prefix}{PARTS[part]}.{kind}"] = weights
    return state


def test_it_says_what_gpt2_says(models):
    theirs, ours = models
    ids = torch.randint(31, (2, 13))
    assert_close(ours(ids), theirs(ids).logits, rtol=1e-4, atol=1e-4)


def test_it_learns_what_gpt2_learns(models):
    theirs, ours = models
    ids = torch.randint(31, (2, 13))
    for model in models:
        model.requires_grad_(True)
    got = nn.functional.cross_entropy(ours(ids[:, :-1]).mT, ids[:, 1:])
    must = theirs(ids, labels=ids).loss
    assert_close(got, must, rtol=1e-4, atol=1e-4)
    got.backward()
    must.backward()
    ours_grad, theirs_grad = ours.embedding.weight.grad, theirs.transformer.wte.weight
    assert_close(ours_grad, theirs_grad.grad, rtol=1e-3, atol=1e-4)


def test_it_reads_token_by_token_what_gpt2_reads_with_its_cache(models):
    theirs, ours = models
    ids, caches, memory = (
        torch.randint(31, (2, 13)),
        [KVCache() for _ in range(3)],
        None,
    )
    for piece in ids.split([4, 1, 5, 3], dim=1):
        said = theirs(piece, cache=memory, use_cache=True)
        memory = said.past_key_values
        assert_close(ours(piece, caches=caches), said.logits, rtol=1e-4, atol=1e-4)
