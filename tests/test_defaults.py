"""What a user sets once for all of PyTorch changes none of our numbers.

A default dtype is set while a model is loaded, a default device for a whole notebook:
what we make on the way follows the tensors that came in. The meta device stands for a
GPU here: what is made there by mistake meets what came in, and fails.
"""

import struct
from contextlib import contextmanager
from functools import partial

import pytest
import torch
from gguf_bytes import gguf

from attention import (
    Attention,
    KVCache,
    LanguageModel,
    LatentAttention,
    PagedCache,
    QuantizedCache,
    RollingCache,
    Rotary,
    alibi,
    alibi_slopes,
    attend,
    convert_pairing,
    cpp_attend,
    describe_weights,
    explore,
    flash_attend,
    generate,
    read_gguf,
    show_weights,
    weights_of,
    window,
    window_and_sinks,
)
from attention.training.induction import repeated_tokens
from attention.training.small_gpt import batch_at


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def some(*shape):
    drawn = {"generator": draw(), "dtype": torch.float32, "device": "cpu"}
    return torch.rand(*shape, **drawn)


def three(heads=2):
    return some(3, heads, 5, 7), some(3, heads, 11, 7), some(3, heads, 11, 7)


def of_biased_scores():
    queries, keys, values = three()
    bias = some(2, 5, 11).requires_grad_()
    context = flash_attend(queries, keys, values, bias=bias)
    return torch.autograd.grad(context.sum(), bias)


def of_a_cache(make, slots):
    torch.manual_seed(7)
    layer, x = Attention(6, 6, 3, **slots), some(2, 7, 6)

    def call():
        cache = make()
        with torch.no_grad():
            parts = [layer(piece, cache=cache) for piece in x.split(1, dim=1)]
            cache.truncate(5)
            parts.append(layer(x[:, 5:6], cache=cache))
        return *parts, cache.positions

    return call


CACHES = {
    "KVCache": (KVCache, {}),
    "PagedCache": (partial(PagedCache, 2), {}),
    "QuantizedCache": (partial(QuantizedCache, 8, group=3), {}),
    "RollingCache": (
        partial(RollingCache, 4, 2, spare=3),
        {"masks": (window_and_sinks(4, 2),)},
    ),
    "RollingCache, counted inside": (
        lambda: RollingCache(9, 1, rotary=Rotary(2)),
        {"masks": (window(10),), "process_heads": Rotary(2)},
    ),
}


def of_a_model():
    torch.manual_seed(7)
    model, ids = LanguageModel(11, 6, 8, 2, 3), torch.tensor([1, 2, 3])

    def call():
        options = {"num_tokens": 4, "temperature": 1.0, "make_cache": KVCache}
        return torch.tensor([*generate(model, ids, **options)], device="cpu")

    return call


def a_latent_layer():
    torch.manual_seed(7)
    layer, x = LatentAttention(6, 6, 2, latent_dim=5, rotary_dim=4), some(2, 5, 6)
    return lambda: (layer(x), layer.attention_weights(x))


def of_a_file():
    step = struct.pack("<ee", 0.1, -0.7)
    row = step + bytes(range(16))
    _, tensors = read_gguf(gguf((), [("w", (2, 32), 3, 2 * row)]))
    return tensors["w"]


def words_of_a_map():
    weights, tokens = torch.eye(9, device="cpu"), list("abcdefghi")
    show_weights(weights, tokens, tokens)
    show_weights(weights[:1, :1].expand(9, 9) / 9, tokens, tokens, signed=True)
    explore(weights, tokens, tokens)._repr_html_()
    return len(describe_weights(weights, tokens, tokens))


def positions():
    return torch.arange(300, device="cpu")


def draw():
    return torch.Generator().manual_seed(7)


IDS = torch.arange(60)
CALLS = {
    "a bias by distance": lambda: alibi(6)(positions()[-2:], positions()),
    "a file of 4 bits": of_a_file,
    "weights that are found": lambda: weights_of(flash_attend, *three()),
    "the weights of a kernel": lambda: weights_of(cpp_attend, *three()),
    "attention": lambda: attend(*three(), causal=True),
    "the gradient of a bias": of_biased_scores,
    "another pairing": lambda: convert_pairing(some(8, 3), 4, interleaved=True),
    "a map": words_of_a_map,
    "a batch of a text": lambda: batch_at(3, IDS, 2, 5),
    "tokens that repeat": lambda: repeated_tokens(2, 3, 5, generator=draw()),
    "a model that writes": of_a_model(),
    "a layer of latents": a_latent_layer(),
} | {name: of_a_cache(*given) for name, given in CACHES.items()}

CALL = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


@CALL
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_default_dtype_changes_no_number(call, dtype):
    expected = call()
    with default_dtype(dtype):
        found = call()
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@CALL
def test_what_is_made_on_the_way_lies_where_the_inputs_do(call):
    expected = call()
    with torch.device("meta"):
        found = call()
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_slopes_are_of_32_bits_whatever_is_usual():
    with default_dtype(torch.bfloat16):
        assert alibi_slopes(6).dtype == torch.float32
