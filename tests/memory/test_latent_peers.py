"""`LatentAttention` is the layer of DeepSeek-V3, in `transformers`' own code.

Its configuration is small, its weights random: nothing is downloaded.
"""

import warnings
from functools import partial

import pytest
import torch

from attention import KVCache, LatentAttention, Rotary, YaRN, attend
from attention.position.longer import yarn_factor

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip(
        "transformers", reason="an oracle: pip install 'building-attention[peers]'"
    )
    from transformers.models.deepseek_v3 import modeling_deepseek_v3

LENGTH = 11
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 40.0,
    "original_max_position_embeddings": 64,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
PLAIN = {"rope_type": "default", "rope_theta": 1e4}


def made(q_lora_rank=7, rope=PLAIN, bias=False):
    """Their layer with random weights, and what makes its turns."""
    sizes = {"qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 10}
    sizes |= {"q_lora_rank": q_lora_rank, "kv_lora_rank": 14, "hidden_size": 42}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = transformers.DeepseekV3Config(
            **sizes,
            num_attention_heads=6,
            num_key_value_heads=6,
            rope_parameters=rope,
            attention_bias=bias,
            attn_implementation="eager",
        )
        layer = modeling_deepseek_v3.DeepseekV3Attention(config, 0).eval()
        rope = modeling_deepseek_v3.DeepseekV3RotaryEmbedding(config)
    for parameter in layer.requires_grad_(False).parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return layer, rope


def ours(theirs, **slots):
    """Our layer with their weights."""
    rank, bias = theirs.q_lora_rank, theirs.kv_a_proj_with_mqa.bias is not None
    layer = LatentAttention(
        42,
        42,
        6,
        latent_dim=14,
        rotary_dim=8,
        head_dim=12,
        value_dim=10,
        query_latent_dim=rank,
        qkv_bias=bias,
        out_bias=bias,
        **slots,
    ).requires_grad_(False)
    if rank is None:
        layer.W_query.load_state_dict(theirs.q_proj.state_dict())
    else:
        layer.W_query_latent.load_state_dict(theirs.q_a_proj.state_dict())
        layer.query_norm.load_state_dict(theirs.q_a_layernorm.state_dict())
        layer.W_query.load_state_dict(theirs.q_b_proj.state_dict())
    for name, rows in theirs.kv_a_proj_with_mqa.state_dict().items():
        getattr(layer.W_latent, name).copy_(rows[:14])
        getattr(layer.W_turned_key, name).copy_(rows[14:])
    layer.latent_norm.load_state_dict(theirs.kv_a_layernorm.state_dict())
    both = theirs.kv_b_proj.weight.unflatten(0, (6, 22))
    layer.W_key.weight.copy_(both[:, :12].flatten(0, 1))
    layer.W_value.weight.copy_(both[:, 12:].flatten(0, 1))
    layer.out_proj.load_state_dict(theirs.o_proj.state_dict())
    return layer


def seen(queries, keys):
    """Scores of theirs that are hidden: 0, or the lowest number."""
    hidden = torch.ones(queries, keys, dtype=torch.bool).triu(keys - queries + 1)
    return torch.zeros(1, 1, queries, keys).masked_fill(hidden, torch.finfo().min)


def run_theirs(theirs, rope, x, start=0, cache=None):
    length = x.shape[1]
    places = torch.arange(start, start + length)[None]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"attention_mask": seen(length, start + length), "cache": cache}
        return theirs(x, position_embeddings=rope(x, places), **options)[0]


def assert_same(got, must):
    torch.testing.assert_close(got, must, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("absorb", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"q_lora_rank": None}, {"bias": True}],
    ids=["V3", "V2 lite", "bias"],
)
def test_deepseek_v3_expanded_and_absorbed(options, absorb):
    theirs, rope = made(**options)
    x = torch.randn(3, LENGTH, 42)
    assert_same(ours(theirs, absorb=absorb)(x), run_theirs(theirs, rope, x))


@pytest.mark.parametrize("absorb", [None, False, True])
def test_deepseek_v3_token_by_token_with_the_caches_of_both(absorb):
    theirs, rope = made()
    layer, memory, x = (
        ours(theirs, absorb=absorb),
        KVCache(),
        torch.randn(3, LENGTH, 42),
    )
    other = transformers.DynamicCache()
    for start, end in ((0, 6), (6, 7), (7, 8), (8, LENGTH)):
        must = run_theirs(theirs, rope, x[:, start:end], start, other)
        assert_same(layer(x[:, start:end], cache=memory), must)
    new = torch.zeros(3, 1, 0, 8), torch.zeros(3, 1, 0, 14)
    turned, latents, _ = memory.extend(*new, torch.arange(0))
    held = other.layers[0]
    assert_same(latents, held.keys)  # theirs are stored the other way round
    order = torch.arange(8).view(4, 2).T.flatten()  # and turned ones in halves
    assert_same(turned[..., order], held.values)


@pytest.mark.parametrize("absorb", [False, True])
def test_deepseek_v3_with_yarn_and_its_scale(absorb):
    theirs, rope = made(rope=YARN)
    x = torch.randn(3, LENGTH, 42)
    scaling = YaRN(40, 64, mscale=1.0, mscale_all_dim=1.0)
    process = Rotary(8, interleaved=True, scaling=scaling)
    form = partial(attend, scale=20**-0.5 * yarn_factor(40) ** 2)
    must = run_theirs(theirs, rope, x)
    layer = ours(theirs, process_heads=process, attend=form, absorb=absorb)
    assert_same(layer(x), must)
    layer.attend = attend  # without the further scale
    assert not torch.allclose(layer(x), must, atol=1e-2)


def test_wrong_pairs_are_told_apart():
    theirs, rope = made()
    x = torch.randn(3, LENGTH, 42)
    must = run_theirs(theirs, rope, x)
    for process in (Rotary(8), Rotary(8, interleaved=True, base=5e5)):
        got = ours(theirs, process_heads=process)(x)
        assert not torch.allclose(got, must, atol=1e-2)
