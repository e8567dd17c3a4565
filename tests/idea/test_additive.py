"""Additive attention: a small network scores each key against each query."""

import math
from functools import partial

import pytest
import torch
from examples import TRACERS

from attention import AdditiveAttention, additive_score, attention_weights
from attention.idea.additive import unified


def some_module(dtype=torch.float32):
    return AdditiveAttention(d_query=2, d_key=3, d_hidden=11).to(dtype)


def some_tensors(dtype=torch.float32, batch=(3, 2)):
    """Queries, keys and values: five, seven, seven, of widths 2, 3 and 13."""
    shapes = (5, 2), (7, 3), (7, 13)
    return [torch.randn(*batch, *shape, dtype=dtype) for shape in shapes]


def some_mask():
    """A random mask in which every query but the second sees at least its first key."""
    mask = torch.rand(5, 7) < 0.5
    mask[:, 0] = True
    mask[1] = False
    return mask


def by_loops(module, queries, keys, values):
    """Sections 3.1 and A.1.2 with nothing but numbers, for one sequence."""

    def dot(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True))

    def applied(matrix, vector):
        return [dot(row, vector) for row in matrix.tolist()]

    contexts = []
    for s in queries.tolist():
        Ws, powers = applied(module.W_query.weight, s), []
        for h in keys.tolist():
            Uh = applied(module.W_key.weight, h)
            hidden = [math.tanh(a + b) for a, b in zip(Ws, Uh, strict=True)]
            powers.append(math.exp(dot(module.v.tolist(), hidden)))
        shares = [power / sum(powers) for power in powers]
        contexts.append([dot(shares, column) for column in values.mT.tolist()])
    return torch.tensor(contexts, dtype=queries.dtype)


def test_the_module_equals_plain_loops():
    module, tensors = some_module(torch.float64), some_tensors(torch.float64, batch=())
    torch.testing.assert_close(module(*tensors), by_loops(module, *tensors))


def test_the_context_has_a_row_for_each_query_and_the_width_of_the_values():
    assert some_module()(*some_tensors()).shape == (3, 2, 5, 13)


def test_rows_of_weights_sum_to_one():
    queries, keys, _ = some_tensors()
    weights = some_module().attention_weights(queries, keys)
    assert (weights > 0).all()
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(3, 2, 5))


def test_the_weights_are_those_that_mix_the_values():
    module, (queries, keys, values) = some_module(), some_tensors()
    for mask in (None, some_mask()):
        weights = module.attention_weights(queries, keys, mask)
        torch.testing.assert_close(
            module(queries, keys, values, mask), weights @ values
        )


def test_equal_keys_share_the_weight_equally():
    queries, keys, _ = some_tensors()
    weights = some_module().attention_weights(queries, keys[..., :1, :].expand_as(keys))
    torch.testing.assert_close(weights, torch.full((3, 2, 5, 7), 1 / 7))


def test_no_score_is_larger_than_the_numbers_of_v_together():
    queries, keys, v = (
        100 * torch.randn(5, 11),
        100 * torch.randn(7, 11),
        torch.randn(11),
    )
    assert additive_score(queries, keys, v).abs().max() <= v.abs().sum() * (1 + 1e-6)


def test_a_forbidden_key_counts_as_little_as_a_missing_one():
    module, (queries, keys, values) = some_module(), some_tensors()
    mask = torch.tensor([True] * 5 + [False] * 2)
    short = module(queries, keys[..., :5, :], values[..., :5, :])
    torch.testing.assert_close(module(queries, keys, values, mask), short)
    weights = module.attention_weights(queries, keys, mask)
    assert (weights[..., 5:] == 0).all()


def test_a_query_that_sees_nothing_gets_zeros_and_finite_gradients():
    module, tensors = some_module(), [t.requires_grad_() for t in some_tensors()]
    context = module(*tensors, some_mask())
    assert (context[..., 1, :] == 0).all()
    context.sum().backward()
    assert (tensors[0].grad[..., 1, :] == 0).all()
    for tensor in (*tensors, *module.parameters()):
        assert tensor.grad.isfinite().all()
    assert module.v.grad.abs().max() > 0


def test_where_no_query_sees_anything_all_gradients_are_zero():
    module, tensors = some_module(), [t.requires_grad_() for t in some_tensors()]
    module(*tensors, torch.zeros(5, 7, dtype=torch.bool)).sum().backward()
    for tensor in (*tensors, *module.parameters()):
        assert (tensor.grad == 0).all()


def test_without_keys_the_context_is_zero():
    queries, keys, values = some_tensors()
    keys, values = keys[..., :0, :], values[..., :0, :]
    nothing = torch.ones(5, 0, dtype=torch.bool)
    for mask in (None, nothing):
        context = some_module()(queries, keys, values, mask)
        assert torch.equal(context, torch.zeros(3, 2, 5, 13))


def test_each_sequence_of_a_batch_is_on_its_own():
    module, (queries, keys, values) = some_module(), some_tensors()
    alone = module(queries[2, 1], keys[2, 1], values[2, 1])
    torch.testing.assert_close(module(queries, keys, values)[2, 1], alone)


def test_batch_axes_broadcast():
    module, (queries, keys, values) = some_module(), some_tensors()
    shared = module(queries, keys[0, 0], values[0, 0])
    expanded = module(queries, keys[:1, :1].expand_as(keys), values[:1, :1])
    torch.testing.assert_close(shared, expanded)


@pytest.mark.parametrize("mask", [None, some_mask()])
def test_the_gradient_is_right(mask):
    module = some_module(torch.float64)
    tensors = [t.requires_grad_() for t in some_tensors(torch.float64, batch=())]
    assert torch.autograd.gradcheck(lambda q, k, x: module(q, k, x, mask), tensors)
    tensors = [torch.randn(n, 3, dtype=torch.float64) for n in (5, 7)]
    tensors = [t.requires_grad_() for t in (*tensors, torch.randn(3).double())]
    assert torch.autograd.gradcheck(additive_score, tensors)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mask", [None, some_mask()])
def test_half_precision_stays_finite_and_close(dtype, mask):
    module, tensors = some_module(), some_tensors()
    exact = module(*tensors, mask)
    half = module.to(dtype)(*(t.to(dtype) for t in tensors), mask)
    assert half.dtype == dtype
    close = 20 * torch.finfo(dtype).eps  # a few roundings, of numbers about 1
    torch.testing.assert_close(half.float(), exact, rtol=close, atol=close)
    large = module(*(1000 * t.to(dtype) for t in tensors), mask)
    assert large.isfinite().all()


def test_autocast_is_no_misfit():
    module, tensors = some_module(), some_tensors()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert module(*tensors).isfinite().all()
        assert module(*(t.bfloat16() for t in tensors)).isfinite().all()


def test_without_autocast_tensors_are_not_touched():
    tensors = torch.randn(3), torch.randn(3).half(), torch.arange(3)
    for given, left in zip(tensors, unified(*tensors), strict=True):
        assert left is given


def test_under_autocast_floats_are_cast_as_its_products_cast_them():
    floats = torch.float16, torch.bfloat16, torch.float32
    kept = torch.float64, torch.int64, torch.bool
    with torch.autocast("cpu", dtype=torch.bfloat16):
        product = torch.randn(3, 3) @ torch.randn(3, 3).half()
        cast = unified(*(torch.zeros(3, dtype=dtype) for dtype in floats + kept))
    assert [t.dtype for t in cast] == [product.dtype] * len(floats) + [*kept]


def test_autocast_is_not_asked_for_where_there_is_none():
    given = torch.randn(3, device="meta")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert unified(given)[0] is given


class Mixed(torch.nn.Module):
    """A sum of what autocast would have cast."""

    def forward(self, x, y):
        x, y = unified(x, y)
        return x + y


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("compiled", TRACERS.values(), ids=TRACERS)
def test_unified_is_traced_whole(as_importer, compiled, enabled):
    x, y = torch.randn(5), torch.randn(5)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
        expected = Mixed()(x, y)
        assert torch.equal(compiled(Mixed(), x, y)(x, y), expected)
    assert expected.dtype == (torch.bfloat16 if enabled else torch.float32)


def test_the_score_takes_the_place_of_a_dot_product():
    module, (queries, keys, _) = some_module(), some_tensors()
    projected = module.W_query(queries), module.W_key(keys)
    for mask in (None, some_mask()):
        weights = attention_weights(
            *projected, mask, score=partial(additive_score, v=module.v)
        )
        expected = module.attention_weights(queries, keys, mask)
        torch.testing.assert_close(weights, expected)


def test_the_layers_have_the_names_of_the_book():
    parameters = some_module().named_parameters()
    assert {name: tuple(p.shape) for name, p in parameters} == {
        "W_query.weight": (11, 2),
        "W_key.weight": (11, 3),
        "v": (11,),
    }


def test_the_same_seed_gives_the_same_module():
    torch.manual_seed(5)
    first = some_module()
    torch.manual_seed(5)
    assert all(map(torch.equal, first.parameters(), some_module().parameters()))


MISFITS = {
    "queries too wide": (
        {"queries": torch.randn(5, 3)},
        r"queries must be \(..., length, 2\), came \(5, 3\)",
    ),
    "keys too narrow": (
        {"keys": torch.randn(7, 2)},
        r"keys must be \(..., length, 3\), came \(7, 2\)",
    ),
    "no length": (
        {"values": torch.randn(7)},
        r"values must be \(..., length, d_value\), came \(7,\)",
    ),
    "lengths": (
        {"values": torch.randn(5, 13)},
        "keys and values must have one length, came=7 and 5",
    ),
    "dtype": (
        {"keys": torch.randn(7, 3, dtype=torch.float64)},
        "torch.float32 on cpu like the weights, came=torch.float64 on cpu",
    ),
    "whole numbers": (
        {"values": torch.ones(7, 13, dtype=torch.int64)},
        "values must be torch.float32 on cpu .* came=torch.int64",
    ),
    "device": (
        {"queries": torch.randn(5, 2, device="meta")},
        "queries must be torch.float32 on cpu .* on meta",
    ),
    "batches": (
        {"queries": torch.randn(3, 5, 2), "keys": torch.randn(2, 7, 3)},
        r"batch axes must broadcast, came=\(3,\), \(2,\), \(\)",
    ),
    "mask of numbers": (
        {"mask": torch.ones(5, 7)},
        r"mask must be boolean \(True may see\) on cpu, came torch.float32 on cpu",
    ),
    "mask of another size": (
        {"mask": torch.ones(7, 5, dtype=torch.bool)},
        r"mask must broadcast to \(5, 7\), came=\(7, 5\)",
    ),
    "mask with further axes": (
        {"mask": torch.ones(2, 5, 7, dtype=torch.bool)},
        r"mask must broadcast to \(5, 7\), came=\(2, 5, 7\)",
    ),
}


@pytest.mark.parametrize(("given", "message"), MISFITS.values(), ids=MISFITS.keys())
def test_a_misfit_is_refused_with_both_sides_named(as_importer, given, message):
    names = ("queries", "keys", "values")
    fitting = dict(zip(names, some_tensors(batch=()), strict=True))
    with pytest.raises(ValueError, match=message):
        some_module()(**fitting | given)


def test_the_score_refuses_what_would_broadcast_by_accident(as_importer):
    with pytest.raises(
        ValueError, match=r"11 numbers of v each, came \[\(5, 1\), \(7, 11\)\]"
    ):
        additive_score(torch.randn(5, 1), torch.randn(7, 11), torch.randn(11))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((5,), (7, 11), (11,)), "queries, keys and v must be"),
        (((5, 11), (7,), (11,)), "queries, keys and v must be"),
        (((5, 11), (7, 11), (11, 1)), "queries, keys and v must be"),
        (((5, 11), (7, 1), (11,)), "11 numbers of v each"),
        (((2, 5, 11), (3, 7, 11), (11,)), "batch axes must broadcast, came"),
    ],
    ids=str,
)
def test_the_score_refuses_a_misfit(as_importer, shapes, message):
    with pytest.raises(ValueError, match=message):
        additive_score(*map(torch.randn, shapes))


@pytest.mark.parametrize("batch", [(), (2,), (2, 3)], ids=str)
def test_the_score_takes_any_batch_axes(batch):
    queries, keys = torch.randn(*batch, 5, 11), torch.randn(*batch, 7, 11)
    assert additive_score(queries, keys, torch.randn(11)).shape == (*batch, 5, 7)
    alone = additive_score(queries, keys[(0,) * len(batch)], torch.randn(11))
    assert alone.shape == (*batch, 5, 7)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_score_refuses_whole_numbers(as_importer, place):
    tensors = [torch.randn(5, 11), torch.randn(7, 11), torch.randn(11)]
    tensors[place] = tensors[place].long()
    with pytest.raises(ValueError, match=r"must be floats, came .*torch\.int64"):
        additive_score(*tensors)


def test_one_of_each_size_will_do():
    module = AdditiveAttention(1, 1, 1)
    values = torch.randn(1, 1)
    assert torch.equal(module(torch.randn(1, 1), torch.randn(1, 1), values), values)


@pytest.mark.parametrize("sizes", [(0, 3, 11), (2, -1, 11), (2, 3, 2.5), (2, True, 1)])
def test_sizes_are_whole_and_positive(as_importer, sizes):
    with pytest.raises(ValueError, match=r"d_\w+=\S+ must be a whole number"):
        AdditiveAttention(*sizes)
