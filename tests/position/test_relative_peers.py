"""Layers of T5, MPT and BLOOM give what ours give, with random weights."""

from functools import partial

import pytest
import torch

pytest.importorskip("transformers", reason="the extra `peers` brings transformers")

from transformers import BloomConfig, MptConfig, T5Config
from transformers.models.bloom.modeling_bloom import BloomAttention, build_alibi_tensor
from transformers.models.mpt.modeling_mpt import MptAttention, build_mpt_alibi_tensor
from transformers.models.t5.modeling_t5 import T5Attention

from attention import Attention, RelativeBias, alibi, attend, relative_bucket

equal = torch.testing.assert_close
HEADS = [1, 2, 6, 8, 12]


def load(ours, **matrices):
    """Our layer with these matrices; one with a bias brings both."""
    for name, theirs in matrices.items():
        layer = getattr(ours, name)
        weight, bias = theirs if isinstance(theirs, tuple) else (theirs, None)
        layer.weight.data.copy_(weight)
        if bias is not None:
            layer.bias.data.copy_(bias)
    return ours


# T5


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(
    ("num_buckets", "max_distance"), [(32, 128), (8, 20), (64, 256)]
)
def test_buckets_are_those_of_t5(bidirectional, num_buckets, max_distance):
    distance = torch.arange(-3 * max_distance, 3 * max_distance + 1)
    options = {"bidirectional": bidirectional}
    options |= {"num_buckets": num_buckets, "max_distance": max_distance}
    theirs = T5Attention._relative_position_bucket(distance, **options)
    assert torch.equal(relative_bucket(distance, **options), theirs)


@pytest.mark.parametrize("decoder", [False, True])
def test_a_layer_of_t5(decoder):
    sizes = {"d_model": 10, "d_kv": 4, "num_heads": 3, "dropout_rate": 0.0}
    sizes |= {
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 20,
    }
    config = T5Config(is_decoder=decoder, **sizes)
    theirs = T5Attention(config, has_relative_attention_bias=True, layer_idx=0).eval()
    torch.nn.init.normal_(theirs.relative_attention_bias.weight)
    bias = RelativeBias(3, bidirectional=not decoder, num_buckets=8, max_distance=20)
    bias.table.load_state_dict(theirs.relative_attention_bias.state_dict())
    form = partial(attend, scale=1.0)
    slots = {"bias": bias, "attend": form} | ({} if decoder else {"masks": ()})
    ours = Attention(10, 10, 3, head_dim=4, out_bias=False, **slots)
    names = {"W_query": theirs.q, "W_key": theirs.k, "W_value": theirs.v}
    names["out_proj"] = theirs.o
    load(ours, **{name: layer.weight for name, layer in names.items()})
    x, mask = torch.randn(2, 40, 10), None
    if decoder:
        future = torch.ones(40, 40, dtype=torch.bool).triu(1)
        mask = torch.zeros(40, 40).masked_fill(future, -torch.inf)[None, None]
    equal(ours(x), theirs(x, mask=mask)[0])


# ALiBi


def fused(weight, bias, heads):
    """Queries, keys and values of a matrix that holds them head by head."""
    parts = weight.unflatten(0, (heads, 3, -1)), bias.unflatten(0, (heads, 3, -1))
    pairs = zip(*(part.unbind(1) for part in parts), strict=True)
    return [(w.flatten(0, 1), b.flatten()) for w, b in pairs]


@pytest.mark.parametrize("heads", HEADS)
def test_alibi_is_that_of_mpt(heads):
    theirs = build_mpt_alibi_tensor(heads, 9)
    ours = alibi(heads)(torch.tensor([8]), torch.arange(9))
    equal(ours, theirs.view(heads, 1, 9))


@pytest.mark.parametrize("heads", HEADS)
def test_a_layer_of_mpt(heads):
    width = 4 * heads
    config = MptConfig(d_model=width, n_heads=heads, max_seq_len=16)
    theirs = MptAttention(config, 0).eval()
    ours = Attention(width, width, heads, out_bias=False, bias=alibi(heads))
    names = ("W_query", "W_key", "W_value")
    parts = dict(zip(names, theirs.Wqkv.weight.chunk(3), strict=True))
    load(ours, **parts, out_proj=theirs.out_proj.weight)
    x = torch.randn(2, 9, width)
    future = torch.ones(9, 9, dtype=torch.bool).triu(1)
    given = theirs(x, build_mpt_alibi_tensor(heads, 16), attention_mask=future)[0]
    equal(ours(x), given)


@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("heads", HEADS)
def test_a_layer_of_bloom_with_padding_on_the_left(heads, padding):
    width = 4 * heads
    config = BloomConfig(hidden_size=width, n_head=heads, hidden_dropout=0.0)
    theirs = BloomAttention(config, layer_idx=0).eval()
    ours = Attention(width, width, heads, qkv_bias=True, bias=alibi(heads))
    qkv = theirs.query_key_value
    parts = fused(qkv.weight.data, qkv.bias.data, heads)
    names = ("W_query", "W_key", "W_value")
    dense = theirs.dense.weight, theirs.dense.bias
    load(ours, **dict(zip(names, parts, strict=True)), out_proj=dense)

    x = torch.randn(2, 9, width)
    real = torch.arange(9) >= torch.tensor([[padding], [0]])
    seen = real[:, None, None] & torch.ones(9, 9, dtype=torch.bool).tril()
    hidden = torch.zeros(2, 1, 9, 9).masked_fill(~seen, torch.finfo(torch.float32).min)
    bias = build_alibi_tensor(real.long(), heads, torch.float32)
    given = theirs(x, torch.zeros_like(x), bias, attention_mask=hidden)[0]
    positions = (real.cumsum(dim=-1) - 1).clamp(min=0)
    mine = ours(x, real[:, None, None], positions=positions)
    equal(mine[0, padding:], given[0, padding:])
    equal(mine[1], given[1])
