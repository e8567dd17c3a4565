"""Merging two parts of attention: what every split of the keys rests on."""

from itertools import permutations

import pytest
import torch
from examples import said
from hypothesis import given, settings
from hypothesis import strategies as st

from attention import attend, merge_states, softmax

INF = torch.inf


def some_part(lead=(2, 3), i=5, e=7, dtype=torch.float32):
    return torch.randn(*lead, i, e, dtype=dtype), 3 * torch.randn(*lead, i, dtype=dtype)


def no_part(lead=(2, 3), i=5, e=7):
    return torch.zeros(*lead, i, e), torch.full((*lead, i), -INF)


def attention_to(scores, values):
    return softmax(scores) @ values, scores.logsumexp(dim=-1)


def close(one, other, **tolerance):
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


@pytest.mark.parametrize("cut", [1, 2, 7, 12])
def test_two_parts_merged_are_attention_to_all_keys(cut):
    queries, keys = torch.randn(2, 3, 5, 11), torch.randn(2, 3, 13, 11)
    values = torch.randn(2, 3, 13, 7)
    scores = queries @ keys.mT / 11**0.5
    part_a = attention_to(scores[..., :cut], values[..., :cut, :])
    part_b = attention_to(scores[..., cut:], values[..., cut:, :])
    context, logsumexp = merge_states(*part_a, *part_b)
    torch.testing.assert_close(context, attend(queries, keys, values))
    torch.testing.assert_close(logsumexp, scores.logsumexp(dim=-1))


@given(
    cells=st.lists(
        st.floats(-80, 80, width=32) | st.just(-INF), min_size=2, max_size=11
    ),
    cut=st.integers(1, 10),
)
@settings(max_examples=50, deadline=None)
def test_any_scores_cut_anywhere_give_the_whole(cells, cut):
    scores = torch.tensor(cells, dtype=torch.float64)[None]
    values = torch.arange(2.0 * len(cells), dtype=torch.float64).reshape(-1, 2)
    cut = min(cut, len(cells) - 1)
    parts = (
        attention_to(scores[:, :cut], values[:cut]),
        attention_to(scores[:, cut:], values[cut:]),
    )
    close(merge_states(*parts[0], *parts[1]), attention_to(scores, values))


def test_the_order_of_two_parts_does_not_matter():
    a, b = some_part(), some_part()
    close(merge_states(*a, *b), merge_states(*b, *a), rtol=0, atol=0)


def test_the_grouping_of_parts_does_not_matter():
    parts = [some_part(dtype=torch.float64) for _ in range(3)]
    first = merge_states(*merge_states(*parts[0], *parts[1]), *parts[2])
    for a, b, c in permutations(parts):
        close(merge_states(*a, *merge_states(*b, *c)), first)


def test_a_part_with_no_key_counts_for_nothing():
    part = some_part()
    close(merge_states(*part, *no_part()), part, rtol=0, atol=0)
    close(merge_states(*no_part(), *part), part, rtol=0, atol=0)


@pytest.mark.parametrize("filler", [torch.nan, INF, 1e30])
def test_what_stands_in_the_context_of_no_key_does_not_matter(filler):
    part, (context, logsumexp) = some_part(), no_part()
    close(merge_states(*part, context + filler, logsumexp), part, rtol=0, atol=0)
    close(merge_states(context + filler, logsumexp, *part), part, rtol=0, atol=0)


def test_two_parts_with_no_key_give_zeros_and_minus_infinity():
    context, logsumexp = merge_states(*no_part(), *no_part())
    assert (context == 0).all()
    assert logsumexp.isneginf().all()


def test_a_key_seen_by_one_query_is_not_seen_by_another():
    a, b = some_part(), some_part()
    a[1][..., 0], b[1][..., 0] = -INF, -INF
    a[1][..., 1] = -INF
    context, logsumexp = merge_states(*a, *b)
    assert (context[..., 0, :] == 0).all()
    assert logsumexp[..., 0].isneginf().all()
    torch.testing.assert_close(context[..., 1, :], b[0][..., 1, :])
    assert logsumexp[..., 1:].isfinite().all()


@pytest.mark.parametrize("empty", ["neither", "one", "both"])
def test_gradients_are_finite_and_those_of_no_key_are_zero(empty):
    a = no_part() if empty != "neither" else some_part()
    b = no_part() if empty == "both" else some_part()
    inputs = [tensor.requires_grad_() for tensor in (*a, *b)]
    context, logsumexp = merge_states(*inputs)
    (1e9 * context.sum() + logsumexp[logsumexp.isfinite()].sum()).backward()
    assert all(tensor.grad.isfinite().all() for tensor in inputs)
    for (context, logsumexp), no_key in ((a, empty != "neither"), (b, empty == "both")):
        assert (logsumexp.grad == 0).all() == no_key
        assert (context.grad == 0).all() == no_key


def test_the_gradient_of_minus_infinity_itself_is_zero():
    inputs = [tensor.requires_grad_() for tensor in (*no_part(), *no_part())]
    merge_states(*inputs)[1].sum().backward()
    assert (inputs[1].grad == 0).all()
    assert (inputs[3].grad == 0).all()


def test_the_gradient_is_right():
    parts = [*some_part((2,), 3, 5), *some_part((2,), 3, 5)]
    parts = [tensor.double().requires_grad_() for tensor in parts]
    assert torch.autograd.gradcheck(merge_states, parts)
    assert torch.autograd.gradgradcheck(merge_states, parts)


@pytest.mark.parametrize("shift", [-1e4, 1e4])
def test_logsumexps_of_any_size_stay_finite(shift):
    (context_a, a), (context_b, b) = (some_part(dtype=torch.float64) for _ in "ab")
    context, logsumexp = merge_states(context_a, a + shift, context_b, b + shift)
    close((context, logsumexp - shift), merge_states(context_a, a, context_b, b))


def test_the_lowest_finite_logsumexp_is_not_taken_for_no_key():
    low = torch.full((5,), torch.finfo(torch.float32).min)
    context, logsumexp = merge_states(torch.ones(5, 7), low, 3 * torch.ones(5, 7), low)
    assert (context == 2).all()
    assert logsumexp.isfinite().all()


@pytest.mark.parametrize("wrong", [torch.nan, INF])
def test_what_is_no_logsumexp_is_not_hidden(wrong):
    a, b = some_part((), 5, 7), some_part((), 5, 7)
    a[1][2] = wrong
    context, logsumexp = merge_states(*a, *b)
    assert context[2].isnan().all()
    assert logsumexp[2].isnan()
    assert context[3].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_short_contexts_with_long_logsumexps_are_merged_in_the_long_form(dtype):
    (context_a, a), (context_b, b) = some_part(), some_part()
    short_a, short_b = context_a.to(dtype), context_b.to(dtype)
    context, logsumexp = merge_states(short_a, a, short_b, b)
    expected, _ = merge_states(short_a.float(), a, short_b.float(), b)
    assert context.dtype == dtype
    assert logsumexp.dtype == torch.float32
    assert torch.equal(context, expected.to(dtype))


def test_no_query_and_no_value_are_parts_too():
    context, logsumexp = merge_states(*some_part((2,), 0, 7), *some_part((2,), 0, 7))
    assert context.shape == (2, 0, 7)
    assert logsumexp.shape == (2, 0)
    assert merge_states(*some_part((2,), 5, 0), *some_part((2,), 5, 0))[0].shape == (
        2,
        5,
        0,
    )


def test_merging_leaves_the_parts_alone():
    parts = [*some_part(), *no_part()]
    before = [tensor.clone() for tensor in parts]
    merge_states(*parts)
    assert all(map(torch.equal, parts, before))


def test_parts_are_merged_where_they_are():
    parts = [tensor.to("meta") for tensor in (*some_part(), *some_part())]
    assert {tensor.device.type for tensor in merge_states(*parts)} == {"meta"}


def zeros(*shape, **kind):
    return torch.zeros(shape, **kind)


BAD = {
    "other queries": (
        (zeros(5, 7), zeros(5), zeros(3, 7), zeros(3)),
        said("context_b", "(5, 7)", "like context_a", "got", "(3, 7)"),
    ),
    "other dtype": (
        (zeros(5, 7), zeros(5), zeros(5, 7, dtype=torch.float64), zeros(5)),
        said("context_b", "float32", "got", "float64"),
    ),
    "other dtype of logsumexps": (
        (zeros(5, 7), zeros(5), zeros(5, 7), zeros(5, dtype=torch.float64)),
        said("logsumexp_b", "float32", "got", "float64"),
    ),
    "a logsumexp that would broadcast": (
        (zeros(5, 7), zeros(5), zeros(5, 7), zeros(1)),
        said("logsumexp_b", "(5,)", "got", "(1,)"),
    ),
    "logsumexps of values": (
        (zeros(5, 7), zeros(7), zeros(5, 7), zeros(7)),
        said("logsumexp_a", "(5,)", "got", "(7,)"),
    ),
    "no axis of queries": (
        (zeros(5), zeros(), zeros(5), zeros()),
        said("context_a", "got", "(5,)"),
    ),
    "whole numbers": (
        (zeros(5, 7, dtype=torch.int64), zeros(5)) * 2,
        said("context_a", "floats", "got", "int64"),
    ),
    "whole logsumexps": (
        (zeros(5, 7), zeros(5, dtype=torch.int64)) * 2,
        said("logsumexp_a", "floats", "got", "int64"),
    ),
    "elsewhere": (
        (zeros(5, 7), zeros(5, device="meta")) * 2,
        said("logsumexp_a", "cpu", "got", "meta"),
    ),
}


@pytest.mark.parametrize(("parts", "message"), BAD.values(), ids=BAD.keys())
def test_parts_that_do_not_fit_are_refused(as_importer, parts, message):
    with pytest.raises(ValueError, match=message):
        merge_states(*parts)


@pytest.mark.parametrize(
    "name", ["context_a", "logsumexp_a", "context_b", "logsumexp_b"]
)
def test_what_is_no_tensor_is_refused(as_importer, name):
    context, logsumexp = some_part()
    parts = {"context_a": context, "logsumexp_a": logsumexp}
    parts |= {"context_b": context, "logsumexp_b": logsumexp}
    with pytest.raises(TypeError, match=said(name, "torch.Tensor", "list")):
        merge_states(**parts | {name: parts[name].tolist()})


def test_a_stack_of_parts_is_merged_by_vmap():
    parts = [torch.stack([a, b]) for a, b in zip(some_part(), some_part(), strict=True)]
    other = [torch.stack([a, b]) for a, b in zip(some_part(), no_part(), strict=True)]
    mapped = torch.vmap(merge_states)(*parts, *other)
    close(mapped, merge_states(*parts, *other))


@pytest.mark.parametrize("empty_first", [False, True])
def test_an_empty_part_takes_nothing_from_the_slopes_of_the_other(empty_first):
    """The sum of both is exactly 1 then, where a clamp at 1 has no slope."""
    context, logsumexp = torch.randn(5, 7), torch.randn(5)
    part = [t.double().requires_grad_() for t in (context, logsumexp)]
    nothing = torch.zeros(5, 7).double(), torch.full((5,), -torch.inf).double()
    parts = (*nothing, *part) if empty_first else (*part, *nothing)
    merged = merge_states(*parts)
    ones = [torch.ones_like(t) for t in merged]
    slopes = torch.autograd.grad(merged, part, ones)
    torch.testing.assert_close(slopes, tuple(torch.ones_like(t) for t in part))
