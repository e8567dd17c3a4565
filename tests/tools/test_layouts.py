"""Checkpoints of attention: five layouts, read whole or not at all."""

import itertools
import math
import re
import sys
from functools import partial

import pytest
import torch
from examples import said
from torch import nn

from attention import (
    Attention,
    CausalAttention,
    CrossAttention,
    MultiHeadAttention,
    SelfAttention,
    StackedHeads,
    attention_weights,
    causal_mask,
    convert_state_dict,
    load_safetensors,
    load_weights,
)
from attention.tools.layouts import Layout

LAYOUTS = ["ours", "torch", "gpt2", "separate"]
FUSED = ["torch", "gpt2"]
BOTH = ("weight", "bias")
PAIRS = list(itertools.product(LAYOUTS, LAYOUTS))


def some_module(d_in=22, d_out=22, qkv_bias=True):
    """Eleven heads of width two, and biases that are not zero."""
    module = MultiHeadAttention(d_in, d_out, 7, 0.0, 11, qkv_bias)
    for name, parameter in module.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    return module.requires_grad_(False)


def attended(queries, keys, values):
    """Causal attention with eleven heads, cut without einops."""
    cut = (x.unflatten(-1, (11, 2)).transpose(-3, -2) for x in (queries, keys, values))
    queries, keys, values = cut
    context = attention_weights(queries, keys, causal=True) @ values
    return context.transpose(-3, -2).flatten(-2)


def as_gpt2(state, x):
    """What the released code computes: products from the right, then three parts."""
    parts = (x @ state["c_attn.weight"] + state["c_attn.bias"]).split(22, dim=-1)
    return attended(*parts) @ state["c_proj.weight"] + state["c_proj.bias"]


def as_separate(state, x):
    def project(x, name):
        bias = state.get(f"{name}_proj.bias")
        return nn.functional.linear(x, state[f"{name}_proj.weight"], bias)

    return project(attended(*(project(x, name) for name in "qkv")), "o")


def as_torch(state, x):
    bias = "in_proj_bias" in state
    module = nn.MultiheadAttention(22, 11, bias=bias, batch_first=True)
    module.load_state_dict(state)
    return module(x, x, x, attn_mask=~causal_mask(x.shape[1]))[0]


def as_ours(state, x):
    module = some_module(x.shape[-1], 22, qkv_bias="W_query.bias" in state)
    module.load_state_dict(state)
    return module(x)


FORWARD = {
    "ours": as_ours,
    "torch": as_torch,
    "gpt2": as_gpt2,
    "separate": as_separate,
}


def assert_same_bits(state, other):
    """As bits, -0 is not 0, and NaN is NaN."""
    assert state.keys() == other.keys()
    for name, tensor in state.items():
        assert tensor.dtype == other[name].dtype
        assert tensor.shape == other[name].shape
        bits, other_bits = (
            t.flatten().view(torch.uint8) for t in (tensor, other[name])
        )
        assert torch.equal(bits, other_bits), name


def in_layout(layout, qkv_bias=True):
    return convert_state_dict(
        some_module(qkv_bias=qkv_bias).state_dict(), "ours", layout
    )


# Outputs


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_gives_the_output_of_our_module(layout, qkv_bias):
    module, x = some_module(qkv_bias=qkv_bias), torch.randn(2, 5, 22)
    state = convert_state_dict(module.state_dict(), "ours", layout)
    torch.testing.assert_close(FORWARD[layout](state, x), module(x))


@pytest.mark.parametrize("bias", [True, False])
def test_the_weights_of_pytorchs_module_give_its_output_in_ours(bias):
    peer, x = nn.MultiheadAttention(22, 11, bias=bias), torch.randn(5, 2, 22)
    for parameter in peer.parameters():
        nn.init.normal_(parameter, std=0.3)
    expected, _ = peer(x, x, x, attn_mask=~causal_mask(5))
    state = convert_state_dict(peer.state_dict(), "torch")
    context = as_ours(state, x.transpose(0, 1))
    torch.testing.assert_close(context.transpose(0, 1), expected)


def test_widths_may_differ_where_the_projections_are_separate():
    module, x = some_module(3, 22), torch.randn(2, 5, 3)
    state = convert_state_dict(module.state_dict(), "ours", "separate")
    assert state["k_proj.weight"].shape == (22, 3)
    torch.testing.assert_close(as_separate(state, x), module(x))


def test_a_matrix_that_is_not_turned_gives_another_output():
    state, x = in_layout("gpt2"), torch.randn(2, 5, 22)
    careless = state | {"c_proj.weight": state["c_proj.weight"].T}
    assert not torch.allclose(as_gpt2(careless, x), as_gpt2(state, x))


# There and back


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_there_and_back_gives_the_same_bits(source, target):
    state = in_layout(source)
    assert_same_bits(
        convert_state_dict(convert_state_dict(state, source, target), target, source),
        state,
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strange_numbers_and_other_dtypes_survive(layout):
    state = {n: t.bfloat16() for n, t in some_module().state_dict().items()}
    strange = torch.tensor([math.inf, math.nan, -0.0, 1e-40])
    for name in ("W_key.weight", "out_proj.weight", "W_value.bias"):
        state[name].view(-1)[:4] = strange
    assert_same_bits(
        convert_state_dict(convert_state_dict(state, "ours", layout), layout), state
    )


@pytest.mark.parametrize("target", ["ours", "separate"])
def test_without_qkv_bias_nothing_is_added_where_the_layout_allows_it(target):
    state = in_layout("separate", qkv_bias=False)
    there = convert_state_dict(state, "separate", target)
    assert sum(name.endswith("bias") for name in there) == 1
    assert_same_bits(convert_state_dict(there, target, "separate"), state)


@pytest.mark.parametrize("target", FUSED)
@pytest.mark.parametrize("source", ["ours", "separate"])
def test_a_bias_that_only_the_target_needs_is_zeros(source, target):
    state = in_layout(source, qkv_bias=False)
    back = convert_state_dict(convert_state_dict(state, source, target), target, source)
    added = back.keys() - state
    assert len(added) == 3
    for name in added:
        assert torch.equal(back.pop(name), torch.zeros(22))
    assert_same_bits(back, state)


@pytest.mark.parametrize("layout", ["torch", "separate"])
def test_a_layer_without_any_bias_stays_without(layout):
    state = in_layout(layout)
    state = {name: t for name, t in state.items() if not name.endswith("bias")}
    for target in ("torch", "separate"):
        there = convert_state_dict(state, layout, target)
        assert_same_bits(convert_state_dict(there, target, layout), state)
    assert not convert_state_dict(state, layout)["out_proj.bias"].any()


@pytest.mark.parametrize(
    ("layout", "stored"), [("ours", {"mask"}), ("gpt2", {"bias", "masked_bias"})]
)
def test_a_stored_mask_is_passed_over(layout, stored):
    state = in_layout(layout)
    masks = {name: torch.ones(1, 1, 7, 7, dtype=torch.uint8) for name in stored}
    assert_same_bits(convert_state_dict(state | masks, layout, layout), state)


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_the_result_is_a_copy_that_can_be_saved(source, target):
    state = in_layout(source)
    held = {tensor.untyped_storage().data_ptr() for tensor in state.values()}
    result = convert_state_dict(state, source, target)
    places = [tensor.untyped_storage().data_ptr() for tensor in result.values()]
    assert not held & set(places)
    assert len(set(places)) == len(places)
    assert all(tensor.is_contiguous() for tensor in result.values())
    assert not any(tensor.requires_grad for tensor in result.values())


def test_shapes_alone_can_be_converted():
    with torch.device("meta"):
        state = MultiHeadAttention(1600, 1600, 7, 0.0, 25, True).state_dict()
    there = convert_state_dict(state, "ours", "gpt2")
    assert there["c_attn.weight"].shape == (1600, 4800)
    assert there["c_attn.weight"].is_meta


# Misfits


def change(layout, **changes):
    """A state with some tensors replaced, or dropped where the change is None."""
    state = in_layout(layout) | {k.replace("__", "."): v for k, v in changes.items()}
    return {name: tensor for name, tensor in state.items() if tensor is not None}


SOME = torch.zeros(5)
MISFITS = [
    ("gpt2", {"c_attn__bias": None}, ["missing=['c_attn.bias'], extra=[]"]),
    ("gpt2", {"c_proj__weight": None}, ["layout 'gpt2'", "c_attn.bias", "got"]),
    ("torch", {"out_proj__bias": None}, ["missing=['out_proj.bias'], extra=[]"]),
    ("torch", {"more": SOME}, ["missing=[], extra=['more']"]),
    ("torch", {"bias_k": SOME}, ["bias_k", "add_bias_kv", "got", (5,)]),
    ("torch", {"bias_v": SOME}, ["bias_v", "add_bias_kv", "got", (5,)]),
    ("torch", {"q_proj_weight": SOME}, ["q_proj_weight", "kdim", "got", (5,)]),
    (
        "torch",
        {"in_proj_weight": None, "v_proj_weight": SOME},
        ["v_proj_weight", "vdim"],
    ),
    ("ours", {"W_key__bias": None}, ["missing=['W_key.bias'], extra=[]"]),
    ("ours", {"out_proj__weight": None}, ["missing=['out_proj.weight'], extra=[]"]),
    ("separate", {"k_proj__bias": None}, ["missing=['k_proj.bias'], extra=[]"]),
    (
        "separate",
        {"o_proj__weight": None, "out_proj__weight": SOME},
        ["missing=['o_proj.weight'], extra=['out_proj.weight']"],
    ),
    (
        "separate",
        {"q_proj__weight": None},
        ["missing=['q_proj.weight'], extra=[]", "layout 'separate'"],
    ),
    (
        "gpt2",
        {"c_attn__weight": torch.zeros(66, 22)},
        ["c_attn.weight", (22, 66), "d_in=22 and d_out=22", "got", (66, 22)],
    ),
    (
        "torch",
        {"in_proj_weight": torch.zeros(66, 3)},
        ["in_proj_weight", (66, 22), "layout 'torch'", "got", (66, 3)],
    ),
    (
        "torch",
        {"in_proj_bias": SOME},
        ["in_proj_bias", (66,), "layout 'torch'", "got", (5,)],
    ),
    (
        "separate",
        {"k_proj__weight": torch.zeros(5, 22)},
        ["k_proj.weight", (22, 22), "layout 'separate'", "got", (5, 22)],
    ),
    (
        "separate",
        {"k_proj__weight": torch.zeros(2, 22), "k_proj__bias": torch.zeros(2)},
        ["v_proj.weight", (2, 22), "layout 'separate'", "got", (22, 22)],
    ),
    (
        "ours",
        {"out_proj__weight": torch.zeros(22, 5)},
        ["out_proj.weight", (22, 22), "layout 'ours'", "got", (22, 5)],
    ),
    (
        "separate",
        {"q_proj__weight": torch.tensor(1.0)},
        ["q_proj.weight", "two axes", "got", ()],
    ),
    (
        "ours",
        {"W_query__weight": SOME},
        ["W_query.weight", "two axes", "got", (5,)],
    ),
    ("gpt2", {"c_proj__weight": SOME}, ["c_proj.weight", "two axes", "got", (5,)]),
    ("gpt2", {"c_attn__weight": SOME}, ["c_attn.weight", (22, 66), "got", (5,)]),
    (
        "ours",
        {"W_key__bias": torch.zeros(22).half()},
        ["layout 'ours'", "one dtype", "float16 on cpu", "float32 on cpu"],
    ),
    (
        "separate",
        {n.replace(".", "__"): t.byte() for n, t in in_layout("separate").items()},
        ["layout 'separate'", "floats", "got", "uint8 on cpu"],
    ),
]


def test_the_message_begins_with_what_is_missing_and_extra():
    """A list of all names may be long, and a console may cut it."""
    state = change("gpt2", c_attn__bias=None, c_attn__b=SOME)
    with pytest.raises(ValueError, match=r"^missing=\['c_attn.bias'\], extra=\['c_a"):
        convert_state_dict(state, "gpt2")


@pytest.mark.parametrize(("layout", "changes", "fields"), MISFITS)
def test_a_checkpoint_that_does_not_fit_is_refused_and_changes_nothing(
    as_importer, layout, changes, fields
):
    module, state = some_module(), change(layout, **changes)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(ValueError, match=said(*fields)):
        convert_state_dict(state, layout)
    with pytest.raises(ValueError, match=said(*fields)):
        load_weights(module, state, layout)
    assert_same_bits(module.state_dict(), before)


@pytest.mark.parametrize(
    ("sizes", "qkv_bias", "fields"),
    [
        ((22, 33), True, ["W_query.weight", (33, 22), "module", "got", (22, 22)]),
        ((3, 22), True, ["W_query.weight", (22, 3), "module", "got", (22, 22)]),
        ((22, 22), False, ["missing=[], extra=['W_key.bias', 'W_query.bias', 'W_v"]),
    ],
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_sound_checkpoint_of_another_module_changes_nothing(
    layout, sizes, qkv_bias, fields
):
    module = some_module(*sizes, qkv_bias=qkv_bias)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(ValueError, match=said(*fields)):
        load_weights(module, in_layout(layout), layout)
    assert_same_bits(module.state_dict(), before)


def test_a_module_with_biases_refuses_a_checkpoint_without():
    message = "missing=['W_key.bias', 'W_query.bias', 'W_value.bias'], extra=[]"
    with pytest.raises(ValueError, match=re.escape(message)):
        load_weights(some_module(), in_layout("separate", qkv_bias=False), "separate")


def test_a_checkpoint_fused_head_by_head_is_not_noticed():
    """A limit that the chapter states: no shape tells in which order rows stand."""
    state = in_layout("torch")
    by_head = {
        name: t.unflatten(0, (3, 11, 2)).transpose(0, 1).reshape(t.shape)
        for name, t in state.items()
        if name.startswith("in_proj")
    }
    module, mixed = some_module(), some_module()
    load_weights(module, state, "torch")
    load_weights(mixed, state | by_head, "torch")
    x = torch.randn(2, 7, 22, generator=torch.Generator().manual_seed(0))
    assert (module(x) - mixed(x)).abs().max() > 0.01


def test_a_layout_cannot_be_changed():
    layout = Layout({"W_query.": ("W_query",)})
    with pytest.raises(AttributeError, match="cannot assign to field 'transposed'"):
        layout.transposed = True


def test_an_unknown_layout_is_refused():
    state = in_layout("ours")
    fields = "layout", "ours", "companion", "torch", "gpt2", "separate", "got 'gpt3'"
    for source, target in (("gpt3", "ours"), ("ours", "gpt3")):
        with pytest.raises(ValueError, match=said(*fields)):
            convert_state_dict(state, source, target)


@pytest.mark.parametrize("target", FUSED)
def test_a_fused_layout_needs_one_width(target):
    state = some_module(3, 22).state_dict()
    fields = "one width", f"layout '{target}'", "got", "d_in=3", "d_out=22"
    with pytest.raises(ValueError, match=said(*fields)):
        convert_state_dict(state, "ours", target)


def test_a_module_without_numbers_is_not_filled():
    with torch.device("meta"):
        empty = MultiHeadAttention(22, 22, 7, 0.0, 11, True)
    full, message = some_module(), said("W_query.weight", "numbers", "got", "meta")
    with pytest.raises(ValueError, match=message):
        load_weights(empty, full.state_dict())
    with pytest.raises(ValueError, match=message):
        load_weights(full, empty.state_dict())


# To the companion's classes and back


class Companion(nn.Module):
    """The companion's multi-head class, by description: our tensors and its mask."""

    def __init__(self, d_in, d_out, context_length, qkv_bias, output=True):
        super().__init__()
        for name in ("W_query", "W_key", "W_value"):
            self.add_module(name, nn.Linear(d_in, d_out, bias=qkv_bias))
        if output:
            self.out_proj = nn.Linear(d_out, d_out)
        forbidden = torch.ones(context_length, context_length).triu(diagonal=1)
        self.register_buffer("mask", forbidden)


class CompanionWrapper(nn.Module):
    """Heads of it, without an output projection."""

    def __init__(self, num_heads, *sizes):
        super().__init__()
        heads = (Companion(*sizes, output=False) for _ in range(num_heads))
        self.heads = nn.ModuleList(heads)


def loaded(companion, module, **options):
    """A class of the companion's, filled from ours, and what it held before."""
    before = companion.state_dict()
    masks = {n: t.clone() for n, t in before.items() if n.endswith("mask")}
    state = convert_state_dict(module.state_dict(), "ours", "companion", **options)
    companion.load_state_dict(state, strict=True)
    return companion.state_dict(), masks


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_our_checkpoint_loads_into_the_companions_class(qkv_bias):
    module = some_module(3, 22, qkv_bias)
    companion = Companion(3, 22, 7, qkv_bias)
    state, masks = loaded(companion, module, context_length=7)
    assert_same_bits(state, module.state_dict() | masks)
    back = MultiHeadAttention(3, 22, 7, 0.0, 11, qkv_bias)
    load_weights(back, state, "companion")
    assert_same_bits(back.state_dict(), module.state_dict())


@pytest.mark.parametrize("qkv_bias", [True, False])
def test_a_causal_head_and_a_stack_of_them_go_there_and_back(qkv_bias):
    head = CausalAttention(3, 22, 7, qkv_bias=qkv_bias)
    stack = StackedHeads(3, 22, 7, 0.0, 11, qkv_bias)
    sizes = 3, 22, 7, qkv_bias
    for module, companion in (
        (head, Companion(*sizes, output=False)),
        (stack, CompanionWrapper(11, *sizes)),
    ):
        state, masks = loaded(companion, module, context_length=7)
        assert_same_bits(state, module.state_dict() | masks)
        assert masks
        held, x = {n: t.clone() for n, t in state.items()}, torch.randn(5, 3)
        expected = module(x)
        for parameter in module.parameters():
            nn.init.zeros_(parameter)
        load_weights(module, held, "companion")
        assert torch.equal(module(x), expected)


def test_the_stored_mask_tells_its_length_again():
    state = convert_state_dict(in_layout("ours"), "ours", "companion", context_length=5)
    again = convert_state_dict(state, "companion", "companion")
    assert_same_bits(again, state)
    assert_same_bits(convert_state_dict(state, "ours", "companion"), state)
    longer = convert_state_dict(state, "companion", "companion", context_length=7)
    assert longer["mask"].shape == (7, 7)


def test_the_mask_has_the_dtype_of_the_weights():
    state = {name: t.bfloat16() for name, t in in_layout("ours").items()}
    mask = convert_state_dict(state, "ours", "companion", context_length=3)["mask"]
    assert mask.dtype == torch.bfloat16
    assert mask.tolist() == [[0, 1, 1], [0, 0, 1], [0, 0, 0]]


@pytest.mark.parametrize("length", [None, 0, 2.5, True])
def test_a_mask_needs_a_length(as_importer, length):
    with pytest.raises(
        ValueError, match=said("context_length", "whole", "got", length)
    ):
        convert_state_dict(
            in_layout("ours"), "ours", "companion", context_length=length
        )


def test_a_length_is_refused_where_no_mask_is_stored(as_importer):
    with pytest.raises(ValueError, match=said("context_length", "None", "got 7")):
        convert_state_dict(in_layout("ours"), "ours", "torch", context_length=7)


def test_a_stored_mask_of_another_form_is_refused(as_importer):
    state = in_layout("ours") | {"mask": torch.ones(5, 7)}
    with pytest.raises(ValueError, match=said("mask", "context_length", "got", (5, 7))):
        convert_state_dict(state, "companion", "companion")


def test_the_head_that_does_not_fit_is_named(as_importer):
    stack = StackedHeads(3, 22, 7, 0.0, 2)
    state = stack.state_dict()
    del state["heads.1.W_key.weight"]
    fields = "missing=['W_key.weight']", "heads.1 in layout 'ours'"
    with pytest.raises(ValueError, match=said(*fields)):
        load_weights(stack, state)
    with pytest.raises(ValueError, match=said("extra=['more']")):
        convert_state_dict(stack.state_dict() | {"more": SOME}, "ours")


# One head, and fewer heads of keys


@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("layout", ["ours", "separate"])
@pytest.mark.parametrize(
    "make", [SelfAttention, partial(CausalAttention, context_length=7)]
)
def test_a_head_without_an_output_projection_goes_there_and_back(
    make, layout, qkv_bias
):
    module, x = make(3, 22, qkv_bias=qkv_bias), torch.randn(5, 3)
    expected, state = module(x), module.state_dict()
    there = convert_state_dict(state, "ours", layout)
    assert len(there) == len(state)
    assert_same_bits(convert_state_dict(there, layout), state)
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    load_weights(module, there, layout)
    assert torch.equal(module(x), expected)


@pytest.mark.parametrize("target", FUSED)
def test_a_fused_layout_needs_an_output_projection(as_importer, target):
    state = SelfAttention(22, 22).state_dict()
    with pytest.raises(ValueError, match=said("out_proj", f"layout '{target}'", "got")):
        convert_state_dict(state, "ours", target)


def test_a_layer_and_a_head_are_not_taken_for_each_other(as_importer):
    layer, head = some_module(), SelfAttention(22, 22, qkv_bias=True)
    with pytest.raises(ValueError, match=said("missing=[], extra=['out_proj.bias'")):
        load_weights(head, layer.state_dict())
    with pytest.raises(ValueError, match=said("missing=['out_proj.bias'")):
        load_weights(layer, head.state_dict())


def with_shared_keys(kv_out=4, bias=True):
    """Eleven heads in pairs of two numbers, two of keys and values."""
    state = {"q_proj.weight": torch.randn(22, 3), "o_proj.weight": torch.randn(22, 22)}
    state |= {f"{each}_proj.weight": torch.randn(kv_out, 3) for each in "kv"}
    if bias:
        state |= {
            name.replace("weight", "bias"): t[:, 0].clone() for name, t in state.items()
        }
    return state


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kv_out", [2, 11])
def test_fewer_heads_of_keys_go_there_and_back(kv_out, bias):
    state = with_shared_keys(kv_out, bias)
    ours = convert_state_dict(state, "separate")
    assert ours["W_key.weight"].shape == ours["W_value.weight"].shape == (kv_out, 3)
    back = convert_state_dict(ours, "ours", "separate")
    assert not back.pop("o_proj.bias" if not bias else "", torch.zeros(1)).any()
    assert_same_bits(back, state)


def test_a_module_with_fewer_heads_of_keys_is_filled():
    module = some_module(3, 22)
    module.W_key, module.W_value = nn.Linear(3, 2), nn.Linear(3, 2)
    state = with_shared_keys(2)
    load_weights(module, state, "separate")
    assert torch.equal(module.W_key.weight, state["k_proj.weight"])
    with pytest.raises(ValueError, match=said("W_key.weight", (2, 3), "got", (11, 3))):
        load_weights(module, with_shared_keys(11), "separate")


@pytest.mark.parametrize("target", FUSED)
def test_a_fused_layout_needs_as_many_heads_of_keys(as_importer, target):
    state = some_module().state_dict()
    for name in ("W_key", "W_value"):
        state |= {f"{name}.{kind}": state[f"{name}.{kind}"][:2] for kind in BOTH}
    fields = "one width", f"layout '{target}'", "d_out=22", "keys of 2"
    with pytest.raises(ValueError, match=said(*fields)):
        convert_state_dict(state, "ours", target)


# A layer without a bias in its output projection


def unbiased():
    return Attention(8, 8, 4, num_kv_heads=2, out_bias=False)


def llama_state():
    shapes = {"q": (8, 8), "k": (4, 8), "v": (4, 8), "o": (8, 8)}
    return {f"{n}_proj.weight": torch.randn(shape) for n, shape in shapes.items()}


def test_a_layer_without_an_output_bias_is_copied_into_its_own_class():
    source, module = unbiased(), unbiased()
    load_weights(module, source)
    assert_same_bits(module.state_dict(), source.state_dict())
    assert_same_bits(convert_state_dict(source, "ours"), source.state_dict())


def test_a_checkpoint_without_biases_fills_a_layer_without():
    module, state = unbiased(), llama_state()
    load_weights(module, state, "separate")
    back = convert_state_dict(module, "ours", "separate")
    assert_same_bits(back, state)


@pytest.mark.parametrize("layout", FUSED)
def test_biases_that_are_zeros_may_be_left_out_of_a_module(layout):
    source = Attention(8, 8, 4, out_bias=False)
    module = Attention(8, 8, 4, out_bias=False)
    load_weights(module, convert_state_dict(source, "ours", layout), layout)
    assert_same_bits(module.state_dict(), source.state_dict())


@pytest.mark.parametrize("bias", [1e-30, math.nan])
def test_a_bias_that_is_not_zero_is_refused_by_a_module_without(bias):
    module, state = unbiased(), llama_state()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    state["o_proj.bias"] = torch.zeros(8)
    state["o_proj.bias"][3] = bias
    with pytest.raises(ValueError, match=said("missing=[], extra=['out_proj.bias']")):
        load_weights(module, state, "separate")
    assert_same_bits(module.state_dict(), before)


def test_our_own_checkpoint_that_lost_its_output_bias_does_not_fill_a_layer_with_one():
    state = some_module().state_dict()
    del state["out_proj.bias"]
    with pytest.raises(ValueError, match=said("missing=['out_proj.bias'], extra=[]")):
        load_weights(some_module(), state)


def test_the_companions_class_gets_the_output_bias_that_it_always_has():
    state = convert_state_dict(unbiased(), "ours", "companion", context_length=3)
    assert torch.equal(state.pop("out_proj.bias"), torch.zeros(8))
    with pytest.raises(ValueError, match=said("missing=['out_proj.bias'], extra=[]")):
        convert_state_dict(state, "companion")


# Widths of their own


def other_context(d_context=4):
    return CrossAttention(6, 6, 3, d_context=d_context)


def wide_heads(head_dim=8):
    return Attention(8, 8, 2, head_dim=head_dim)


def qwen3_state():
    shapes = {"q": (16, 8), "k": (8, 8), "v": (8, 8), "o": (8, 16)}
    return {f"{n}_proj.weight": torch.randn(shape) for n, shape in shapes.items()}


@pytest.mark.parametrize("layout", ["ours", "separate"])
@pytest.mark.parametrize("make", [other_context, wide_heads])
def test_a_layer_whose_widths_differ_is_copied_into_its_own_class(make, layout):
    source, module = make(), make()
    state = convert_state_dict(source, "ours", layout)
    load_weights(module, state, layout)
    assert_same_bits(module.state_dict(), source.state_dict())


def test_a_checkpoint_with_wide_heads_fills_a_layer_with_wide_heads():
    module = Attention(8, 8, 2, num_kv_heads=1, head_dim=8, out_bias=False)
    state = qwen3_state()
    load_weights(module, state, "separate")
    assert_same_bits(convert_state_dict(module, "ours", "separate"), state)


@pytest.mark.parametrize(
    ("make", "other", "fields"),
    [
        (other_context, 5, ["W_key.weight", (6, 4), "module", "got", (6, 5)]),
        (wide_heads, 4, ["W_query.weight", (16, 8), "module", "got", (8, 8)]),
    ],
)
def test_a_layer_of_other_widths_is_refused_by_the_module(
    as_importer, make, other, fields
):
    with pytest.raises(ValueError, match=said(*fields)):
        load_weights(make(), make(other))


@pytest.mark.parametrize(
    ("name", "shape", "must"),
    [
        ("v_proj.weight", (8, 5), (8, 8)),  # keys and values read one sequence
        ("v_proj.weight", (16, 8), (8, 8)),
        ("o_proj.weight", (16, 8), (16, 16)),
        ("o_proj.bias", (16,), (8,)),
        ("k_proj.weight", (8,), (16, 8)),
    ],
)
def test_widths_that_do_not_fit_each_other_are_refused(as_importer, name, shape, must):
    state = qwen3_state() | {name: torch.zeros(shape)}
    with pytest.raises(ValueError, match=said(name, must, "got", shape)):
        convert_state_dict(state, "separate")


@pytest.mark.parametrize("target", FUSED)
@pytest.mark.parametrize("make", [other_context, wide_heads])
def test_a_fused_layout_needs_one_width_of_all_projections(as_importer, make, target):
    with pytest.raises(ValueError, match=said("one width", f"layout '{target}'")):
        convert_state_dict(make(), "ours", target)


# Memory that is shared


def tied(module):
    module.W_key = module.W_query
    return module


def test_two_values_for_weights_that_share_memory_are_refused(as_importer):
    module, state = tied(some_module()), in_layout("ours")
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(ValueError, match=said("W_query.weight", "W_key.weight", "got")):
        load_weights(module, state)
    assert_same_bits(module.state_dict(), before)


def test_equal_values_fill_weights_that_share_memory():
    module, source = tied(some_module()), tied(some_module())
    with torch.no_grad():
        source.W_query.weight[0, 0] = math.nan
    load_weights(module, source)
    assert_same_bits(module.state_dict(), source.state_dict())


def test_a_view_that_repeats_its_numbers_is_refused_before_anything_is_written(
    as_importer,
):
    module = some_module()
    module.out_proj.weight = nn.Parameter(torch.zeros(22, 1).expand(22, 22))
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(ValueError, match=said("out_proj.weight", "memory", "got")):
        load_weights(module, in_layout("ours"))
    assert_same_bits(module.state_dict(), before)


def test_parts_of_one_tensor_that_do_not_overlap_are_filled():
    module, source = some_module(), some_module()
    whole = torch.zeros(22, 44)
    module.W_query.weight, module.W_key.weight = map(nn.Parameter, whole.chunk(2, 1))
    load_weights(module, source)
    assert_same_bits(module.state_dict(), source.state_dict())


# What no tensor tells


def test_a_key_of_zeros_leaves_no_trace_in_the_tensors_and_is_refused_in_a_module():
    """Its output differs from ours: the limit that the docstring states."""
    plain, zero = (
        nn.MultiheadAttention(22, 11, add_zero_attn=z) for z in (False, True)
    )
    zero.load_state_dict(plain.state_dict())
    cross, x = CrossAttention(22, 22, 11, qkv_bias=True), torch.randn(5, 22)
    load_weights(cross, zero.state_dict(), "torch")
    torch.testing.assert_close(cross(x, x), plain(x, x, x)[0])
    assert not torch.allclose(cross(x, x), zero(x, x, x)[0])
    for call in (
        lambda: load_weights(cross, zero, "torch"),
        lambda: convert_state_dict(zero, "torch"),
    ):
        with pytest.raises(ValueError, match=said("add_zero_attn", "got True")):
            call()


def test_keys_of_another_width_and_learned_keys_of_pytorchs_module_are_refused():
    for options, name in (
        ({"kdim": 3}, "_proj_weight"),
        ({"add_bias_kv": True}, "bias_"),
    ):
        theirs = nn.MultiheadAttention(22, 11, **options)
        for source in (theirs, theirs.state_dict()):
            with pytest.raises(ValueError, match=said(name, *options)):
                convert_state_dict(source, "torch")


def test_a_module_stands_for_its_tensors():
    theirs, module = nn.MultiheadAttention(22, 11), some_module()
    load_weights(module, theirs, "torch")
    expected = convert_state_dict(theirs.state_dict(), "torch")
    assert_same_bits(module.state_dict(), expected)
    assert_same_bits(convert_state_dict(theirs, "torch"), expected)


def test_another_number_of_heads_is_refused_where_both_modules_tell_it(as_importer):
    theirs, module = nn.MultiheadAttention(22, 2), some_module()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with pytest.raises(ValueError, match=said("num_heads", 11, "got 2")):
        load_weights(module, theirs, "torch")
    assert_same_bits(module.state_dict(), before)


def test_what_is_no_tensor_is_refused(as_importer):
    state = in_layout("ours")
    with pytest.raises(TypeError, match=said("W_key.weight", "torch.Tensor", "list")):
        convert_state_dict(state | {"W_key.weight": [[1.0]]}, "ours")
    for thing in ([state], "model.pt", None):
        with pytest.raises(TypeError, match=said("state", "got", type(thing).__name__)):
            convert_state_dict(thing, "ours")


# Filling a module


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_filled_module_gives_the_output_of_the_checkpoint(layout):
    module, state, x = some_module(), in_layout(layout), torch.randn(2, 5, 22)
    assert load_weights(module, state, layout) is None
    torch.testing.assert_close(module(x), FORWARD[layout](state, x))


def test_filling_keeps_the_modules_parameters_and_dtype():
    module, state = some_module().double(), in_layout("gpt2")
    weight = module.W_query.weight
    load_weights(module, state, "gpt2")
    assert module.W_query.weight is weight
    assert weight.dtype == torch.float64
    assert torch.equal(weight, state["c_attn.weight"][:, :22].T.double())


def test_cross_attention_of_one_width_is_filled_too():
    cross = CrossAttention(22, 22, 11, qkv_bias=True)
    state, x = in_layout("torch"), torch.randn(5, 22)
    load_weights(cross, state, "torch")
    peer = nn.MultiheadAttention(22, 11)
    peer.load_state_dict(state)
    torch.testing.assert_close(cross(x, x), peer(x, x, x)[0])


# Files


@pytest.fixture
def path(tmp_path):
    """Two attention layers of a small GPT-2, with stored masks and norms beside."""
    save_file = pytest.importorskip("safetensors.torch").save_file
    tensors = {"wte.weight": torch.randn(3, 22)}
    for layer in (1, 11):
        tensors |= {f"h.{layer}.attn.{n}": t for n, t in in_layout("gpt2").items()}
        tensors[f"h.{layer}.attn.bias"] = torch.ones(1, 1, 7, 7)
        tensors[f"h.{layer}.attn_norm.weight"] = torch.ones(22)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("prefix", ["h.1.attn", "h.1.attn."])
def test_a_prefix_chooses_one_layer(path, prefix):
    everything = load_safetensors(path)
    state = load_safetensors(str(path), prefix)
    assert len(everything) == 13
    assert state.keys() == in_layout("gpt2").keys() | {"bias"}
    for name, tensor in state.items():
        assert torch.equal(tensor, everything[f"h.1.attn.{name}"])


def test_a_file_fills_a_module(path):
    module, x = some_module(), torch.randn(2, 5, 22)
    state = load_safetensors(path, "h.11.attn")
    load_weights(module, state, "gpt2")
    torch.testing.assert_close(module(x), as_gpt2(state, x))


def test_a_prefix_that_begins_no_name_is_refused(path):
    fields = "prefix", "h.1.attn.bias", "model.safetensors", "got 'h.2.attn'"
    with pytest.raises(ValueError, match=said(*fields)):
        load_safetensors(path, "h.2.attn")


def test_a_pickle_is_refused_and_never_run(tmp_path):
    pytest.importorskip("safetensors")

    class Trap:
        def __reduce__(self):
            return (tmp_path / "sprung").touch, ()

    torch.save({"W_query.weight": Trap()}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=said("a safetensors file", "got")):
        load_safetensors(tmp_path / "model.pt")
    assert not (tmp_path / "sprung").exists()


def test_a_file_that_is_cut_short_is_refused(path):
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=said("a safetensors file", "got")):
        load_safetensors(path)


@pytest.mark.parametrize("prefix", [None, 1, b"h"])
@pytest.mark.usefixtures("as_importer")
def test_a_prefix_that_is_no_string_is_refused(path, prefix):
    with pytest.raises(ValueError, match=said("prefix", "str", "got")):
        load_safetensors(path, prefix)


def test_a_file_that_is_not_there_is_named(tmp_path):
    pytest.importorskip("safetensors")
    with pytest.raises(FileNotFoundError, match=r"absent\.safetensors"):
        load_safetensors(tmp_path / "absent.safetensors")


def test_without_safetensors_the_error_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(ImportError, match=r"building-attention\[checkpoints\]"):
        load_safetensors(tmp_path / "model.safetensors")


# At real size


@pytest.mark.parametrize(
    ("d", "num_blocks", "num_heads", "millions"),
    [
        (768, 12, 12, 124),
        (1024, 24, 16, 355),
        (1280, 36, 20, 774),
        (1600, 48, 25, 1558),
    ],
)
def test_the_four_gpt2_models_have_as_many_millions_as_their_names_say(
    d, num_blocks, num_heads, millions
):
    with torch.device("meta"):
        attention = MultiHeadAttention(d, d, 1024, 0.0, num_heads, qkv_bias=True)
        mlp = nn.Sequential(nn.Linear(d, 4 * d), nn.Linear(4 * d, d))
        tokens, places = nn.Embedding(50257, d), nn.Embedding(1024, d)
        norm = nn.LayerNorm(d)

    def count(module):
        return sum(parameter.numel() for parameter in module.parameters())

    assert count(attention) == 4 * d * d + 4 * d
    block = count(attention) + count(mlp) + 2 * count(norm)
    total = num_blocks * block + count(tokens) + count(places) + count(norm)
    assert round(total / 1e6) == millions


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_checkpoint_on_the_cpu_fills_a_module_on_cuda():
    module, state, x = some_module(), in_layout("gpt2"), torch.randn(2, 5, 22)
    load_weights(module.cuda(), state, "gpt2")
    context = module(x.cuda()).cpu()
    torch.testing.assert_close(context, as_gpt2(state, x), atol=1e-5, rtol=1e-4)
