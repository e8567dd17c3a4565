"""Layers with our slots are the layers of open models, in `transformers`' own code.

Its configurations are small, its weights random: nothing is downloaded.
"""

import math
import warnings
from functools import partial

import pytest
import torch

from attention import Attention, attend
from attention.position.longer import (
    DynamicNTKScaling,
    LinearScaling,
    Llama3Scaling,
    MultimodalRotary,
    YaRN,
    picture_places,
    yarn_factor,
)
from attention.position.rotary import (
    ProcessHeads,
    ProportionalScaling,
    QKNorm,
    Rotary,
    convert_pairing,
    rotate,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip(
        "transformers", reason="an oracle: pip install 'building-attention[peers]'"
    )
    from transformers.models.deepseek_v3 import modeling_deepseek_v3
    from transformers.models.gemma import modeling_gemma
    from transformers.models.gemma3 import modeling_gemma3
    from transformers.models.gemma4 import modeling_gemma4
    from transformers.models.gpt_neox import modeling_gpt_neox
    from transformers.models.llama import modeling_llama
    from transformers.models.qwen2_vl import modeling_qwen2_vl
    from transformers.models.qwen3 import modeling_qwen3
    from transformers.models.smollm3 import modeling_smollm3

LENGTH = 11
SIZES = {
    "hidden_size": 42,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_hidden_layers": 8,
    "intermediate_size": 7,
    "vocab_size": 13,
    "attn_implementation": "eager",
}


def texts(width=42):
    """Three texts, two padded on the left; which tokens are real, and where."""
    x, real = torch.randn(3, LENGTH, width), torch.ones(3, LENGTH, dtype=torch.bool)
    real[1, :4] = real[2, :7] = False
    return x, real, (real.cumsum(dim=-1) - 1).clamp(min=0)


def seen(real):
    """Scores of theirs that are hidden: 0, or the lowest number."""
    causal = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    allowed = causal & real[:, None, None, :]
    return torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo().min)


def ours(theirs, process, num_kv_heads=2, **slots):
    """Our layer with their weights."""
    d_out, wide = theirs.o_proj.weight.shape
    options = {"num_kv_heads": num_kv_heads, "head_dim": wide // 6, "out_bias": False}
    layer = Attention(42, d_out, 6, process_heads=process, **options, **slots)
    layers = {"W_query": "q_proj", "W_key": "k_proj", "W_value": "v_proj"}
    for own, name in (layers | {"out_proj": "o_proj"}).items():
        getattr(layer, own).load_state_dict(getattr(theirs, name).state_dict())
    return layer.requires_grad_(False)


def run_theirs(layer, rope, x, real, positions, *kind):
    """What their layer gives; `rope` makes cosines and sines of positions."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        turns = None if rope is None else rope(x, positions, *kind)
        options = {"attention_mask": seen(real), "position_embeddings": turns}
        return layer(x, **options)[0]


def assert_same(layer, must, x, real, positions):
    got = layer(x, real[:, None, None], positions=positions)
    torch.testing.assert_close(got[real], must[real], rtol=1e-4, atol=1e-5)


def made(config, attention, rope, index=0):
    """Their layer and what makes its turns, with random weights everywhere."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer, rope = attention(config, index).eval(), rope(config)
    layer.requires_grad_(False)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return layer, rope


SCALINGS = {
    "default": ({}, None),
    "linear": ({"factor": 4.0}, LinearScaling(4)),
    "dynamic": ({"factor": 4.0}, DynamicNTKScaling(4, 5)),
    "yarn": ({"factor": 4.0, "original_max_position_embeddings": 5}, YaRN(4, 5)),
    "yarn ": (
        {
            "factor": 40.0,
            "original_max_position_embeddings": 4096,
            "beta_fast": 16,
            "beta_slow": 2,
            "mscale": 0.707,
            "mscale_all_dim": 0.5,
        },
        YaRN(40, 4096, fast=16, slow=2, mscale=0.707, mscale_all_dim=0.5),
    ),
    "llama3": (
        {
            "factor": 8.0,
            "original_max_position_embeddings": 64,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
        },
        Llama3Scaling(8, 64),
    ),
}


@pytest.mark.parametrize("kind", SCALINGS)
@pytest.mark.parametrize("base", [1e4, 5e5])
def test_llama_with_each_scaling(kind, base):
    named, scaling = SCALINGS[kind]
    parameters = {"rope_type": kind.strip(), "rope_theta": base} | named
    longest = named.get("original_max_position_embeddings", 5)
    config = transformers.LlamaConfig(
        **SIZES, rope_parameters=parameters, max_position_embeddings=longest
    )
    attention = modeling_llama.LlamaAttention
    theirs, rope = made(config, attention, modeling_llama.LlamaRotaryEmbedding)
    x, real, positions = texts()
    if kind == "dynamic":  # theirs takes the longest text of a batch for all
        x, real, positions = x[:1], real[:1], positions[:1]
    must = run_theirs(theirs, rope, x, real, positions)
    layer = ours(theirs, Rotary(8, base=base, scaling=scaling))
    assert_same(layer, must, x, real, positions)


def test_an_interleaved_layer_with_converted_rows_is_llama():
    config = transformers.LlamaConfig(**SIZES)
    attention = modeling_llama.LlamaAttention
    theirs, rope = made(config, attention, modeling_llama.LlamaRotaryEmbedding)
    x, real, positions = texts()
    layer = ours(theirs, Rotary(8, interleaved=True))
    for weight in (layer.W_query.weight, layer.W_key.weight):
        weight.copy_(convert_pairing(weight, 8, interleaved=True))
    must = run_theirs(theirs, rope, x, real, positions)
    assert_same(layer, must, x, real, positions)


def test_qwen3_norms_each_head_and_then_turns():
    config = transformers.Qwen3Config(**SIZES)
    attention = modeling_qwen3.Qwen3Attention
    theirs, rope = made(config, attention, modeling_qwen3.Qwen3RotaryEmbedding)
    x, real, positions = texts()
    must = run_theirs(theirs, rope, x, real, positions)
    norm = QKNorm(8).requires_grad_(False)
    norm.query_weight.copy_(theirs.q_norm.weight)
    norm.key_weight.copy_(theirs.k_norm.weight)
    base = config.rope_parameters["rope_theta"]
    layer = ours(theirs, ProcessHeads(norm, Rotary(8, base=base)))
    assert_same(layer, must, x, real, positions)
    wrong = ours(theirs, ProcessHeads(Rotary(8, base=base), norm))
    got = wrong(x, real[:, None, None], positions=positions)
    assert not torch.allclose(got[real], must[real], atol=1e-2)


def test_gpt_neox_turns_a_part_of_each_head():
    config = transformers.GPTNeoXConfig(
        hidden_size=48,
        num_attention_heads=3,
        num_hidden_layers=1,
        intermediate_size=7,
        vocab_size=13,
        attn_implementation="eager",
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 1e4,
            "partial_rotary_factor": 0.25,
        },
    )
    attention = modeling_gpt_neox.GPTNeoXAttention
    theirs, rope = made(config, attention, modeling_gpt_neox.GPTNeoXRotaryEmbedding)
    x, real, positions = texts(48)
    must = run_theirs(theirs, rope, x, real, positions)
    options = {"process_heads": Rotary(16, rotary_dim=4), "qkv_bias": True}
    layer = Attention(48, 48, 3, **options).requires_grad_(False)
    both = theirs.query_key_value
    for name, place in {"W_query": 0, "W_key": 1, "W_value": 2}.items():
        own = getattr(layer, name)
        for ready, mixed in ((own.weight, both.weight), (own.bias, both.bias)):
            ready.copy_(mixed.unflatten(0, (3, 3, 16))[:, place].flatten(0, 1))
    layer.out_proj.load_state_dict(theirs.dense.state_dict())
    assert_same(layer, must, x, real, positions)


def test_gemma_turns_as_llama_does():
    config = transformers.GemmaConfig(**SIZES)
    attention = modeling_gemma.GemmaAttention
    theirs, rope = made(config, attention, modeling_gemma.GemmaRotaryEmbedding)
    x, real, positions = texts()
    must = run_theirs(theirs, rope, x, real, positions)
    assert_same(ours(theirs, Rotary(8)), must, x, real, positions)


def test_gemma_3_norms_with_one_plus_its_weights_and_scales_by_a_number_of_its_own():
    config = transformers.Gemma3TextConfig(
        **SIZES, layer_types=["full_attention"] * 8, query_pre_attn_scalar=5
    )
    attention = modeling_gemma3.Gemma3Attention
    theirs, rope = made(config, attention, modeling_gemma3.Gemma3RotaryEmbedding)
    x, real, positions = texts()
    must = run_theirs(theirs, rope, x, real, positions, "full_attention")
    norm = QKNorm(8).requires_grad_(False)
    norm.query_weight.copy_(1 + theirs.q_norm.weight)
    norm.key_weight.copy_(1 + theirs.k_norm.weight)
    base = config.rope_parameters["full_attention"]["rope_theta"]
    process = ProcessHeads(norm, Rotary(8, base=base))
    layer = ours(theirs, process, attend=partial(attend, scale=5**-0.5))
    assert_same(layer, must, x, real, positions)


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_the_proportional_kind_of_gemma_4(share):
    kind = {
        "rope_type": "proportional",
        "rope_theta": 1e6,
        "partial_rotary_factor": share,
    }
    other = {"rope_type": "default", "rope_theta": 1e4}
    config = transformers.Gemma4TextConfig(
        **SIZES,
        global_head_dim=16,
        layer_types=["sliding_attention", "full_attention"] * 4,
        rope_parameters={"full_attention": kind, "sliding_attention": other},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rope = modeling_gemma4.Gemma4TextRotaryEmbedding(config)
    places = torch.arange(LENGTH)[None]
    heads = torch.randn(1, 3, LENGTH, 16)
    cos, sin = rope(heads, places, "full_attention")
    must = modeling_gemma4.apply_rotary_pos_emb(heads, cos, sin, unsqueeze_dim=1)
    scaling = ProportionalScaling(share)
    got, _ = Rotary(16, base=1e6, scaling=scaling)(heads, heads, places[0])
    torch.testing.assert_close(got, must, rtol=1e-4, atol=1e-5)


def test_smollm3_turns_in_three_of_four_layers():
    config = transformers.SmolLM3Config(**SIZES, pad_token_id=0)
    attention = modeling_smollm3.SmolLM3Attention
    base = config.rope_parameters["rope_theta"]
    turning = []
    for index in range(8):
        rope = modeling_smollm3.SmolLM3RotaryEmbedding
        theirs, rope = made(config, attention, rope, index)
        x, real, positions = texts()
        must = run_theirs(theirs, rope, x, real, positions)
        process = None if index % 4 == 3 else Rotary(8, base=base)
        assert_same(ours(theirs, process), must, x, real, positions)
        turning.append(bool(theirs.use_rope))
    assert turning == [True, True, True, False] * 2


def test_qwen2_vl_turns_by_three_coordinates():
    config = transformers.Qwen2VLConfig(
        text_config=SIZES
        | {
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "mrope_section": [1, 1, 2],
            },
            "hidden_size": 48,
            "num_attention_heads": 6,
        }
    ).get_text_config()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rope = modeling_qwen2_vl.Qwen2VLRotaryEmbedding(config)
    places = picture_places(2, (1, 2, 3), 2)
    heads = torch.randn(1, 6, 10, 8)
    cos, sin = rope(heads, places.T[:, None])
    must = modeling_qwen2_vl.apply_rotary_pos_emb(heads, heads, cos, sin)[0]
    rotary = MultimodalRotary(8, places, sections=(1, 1, 2))
    got, _ = rotary(heads, heads, torch.arange(10))
    torch.testing.assert_close(got, must, rtol=1e-4, atol=1e-5)


def test_deepseeks_scale_and_its_interleaved_turn():
    parameters = {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 40.0,
        "original_max_position_embeddings": 64,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    }
    sizes = {"qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 8}
    sizes |= {"q_lora_rank": 5, "kv_lora_rank": 5, "hidden_size": 40}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = transformers.DeepseekV3Config(
            **sizes,
            num_attention_heads=6,
            num_key_value_heads=6,
            rope_parameters=parameters,
            attn_implementation="eager",
        )
        layer = modeling_deepseek_v3.DeepseekV3Attention(config, 0)
        rope = modeling_deepseek_v3.DeepseekV3RotaryEmbedding(config)
    assert math.isclose(layer.scaling, 24**-0.5 * yarn_factor(40) ** 2)
    scaling = YaRN(40, 64, mscale=1.0, mscale_all_dim=1.0)
    places = torch.arange(LENGTH)
    queries, keys = torch.randn(2, 1, 3, LENGTH, 8)
    cos, sin = rope(queries, places[None])
    turn = modeling_deepseek_v3.apply_rotary_pos_emb_interleave
    theirs = turn(queries, keys, cos, sin)
    got = Rotary(8, interleaved=True, scaling=scaling)(queries, keys, places)
    scores = theirs[0] @ theirs[1].mT  # theirs come out in the other order
    torch.testing.assert_close(got[0] @ got[1].mT, scores, rtol=1e-4, atol=1e-5)


def test_what_passes_through_a_wrong_slot_is_told_apart():
    """The oracle sees a mistake: the other pairing, the other base, turned back."""
    config = transformers.LlamaConfig(**SIZES)
    attention = modeling_llama.LlamaAttention
    theirs, rope = made(config, attention, modeling_llama.LlamaRotaryEmbedding)
    x, real, positions = texts()
    must = run_theirs(theirs, rope, x, real, positions)

    def back(queries, keys, positions):
        angles = -Rotary(8).angles(positions)
        return rotate(queries, angles), rotate(keys, angles)

    wrong = (Rotary(8, interleaved=True), Rotary(8, base=5e5), back, None)
    for process in wrong:
        got = ours(theirs, process)(x, real[:, None, None], positions=positions)
        assert not torch.allclose(got[real], must[real], atol=1e-3)
