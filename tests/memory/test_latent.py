"""What must stay true of `attention.memory.latent`."""

import copy
import warnings
from functools import partial, wraps

import numpy as np
import pytest
import torch
from caches import CACHES, LENGTH, assert_near
from examples import said
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from attention import (
    KVCache,
    LatentAttention,
    Rotary,
    alibi,
    attend,
    attention_weights,
    cache_bytes,
    causal,
    flash_attend,
    prefix,
    window,
)
from attention.core.layer import Cache
from attention.memory.latent import RMSNorm, latent_operations, takes_scale, with_scale
from attention.position.longer import yarn_factor
from attention.speed.cost import Ledger

SIZES = {"latent_dim": 12, "rotary_dim": 4, "head_dim": 7, "value_dim": 5}


def some_layer(dtype=torch.float64, **slots):
    """A layer of three heads, and two texts of eleven tokens."""
    torch.manual_seed(2357)
    layer = LatentAttention(13, 17, 3, **SIZES | slots).to(dtype)
    return layer, torch.randn(2, 11, 13, dtype=dtype)


def both(layer, *inputs, **options):
    """What the expanded and the absorbed way give."""
    found = []
    for layer.absorb in (False, True):
        given = copy.deepcopy(options)
        weights = layer.attention_weights(*inputs, **copy.deepcopy(options))
        context = layer(*inputs, **given)
        slopes = torch.autograd.grad(context.square().sum(), layer.parameters())
        found.append([context, weights, *slopes])
    return found


# The paper's equations 9 to 19


def by_given_numbers(absorb):
    """The golden of three latents and two heads, as a layer."""
    torch.manual_seed(0)
    latents, turned = torch.randn(3, 3), torch.randn(3, 2)
    query, turned_query = torch.randn(2, 2), torch.randn(2, 2)
    W_key, W_value = torch.randn(2, 2, 3), torch.randn(2, 2, 3)
    sizes = {"latent_dim": 3, "rotary_dim": 2, "head_dim": 2}
    layer = LatentAttention(
        6, 4, 2, **sizes, process_heads=lambda q, k, positions: (q, k), absorb=absorb
    ).requires_grad_(False)
    layer.latent_norm, layer.out_proj = nn.Identity(), nn.Identity()
    layer.W_latent, layer.W_turned_key = (nn.Linear(6, n, bias=False) for n in (3, 2))
    layer.requires_grad_(False)
    layer.W_latent.weight.copy_(torch.eye(6)[:3])
    layer.W_turned_key.weight.copy_(torch.eye(6)[3:5])
    asked = torch.cat([query, turned_query], dim=-1).flatten()
    layer.W_query.weight.zero_()[:, 5] = asked
    layer.W_key.weight.copy_(W_key.flatten(0, 1))
    layer.W_value.weight.copy_(W_value.flatten(0, 1))
    return layer(torch.cat([latents, turned, torch.ones(3, 1)], dim=-1))[-1]


@pytest.mark.parametrize("absorb", [None, False, True])
def test_the_published_numbers_of_both_ways(absorb):
    must = torch.tensor([1.4667, 0.6401, 1.0960, -0.8422])
    got = by_given_numbers(absorb)
    torch.testing.assert_close(got, must, rtol=0, atol=5e-5)  # printed with 4 digits


def by_hand(layer, x):
    """One query, one head and one key at a time."""
    heads, (turn, _) = layer.num_heads, (layer.process_heads, None)
    angles = turn.angles(torch.arange(x.shape[-2]))
    out = []
    for i in range(x.shape[-2]):
        contexts = []
        for head in range(heads):
            query = layer.W_query(x[i]).chunk(heads)[head]
            scores, values = [], []
            for j in range(i + 1):
                latent = layer.latent_norm(layer.W_latent(x[j]))
                key = layer.W_key(latent).chunk(heads)[head]
                values.append(layer.W_value(latent).chunk(heads)[head])
                score = query[: layer.head_dim] @ key
                pairs = query[layer.head_dim :].view(-1, 2)
                others = layer.W_turned_key(x[j]).view(-1, 2)
                for n, (pair, other) in enumerate(zip(pairs, others, strict=True)):
                    one = torch.complex(*pair) * torch.exp(1j * angles[i, n])
                    two = torch.complex(*other) * torch.exp(1j * angles[j, n])
                    score = score + (one * two.conj()).real
                scores.append(score / (layer.head_dim + layer.rotary_dim) ** 0.5)
            weights = torch.stack(scores).softmax(dim=0)
            contexts.append(weights @ torch.stack(values))
        out.append(layer.out_proj(torch.cat(contexts)))
    return torch.stack(out)


@pytest.mark.parametrize("absorb", [False, True])
def test_each_number_is_that_of_one_head_one_query_and_one_key_at_a_time(absorb):
    layer, x = some_layer(absorb=absorb)
    torch.testing.assert_close(layer(x[0, :5]), by_hand(layer, x[0, :5]))


SLOTS = {
    "nothing": {},
    "queries compressed": {"query_latent_dim": 6, "qkv_bias": True},
    "numbers added": {"qkv_bias": True, "out_bias": False},
    "values wider than keys": {"value_dim": 19},
    "values as wide as keys": {"value_dim": 11},
    "no mask": {"masks": ()},
    "window": {"masks": (window(3),)},
    "prefix": {"masks": (prefix(4), window(9))},
    "bias": {"bias": alibi(3)},
    "another turn": {"process_heads": Rotary(4, base=100.0, rotary_dim=2)},
    "a scale": {"attend": partial(attend, scale=0.3)},
    "in tiles": {"attend": flash_attend, "masks": (causal, window(5))},
}
slotted = pytest.mark.parametrize("slots", SLOTS.values(), ids=SLOTS)


@slotted
def test_absorbed_equals_expanded_in_numbers_weights_and_gradients(slots):
    layer, x = some_layer(**slots)
    torch.testing.assert_close(*both(layer, x))


def test_both_ways_agree_with_masks_and_positions_of_each_text():
    layer, x = some_layer()
    mask = torch.rand(2, 3, 11, 11) < 0.5
    mask[0, 1, 7] = False  # a query that sees nothing
    positions = torch.stack([torch.arange(11), torch.arange(11) + 5])
    for options in ({}, {"positions": positions}):
        torch.testing.assert_close(*both(layer, x, mask, **options))


@pytest.mark.parametrize("new", [1, 2, 5])
def test_both_ways_agree_with_a_cache(new):
    layer, x = some_layer()
    memory = KVCache()
    with torch.no_grad():
        layer(x[:, :4], cache=memory)
    torch.testing.assert_close(*both(layer, x[:, 4 : 4 + new], cache=memory))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_16_bits_both_ways_err_alike(dtype):
    layer, x = some_layer(dtype)
    exact = copy.deepcopy(layer).double()(x.double())
    errors = []
    for layer.absorb in (False, True):
        assert layer(x).dtype == dtype
        errors.append((layer(x) - exact).abs().max() / exact.abs().max())
    assert max(errors) < 16 * torch.finfo(dtype).eps


# Its scale


def test_the_scale_is_that_of_the_keys_and_comes_once():
    """Public bugs: divided by the root of the latent's width, or twice."""
    layer, x = some_layer()
    right, wide = layer(x), SIZES["latent_dim"] + SIZES["rotary_dim"]
    layer.absorb = True
    for scale, same in ((11**-0.5, True), (wide**-0.5, False), (1 / 11, False)):
        layer.attend = partial(attend, scale=scale)
        assert torch.allclose(layer(x), right) == same
    calls = []

    def once(queries, keys, values, mask=None, *, scale=None, **options):
        calls.append((queries.shape[-1], scale))
        return attend(queries, keys, values, mask, scale=scale, **options)

    layer.attend = once
    torch.testing.assert_close(layer(x), right)
    layer.absorb = False
    torch.testing.assert_close(layer(x), right)
    assert calls == [(16, 11**-0.5), (11, None)]


def test_the_scale_of_deepseek_with_yarn_holds_for_both_ways():
    scale = 192**-0.5 * yarn_factor(40) ** 2
    numbers = torch.tensor([yarn_factor(40), yarn_factor(40) ** 2, scale])
    must = torch.tensor([1.3689, 1.8739, 0.1352])
    torch.testing.assert_close(numbers, must, rtol=0, atol=5e-5)  # 4 digits
    sizes = {"latent_dim": 512, "rotary_dim": 64, "head_dim": 128}
    form = partial(attend, scale=scale)
    layer = LatentAttention(16, 16, 2, **sizes, attend=form).double()
    torch.testing.assert_close(*both(layer, torch.randn(7, 16).double()))


def test_a_scale_that_is_settled_stays():
    settled = partial(partial(attend, scale=0.3), window=None)
    assert with_scale(settled, 0.5).keywords["scale"] == 0.3
    assert with_scale(attend, 0.5).keywords["scale"] == 0.5
    assert takes_scale(attend)
    assert takes_scale(lambda *three, **more: None)
    assert not takes_scale(lambda queries, keys, values, mask=None: None)

    @wraps(attend)  # which copies what the plain form says of itself
    def decorated(queries, keys, values, mask=None, *, causal=False, dropout_p=0.0):
        return attend(queries, keys, values, mask, causal=causal)

    assert not takes_scale(decorated)


# Which way


class Telling:
    """A form that notes the widths it is called with."""

    def __init__(self):
        self.widths = []

    def __call__(self, queries, keys, values, mask=None, *, scale=None, **options):
        heads = keys.shape[-3]
        self.widths.append((heads, queries.shape[-1], values.shape[-1]))
        return attend(queries, keys, values, mask, scale=scale, **options)


EXPANDED, ABSORBED = (3, 11, 11), (1, 16, 12)


@torch.no_grad()
def test_prompts_are_expanded_and_single_tokens_absorbed():
    form = Telling()
    layer, x = some_layer(attend=form)
    memory = KVCache()
    layer(x)
    layer(x[:, :9], cache=memory)
    layer(x[:, 9:10], cache=memory)
    layer(x[:, 10:], cache=memory)
    assert form.widths == [EXPANDED, EXPANDED, ABSORBED, ABSORBED]


def test_the_way_with_fewer_operations_is_taken():
    layer, _ = some_layer()
    sizes = SIZES | {"num_heads": 3}
    ways = set()
    for new, held in ((1, 1), (1, 2), (5, 9), (9, 9), (2, 500), (400, 500), (30, 40)):
        count = latent_operations(new, held, **sizes)
        cheaper = count["absorbed"] < count["expanded"]
        assert layer._absorbs(KVCache(), new, held) == cheaper
        assert not layer._absorbs(None, new, held)
        ways.add(cheaper)
    assert ways == {True, False}


@torch.no_grad()
def test_a_form_without_a_scale_and_wrapped_matrices_are_never_absorbed():
    layer, x = some_layer()
    whole = layer(x)

    def plain(queries, keys, values, mask=None, *, causal=False, dropout_p=0.0):
        assert queries.shape[-1] == 11
        return attend(queries, keys, values, mask, causal=causal)

    class Wrapped(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x)

    form = Telling()
    for change in ({"attend": plain}, {"W_key": Wrapped(layer.W_key), "attend": form}):
        other, memory = copy.deepcopy(layer), KVCache()
        for name, part in change.items():
            setattr(other, name, part)
        pieces = [other(x[:, :9], cache=memory), other(x[:, 9:], cache=memory)]
        torch.testing.assert_close(torch.cat(pieces, dim=1), whole)
    assert form.widths == [EXPANDED] * 2


@pytest.mark.parametrize("new", [1, 3, 11])
def test_operations_are_those_that_pytorch_counts(new):
    sizes = {"num_heads": 3, **SIZES}
    layer, _ = some_layer(torch.float32)
    made = torch.randn(3, new, 11), torch.randn(1, 11, 4), torch.randn(1, 11, 12)
    must = latent_operations(new, 11, **sizes)
    for way, count in must.items():
        with FlopCounterMode(display=False) as counter:
            queries, keys, values = getattr(layer, f"_{way}")(*made)
            values = values[..., :5] if way == "expanded" else values
            context = attention_weights(queries, keys) @ values
            if way == "absorbed":
                _ = context @ layer.W_value.weight.unflatten(0, (3, 5)).mT
        assert counter.get_total_flops() == count


@torch.no_grad()
def test_a_long_prompt_needs_no_table_of_all_pairs():
    layer = LatentAttention(16, 16, 2, latent_dim=8, rotary_dim=4, head_dim=8)
    x = torch.randn(1, 2000, 16)
    with Ledger() as ledger:
        layer(x)
    assert ledger.peak < 2000 * 2000


@torch.no_grad()
@pytest.mark.parametrize("masks", [(causal,), (window(400),)])
@pytest.mark.parametrize("batch", [(1,), (), (1, 1)])
@pytest.mark.parametrize("new", [1, 3])
def test_a_written_token_repeats_nothing_of_the_past_for_each_head(new, batch, masks):
    sizes = {"latent_dim": 64, "rotary_dim": 4, "head_dim": 8, "masks": masks}
    layer = LatentAttention(16, 16, 32, **sizes)
    memory, x = KVCache(), torch.randn(*batch, 500, 16)
    layer(x[..., :-new, :], cache=memory)
    with Ledger() as ledger:
        layer(x[..., -new:, :], cache=memory)
    assert ledger.peak < 32 * 500 * 64 * 4 / 4  # a quarter of the latents, repeated


# Caches


@torch.no_grad()
def test_what_is_kept_is_one_turned_key_and_one_latent():
    layer, x = some_layer()
    memory = KVCache()
    layer(x, cache=memory)
    new = torch.zeros(2, 1, 0, 4).double(), torch.zeros(2, 1, 0, 12).double()
    keys, values, positions = memory.extend(*new, torch.arange(0))
    assert (keys.shape, values.shape) == ((2, 1, 11, 4), (2, 1, 11, 12))
    assert positions.tolist() == [*range(11)]
    latents = layer.latent_norm(layer.W_latent(x))
    torch.testing.assert_close(values.squeeze(1), latents)
    mean = values.square().mean(dim=-1)
    torch.testing.assert_close(mean, torch.ones_like(mean), rtol=1e-4, atol=0)  # eps


@torch.no_grad()
@pytest.mark.parametrize("absorb", [None, False, True])
@pytest.mark.parametrize("name", CACHES)
def test_any_split_and_any_rollback_with_any_cache(name, absorb):
    kept = CACHES[name]
    if not kept.uneven:
        pytest.skip("it keeps heads of one width")
    torch.manual_seed(2357)
    sizes = {"latent_dim": 16, "rotary_dim": 8, "head_dim": 8, "absorb": absorb}
    masks = {"masks": (causal, *kept.masks)} if kept.masks else {}
    layer = LatentAttention(16, 16, 4, **sizes, **masks).requires_grad_(False)
    x = torch.randn(2, LENGTH, 16)
    whole = layer(x)
    for ends in ([1], [12], [*range(1, 13)], [5, 9], [2, 2, 7]):
        cache = kept.make()
        assert isinstance(cache, Cache)
        pieces = [layer(part, cache=cache) for part in x.tensor_split(ends, dim=1)]
        assert_near(kept, torch.cat(pieces, dim=1), whole)
        if kept.oldest(cache) <= 10:
            cache.truncate(10)
            assert_near(kept, layer(x[:, 10:], cache=cache), whole[:, 10:])


@torch.no_grad()
def test_a_text_padded_on_the_left_says_what_it_says_alone():
    layer, x = some_layer()
    real = torch.ones(2, 11, dtype=torch.bool)
    real[0, :4] = False
    positions, memory = (real.cumsum(dim=-1) - 1).clamp(min=0), KVCache()
    got = [
        layer(
            x[:, start:end],
            real[:, None, None, :end],
            positions=positions[:, start:end],
            cache=memory,
        )
        for start, end in ((0, 6), (6, 7), (7, 11))
    ]
    got = torch.cat(got, dim=1)
    torch.testing.assert_close(got[0, 4:], layer(x[0, 4:]))
    torch.testing.assert_close(got[1], layer(x[1]))


@torch.no_grad()
def test_a_refused_call_leaves_the_cache_as_it_was(as_importer):
    layer, x = some_layer()
    memory = KVCache()
    layer(x[:, :6], cache=memory)
    narrow = torch.ones(2, 1, 1, 1, dtype=torch.bool)
    calls = {
        ("mask", "7", "got"): lambda: layer(x[:, 6:7], narrow, cache=memory),
        ("keys", "in the cache"): lambda: layer(x[:1, 6:7], cache=memory),
        ("x", "float32"): lambda: layer(x[:, 6:7].float(), cache=memory),
        ("cache", "extend"): lambda: layer(x, cache=object()),
    }
    for fields, call in calls.items():
        with pytest.raises(ValueError, match=said(*fields)):
            call()
        assert memory.length == 6
    layer.context_length = 7
    with pytest.raises(ValueError, match=said("context_length=7", "2 beside 6")):
        layer(x[:, 6:8], cache=memory)
    got = layer(x[:, 6:7], cache=memory)
    torch.testing.assert_close(got, layer(x[:, :7])[:, 6:])


# What turns


def test_pairs_are_neighbours_and_the_latent_does_not_turn():
    layer, x = some_layer()
    _, near, latents = layer._made(x, torch.arange(11))
    _, far, others = layer._made(x, torch.arange(11) + 100)
    assert torch.equal(latents, others)
    assert not torch.allclose(near, far)
    pairs = near.unflatten(-1, (2, 2)).norm(dim=-1)
    torch.testing.assert_close(pairs, far.unflatten(-1, (2, 2)).norm(dim=-1))
    whole = layer(x)
    torch.testing.assert_close(layer(x, positions=torch.arange(11) + 100), whole)
    layer.process_heads = Rotary(4)
    assert not torch.allclose(layer(x), whole)


def test_parameters_are_made_in_the_order_of_the_paper():
    layer, _ = some_layer(query_latent_dim=6, qkv_bias=True)
    assert [name for name, _ in layer.named_parameters()] == [
        "W_query_latent.weight",
        "W_query_latent.bias",
        "query_norm.weight",
        "W_query.weight",
        "W_latent.weight",
        "W_latent.bias",
        "latent_norm.weight",
        "W_turned_key.weight",
        "W_turned_key.bias",
        "W_key.weight",
        "W_value.weight",
        "out_proj.weight",
        "out_proj.bias",
    ]


def test_sizes_may_be_left_out():
    layer = LatentAttention(8, 12, 3, latent_dim=5, rotary_dim=2)
    assert (layer.head_dim, layer.value_dim) == (4, 4)
    assert layer(torch.randn(7, 8)).shape == (7, 12)


# The norm


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_norm_is_that_of_pytorch(dtype):
    norm, x = RMSNorm(7).to(dtype), torch.randn(2, 5, 7, dtype=dtype)
    nn.init.normal_(norm.weight)
    theirs = nn.RMSNorm(7, eps=1e-6, dtype=dtype)
    theirs.load_state_dict(norm.state_dict())
    torch.testing.assert_close(norm(x), theirs(x))


def test_the_norm_under_autocast_gives_back_the_dtype_of_its_input_without_a_warning():
    norm, x = RMSNorm(7), torch.randn(5, 7).bfloat16()
    with warnings.catch_warnings(), torch.autocast("cpu", torch.bfloat16):
        warnings.simplefilter("error")
        assert norm(x).dtype == torch.bfloat16


def test_the_norm_of_large_numbers_of_16_bits_is_finite():
    norm = RMSNorm(7).half()
    torch.testing.assert_close(norm(3e4 * torch.ones(7).half()), torch.ones(7).half())


def test_the_norm_of_another_width_is_refused(as_importer):
    with pytest.raises(ValueError, match=said("x", "7", "got", "(5, 1)")):
        RMSNorm(7)(torch.randn(5, 1))


# Bytes of open models


MODELS = {
    "Llama 3, 8B": ((32, 32), {"num_key_value_heads": 8, "hidden_size": 4096}, 131_072),
    "Llama 2, 7B": ((32, 32), {"hidden_size": 4096}, 524_288),
    "SmolLM2, 135M": (
        (30, 9),
        {"num_key_value_heads": 3, "hidden_size": 576, "head_dim": None},
        23_040,
    ),
    "DeepSeek-V3": (
        (61, 128),
        {"num_key_value_heads": 128, "kv_lora_rank": 512, "qk_rope_head_dim": 64},
        70_272,
    ),
    "Gemma 2, 9B": (
        (42, 16),
        {"num_key_value_heads": 8, "head_dim": 256, "hidden_size": 3584},
        344_064,
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_bytes_per_token_of_open_models(name):
    (layers, heads), widths, must = MODELS[name]
    config = {"num_hidden_layers": layers, "num_attention_heads": heads} | widths
    assert cache_bytes(config) == must
    assert cache_bytes(config, itemsize=1) == must // 2


@torch.no_grad()
def test_bytes_per_token_are_those_that_a_cache_holds():
    layer = LatentAttention(16, 16, 4, latent_dim=6, rotary_dim=2).bfloat16()
    names = {"num_hidden_layers": 1, "num_attention_heads": 4}
    names |= {"kv_lora_rank": 6, "qk_rope_head_dim": 2}
    _, *kept = layer._made(torch.randn(1, 16).bfloat16(), torch.arange(1))
    assert cache_bytes(names) == sum(t.nbytes for t in kept)


FULL = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 8}


@pytest.mark.parametrize("name", FULL)
def test_a_configuration_that_lacks_a_size_is_refused(name):
    config = {key: size for key, size in FULL.items() if key != name}
    with pytest.raises(ValueError, match=said("config", name, "got")):
        cache_bytes(config)


@pytest.mark.parametrize("size", [0, 2.5, True, "8"])
@pytest.mark.parametrize("name", [*FULL, "head_dim", "num_key_value_heads"])
def test_a_size_that_counts_nothing_is_refused(name, size, as_importer):
    with pytest.raises(ValueError, match=said(name, "whole number", "got")):
        cache_bytes(FULL | {name: size})


# Refused


@pytest.mark.parametrize("size", [0, -1, 2.0, True])
@pytest.mark.parametrize(
    "name", ["latent_dim", "rotary_dim", "head_dim", "value_dim", "query_latent_dim"]
)
def test_a_width_is_a_whole_number(name, size, as_importer):
    with pytest.raises(ValueError, match=said(name, "whole number", "got", size)):
        some_layer(**{name: size})


def test_pairs_turn_so_their_width_is_even(as_importer):
    with pytest.raises(ValueError, match=said("rotary_dim", "even", "got", 3)):
        some_layer(rotary_dim=3)


@pytest.mark.parametrize("absorb", ["yes", 2, 0.5])
def test_a_way_is_chosen_by_true_or_false(absorb, as_importer):
    with pytest.raises(ValueError, match=said("absorb", "True or False", "got")):
        some_layer(absorb=absorb)


@pytest.mark.parametrize("name", ["W_key", "W_value"])
def test_what_is_done_around_a_projection_is_done_beside_a_cache_too(name):
    def by_hook(linear):
        linear.register_forward_hook(lambda module, inputs, output: 2 * output)

    def by_input_hook(linear):
        linear.register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],))

    def by_another_forward(linear):
        plain = linear.forward
        linear.forward = lambda x: 2 * plain(x)

    for change in (by_hook, by_input_hook, by_another_forward):
        layer, x = some_layer()
        change(getattr(layer, name))
        memory = KVCache()
        pieces = [layer(piece, cache=memory) for piece in x.split(1, dim=1)]
        torch.testing.assert_close(torch.cat(pieces, dim=1), layer(x))
        layer.absorb = True
        with pytest.raises(ValueError, match=said(name, "without hooks", "Linear")):
            layer(x)


def test_what_cannot_be_absorbed_is_refused_where_it_is_asked_for():
    layer, x = some_layer(absorb=True)
    nn.utils.parametrizations.weight_norm(layer.W_value)
    with pytest.raises(ValueError, match=said("W_value", "nn.Linear", "got")):
        layer(x)
    layer, x = some_layer(absorb=True)
    layer.attend = lambda q, k, v, mask=None: v
    with pytest.raises(ValueError, match=said("attend", "scale", "got", "lambda")):
        layer(x)


@pytest.mark.parametrize("pick", [slice(1), slice(2, None)])
def test_a_process_that_changes_a_shape_is_refused(pick):
    def process(queries, keys, positions):
        return queries, keys[..., pick]

    layer, x = some_layer(process_heads=process)
    with pytest.raises(ValueError, match=said("process_heads", "(2, 1, 11, 4)", "got")):
        layer(x)


def test_sizes_of_numpy_take_as_many_bytes_as_those_of_python(as_importer):
    sizes = {"num_hidden_layers": 100, "num_attention_heads": 2**20, "head_dim": 1024}
    small = {name: np.int32(size) for name, size in sizes.items()}
    assert cache_bytes(small, itemsize=np.int8(2)) == cache_bytes(sizes)
