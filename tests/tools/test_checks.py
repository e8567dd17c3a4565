"""Checks: what does not fit is refused in words, and what fits is left alone."""

import dataclasses
import re
import subprocess
import sys
from fractions import Fraction
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from examples import said
from torch import nn

import attention
from attention import (
    LinearScaling,
    MultiHeadAttention,
    SelfAttention,
    attend,
    attention_weights,
    flash_attend,
)
from attention.tools.checks import (
    are_groups,
    as_given,
    broadcast_heads,
    check_bias,
    check_counts,
    check_fit,
    check_heads,
    check_input,
    dropout_now,
    is_whole,
    repeat_kv,
    scale_queries,
    unified,
)
from conformance.names import public

PUBLIC = public()


def heads(count, length=5, width=11):
    return torch.randn(2, count, length, width)


# Groups of heads


def test_each_head_of_keys_serves_several_query_heads_in_a_row():
    keys = heads(2)
    repeated = repeat_kv(keys, heads(6))
    assert repeated.shape[1] == 6
    for head in range(6):
        assert torch.equal(repeated[:, head], keys[:, head // 3])


@pytest.mark.parametrize("count", [1, 6])
def test_one_head_and_as_many_heads_are_left_alone(count):
    keys = heads(count)
    assert repeat_kv(keys, heads(6)) is keys
    assert not are_groups(keys, heads(6))


def test_the_scores_have_the_heads_of_the_queries():
    assert check_fit(heads(6), heads(2, 7), heads(3, 7)) == (2, 6, 5, 7)
    assert check_fit(heads(6)[0], heads(2, 7)[0], heads(1, 7)[0]) == (6, 5, 7)
    assert check_fit(heads(6)[0], heads(2, 7), heads(2, 7)) == (2, 6, 5, 7)


@pytest.mark.parametrize("count", [4, 5, 12])
def test_heads_that_do_not_divide_those_of_the_queries_are_refused(as_importer, count):
    with pytest.raises(ValueError, match=said("heads", "got (2, 6)", f"(2, {count})")):
        check_fit(heads(6), heads(count), heads(count))


@pytest.mark.parametrize(
    ("counts", "shared"),
    [((6, 6, 6), 6), ((6, 2, 2), 2), ((6, 1, 1), 1), ((6, 1, 2), 2), ((6, 2, 3), 6)],
    ids=str,
)
def test_keys_and_values_come_to_one_number_of_heads_and_mean_the_same(counts, shared):
    queries, keys, values = (heads(count) for count in counts)
    shape = check_fit(queries, keys[0], values)  # one text's keys serve both
    three = broadcast_heads(queries, keys[0], values, shape)
    assert [t.shape[:2] for t in three] == [(2, 6), (2, shared), (2, shared)]
    torch.testing.assert_close(attend(*three), attend(queries, keys[0], values))


def test_to_broadcast_heads_copies_nothing_and_gives_axes_that_lack():
    rows = torch.randn(5, 11)
    three = broadcast_heads(rows, rows, rows, (5, 5))
    assert [t.shape for t in three] == [(1, 1, 5, 11)] * 3
    assert {t.data_ptr() for t in three} == {rows.data_ptr()}


# Scale and bias


def test_without_a_scale_it_is_one_over_the_root_of_the_width():
    queries = heads(3)
    same, scale = scale_queries(queries, None)
    assert same is queries
    assert scale == 11**-0.5


@pytest.mark.parametrize("shape", [(), (1,), (3, 1, 1), (2, 1, 1, 1), (5, 1)])
def test_a_tensor_as_a_scale_is_multiplied_into_the_queries(shape):
    queries, scale = heads(3), torch.rand(shape)
    scaled, left = scale_queries(queries, scale)
    assert left == (scale.item() if scale.numel() == 1 else 1.0)
    torch.testing.assert_close(left * scaled, queries * scale)


@pytest.mark.parametrize("number", [0.3, -0.3, 0.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("form", [attend, flash_attend])
def test_a_tensor_of_one_number_scales_16_bits_like_the_number(form, dtype, number):
    three = [heads(3).to(dtype) for _ in range(3)]
    must = form(*three, scale=number)
    got = form(*three, scale=torch.tensor(number))
    assert torch.equal(got, must)


@pytest.mark.parametrize("number", [0.3, -0.3, 0.0])
def test_a_learned_number_has_the_gradient_of_by_hand(number):
    three, gradients = [heads(3) for _ in range(3)], []
    for form in (attend, flash_attend, _by_hand):
        scale = torch.tensor(number, requires_grad=True)
        gradients += torch.autograd.grad(
            form(*three, scale=scale).square().sum(), scale
        )
    torch.testing.assert_close(gradients[0], gradients[2])
    torch.testing.assert_close(gradients[1], gradients[2])


def _by_hand(queries, keys, values, **options):
    return attention_weights(queries, keys, **options) @ values


@pytest.mark.parametrize("shape", [(11,), (4, 1, 1), (3,), (7, 2, 3, 5, 1)])
def test_a_scale_for_each_number_of_a_query_is_refused(as_importer, shape):
    with pytest.raises(ValueError, match=said("scale", "(2, 3, 5, 1)", "got", shape)):
        scale_queries(heads(3), torch.rand(shape))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_bias_in_float32_fits_queries_of_16_bits(dtype):
    queries, bias = heads(3).to(dtype), torch.randn(3, 5, 7)
    assert check_bias(bias, (2, 3, 5, 7), queries).dtype == torch.float32
    assert check_bias(bias.to(dtype), (2, 3, 5, 7), queries).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.int64])
def test_a_bias_of_another_dtype_is_refused(as_importer, dtype):
    with pytest.raises(ValueError, match=said("bias", "float32 on cpu", "got", dtype)):
        check_bias(torch.zeros(5, 7).to(dtype), (2, 3, 5, 7), heads(3))


# Autocast


def test_without_autocast_nothing_is_cast():
    mixed = heads(3), heads(3).half()
    assert all(a is b for a, b in zip(unified(*mixed), mixed, strict=True))


def test_under_autocast_all_floats_but_float64_become_its_dtype():
    kinds = torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = unified(*(torch.ones(2, dtype=kind) for kind in kinds))
    assert [t.dtype for t in cast] == [torch.bfloat16] * 3 + [*kinds[3:]]


def test_a_device_without_autocast_is_not_asked():
    empty = torch.ones(2, device="meta")
    assert unified(empty) == (empty,)
    with as_given(empty):
        assert (empty * 2).device.type == "meta"


# Modules


class Hidden(nn.Module):
    """A layer around another whose `weight` is not a tensor."""

    def __init__(self, layer, weight):
        super().__init__()
        self.inner, self.weight = layer, weight

    def forward(self, x):
        return self.inner(x)


@pytest.mark.parametrize("weight", [None, "packed", lambda: torch.ones(1)])
def test_a_layer_whose_weight_is_no_tensor_is_asked_nothing(weight):
    module, x = SelfAttention(3, 5), torch.randn(2, 7, 3)
    context = module(x)
    module.W_query = Hidden(module.W_query, weight)
    torch.testing.assert_close(module(x), context)
    torch.testing.assert_close(module.attention_weights(x) @ module.W_value(x), context)


def test_a_list_in_the_place_of_a_tensor_is_refused_in_words(as_importer):
    with pytest.raises(TypeError, match=said("x", "torch.Tensor, got list", "as_ten")):
        SelfAttention(3, 5)([[1.0, 2.0, 3.0]])


def test_whole_numbers_are_no_input(as_importer):
    with pytest.raises(ValueError, match=said("x", "floats", "got torch.int64")):
        check_input(SelfAttention(3, 5), torch.ones(7, 3, dtype=torch.int64))


@pytest.mark.parametrize(("d_out", "near"), [(10, "8 or 12"), (3, "4"), (5, "4 or 8")])
def test_heads_must_share_the_width_evenly(d_out, near):
    must = said(f"{d_out=} must be a multiple of num_heads=4", near, f"got {d_out}")
    with pytest.raises(ValueError, match=must):
        check_heads(d_out, 4)


def test_the_flag_of_the_dropout_layer_decides():
    module = MultiHeadAttention(3, 4, 5, 0.25, 2)
    assert dropout_now(module) == 0.25
    module.dropout.eval()
    assert dropout_now(module) == 0.0
    module.eval().dropout.train()
    assert dropout_now(module) == 0.25
    module.dropout = nn.Identity()
    assert dropout_now(module.train()) == 0.0


# The first call

MKLS = r"\.(exp|expm1|log|log10|log1p|log2|sin|cos|tan|tanh|sqrt|erf|asin|acos|atan)"
FIRST_CALLS = """
import torch
from torch.utils._python_dispatch import TorchDispatchMode

class First(TorchDispatchMode):
    numbers = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if args and isinstance(args[0], torch.Tensor):
            call = f"{function.overloadpacket.__name__} {args[0].dtype}"
            self.numbers.setdefault(call, args[0].numel())
        return function(*args, **kwargs or {})

with First() as first:
    import attention
print(*(call for call, numbers in first.numbers.items() if numbers == 1), sep=",")
"""


def test_each_function_of_mkl_is_first_called_with_one_number():
    """Several threads at once could be given a version with half of the digits."""
    files = Path(attention.__file__).parent.rglob("*.py")
    source = "".join(file.read_text("utf-8") for file in files)
    used = set(re.findall(rf"{MKLS}_?\(", source))
    code = [sys.executable, "-c", FIRST_CALLS]
    run = subprocess.run(code, capture_output=True, text=True, check=True)
    dtypes = "torch.float32", "torch.float64"
    wanted = {f"{name} {dtype}" for name in used for dtype in dtypes}
    assert used
    assert wanted <= set(run.stdout.strip().split(","))


# Numbers of NumPy


def of_numpy(kind):
    """The same numbers, as NumPy has them."""
    whole, part = getattr(np, kind[0]), getattr(np, kind[1])

    def turned(number):
        if isinstance(number, bool) or not isinstance(number, int | float):
            return number
        return whole(number) if isinstance(number, int) else part(number)

    return turned


MADE = {
    "SelfAttention": (6, 4),
    "CausalAttention": (6, 4, 9),
    "StackedHeads": (6, 4, 9, 0.0, 2),
    "MultiHeadAttention": (6, 4, 9, 0.0, 2),
    "CrossAttention": (6, 4, 2),
    "Attention": (6, 4, 2),
    "AdditiveAttention": (6, 4, 3),
    "QKNorm": (6,),
    "Rotary": (6,),
    "LearnedPositions": (9, 6),
    "RelativeBias": (4,),
    "KVCache": (9,),
    "RollingCache": (9, 2),
    "PagedCache": (4, 3),
    "BlockPool": (4, 3),
    "QuantizedCache": (4,),
    "LinearScaling": (4,),
    "NTKScaling": (4.0,),
    "YaRN": (4, 64, 30.0, 2),
    "Llama3Scaling": (4.0, 64, 2.0, 5),
    "DynamicNTKScaling": (4, 64),
    "ProportionalScaling": (0.5, 2),
    "window": (4,),
    "prefix": (4,),
    "alibi": (6,),
    "window_and_sinks": (4, 2),
    "GPT": (11,),
    "LanguageModel": (11, 8, 16, 2, 4),
}
OPTIONS = {
    "CrossAttention": {"d_context": 8},
    "Attention": {"num_kv_heads": 1, "head_dim": 3},
    "QKNorm": {"eps": 0.5},
    "Rotary": {"base": 64.0, "rotary_dim": 4},
    "RelativeBias": {"num_buckets": 8, "max_distance": 16},
    "KVCache": {"block": 5},
    "RollingCache": {"spare": 3},
    "QuantizedCache": {"group": 4, "residual": 3},
    "GPT": {"d": 8, "num_blocks": 2, "num_heads": 2, "context_length": 9, "window": 3},
    "LanguageModel": {"base": 64.0, "eps": 0.5, "context_length": 9},
}
KINDS = [("int64", "float32"), ("uint8", "float16"), ("int32", "float64")]


def inside(thing, found):
    """The numbers that a thing keeps, and its parts, and what its parts keep."""
    if isinstance(thing, nn.Module):
        return {k: inside(v, found) for k, v in vars(thing).items() if k[0] != "_"} | {
            name: inside(part, found) for name, part in thing.named_children()
        }
    if isinstance(thing, np.generic):
        found.append(thing)
    if isinstance(thing, dict):
        return {key: inside(each, found) for key, each in thing.items()}
    if isinstance(thing, list | tuple):
        return [inside(each, found) for each in thing]
    if isinstance(thing, partial):
        return inside(thing.keywords, found)
    if hasattr(thing, "__dict__") and type(thing).__module__.startswith("attention."):
        return inside(vars(thing), found)
    return repr(thing) if isinstance(thing, int | float) else None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MADE)
@pytest.mark.usefixtures("as_importer")
def test_numbers_of_numpy_are_taken_and_kept_as_those_of_python(name, kind):
    make, turned, found = PUBLIC[name], of_numpy(kind), []
    options = OPTIONS.get(name, {})
    must = make(*MADE[name], **options)
    theirs = {key: turned(number) for key, number in options.items()}
    got = make(*map(turned, MADE[name]), **theirs)
    assert inside(got, found) == inside(must, [])
    assert not found
    if isinstance(must, nn.Module) or dataclasses.is_dataclass(must):
        assert repr(got) == repr(must)


@pytest.mark.parametrize("number", [np.True_, np.float64(8), np.array([8]), True, "8"])
def test_what_is_no_whole_number_of_numpy_either_is_no_size(number, as_importer):
    with pytest.raises(ValueError, match=said("d_in", "whole number", "got", number)):
        SelfAttention(number, 8)


@pytest.mark.parametrize("number", [np.float32("inf"), np.float64("nan"), np.True_])
def test_what_is_no_number_of_numpy_either_is_refused(number, as_importer):
    with pytest.raises(ValueError, match=said("factor", "a number", "got")):
        LinearScaling(number)


@pytest.mark.usefixtures("as_importer")
def test_fractions_are_numbers_too():
    q = torch.randn(2, 3, 5, 4)
    must = attend(q, q, q, scale=0.25)
    assert torch.equal(attend(q, q, q, scale=Fraction(1, 4)), must)
    assert LinearScaling(Fraction(3, 2)) == LinearScaling(1.5)
    with pytest.raises(ValueError, match=said("scale", "a number", "got")):
        attend(q, q, q, scale=Fraction(10**400))


@pytest.mark.parametrize("scale", [np.float32(0.5), np.int64(2), Fraction(1, 2)])
@pytest.mark.parametrize("form", [attend, flash_attend])
@pytest.mark.usefixtures("as_importer")
def test_any_number_scales_the_scores_and_has_its_gradient(form, scale):
    q = torch.randn(2, 3, 5, 4, requires_grad=True)
    must = torch.autograd.grad(form(q, q, q, scale=float(scale)).sum(), q)
    got = torch.autograd.grad(form(q, q, q, scale=scale).sum(), q)
    torch.testing.assert_close(got, must)


@pytest.mark.parametrize("form", [attend, attention_weights, flash_attend])
@pytest.mark.usefixtures("as_importer")
def test_a_window_of_numpy_is_a_window(form):
    three = torch.randn(3, 1, 2, 9, 16)[: 2 if form is attention_weights else 3]
    must = form(*three, causal=True, window=3)
    torch.testing.assert_close(form(*three, causal=True, window=np.int64(3)), must)


@pytest.mark.parametrize("name", ["Attention", "MultiHeadAttention"])
@pytest.mark.usefixtures("as_importer")
def test_a_layer_of_numpys_sizes_is_compiled_in_one_piece(name):
    layer = PUBLIC[name](*map(of_numpy(KINDS[0]), MADE[name]))
    x = torch.randn(2, 5, 6)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), layer(x))


@pytest.mark.parametrize("number", [0, -3, 2**70, np.int8(5), np.uint64(2**63)])
def test_whole_numbers_are_those_of_python_and_numpy(number):
    assert is_whole(number)


@pytest.mark.parametrize("thing", [True, np.True_, 1.0, np.float32(1), "1", None])
def test_truth_values_and_floats_are_no_whole_numbers(thing):
    assert not is_whole(thing)


@pytest.mark.usefixtures("as_importer")
def test_a_count_may_be_none_and_is_given_back_as_pythons():
    counts = check_counts(first=np.int64(0), second=7)
    assert counts == [0, 7]
    assert {*map(type, counts)} == {int}
    for wrong in (-1, True, 2.0):
        with pytest.raises(ValueError, match=said("second", "at least 0", wrong)):
            check_counts(first=0, second=wrong)
