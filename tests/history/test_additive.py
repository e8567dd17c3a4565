"""Additive attention: a small network scores each key against each query."""

import itertools
import math
from functools import partial

import pytest
import torch
from examples import TRACERS, said

from attention import AdditiveAttention, additive_score, attention_weights
from attention.tools.checks import unified

HALF_AND_WHOLE = torch.float16, torch.bfloat16, torch.float32


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


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("batches", [("", "", "c"), ("c", "", ""), ("bc", "c", "")])
def test_the_weights_shown_are_the_weights_used(batches, autocast, training):
    """Also where only the values, and so the mask, have batch axes."""
    module, tensors = some_module().train(training), some_tensors(batch=())
    sizes = {"": (), "c": (3,), "bc": (2, 3)}
    tensors = [
        tensor.expand(*sizes[batch], *tensor.shape)
        for tensor, batch in zip(tensors, batches, strict=True)
    ]
    mask = torch.rand(3, 5, 7) < 0.5
    mask[1, 2] = False
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        shown = module.attention_weights(*tensors[:2], mask)
        assert torch.equal(shown @ tensors[2], module(*tensors, mask))
    assert (shown.masked_select(~mask) == 0).all()


@pytest.mark.parametrize("length", [0, 1, 7])
@pytest.mark.parametrize(
    "kinds", [*itertools.product(HALF_AND_WHOLE, repeat=3)], ids=str
)
def test_under_autocast_dtypes_may_differ_and_the_result_has_one(kinds, length):
    module, (queries, keys, values) = some_module(), some_tensors(batch=())
    tensors = queries, keys[:length], values[:length]
    tensors = [t.to(kind) for t, kind in zip(tensors, kinds, strict=True)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        context = module(*tensors)
        score = additive_score(tensors[0][:, :1], tensors[1][:, :1], torch.ones(1))
    assert context.dtype == score.dtype == torch.bfloat16
    exact = module(queries, keys[:length], values[:length])
    torch.testing.assert_close(context.float(), exact, rtol=0.05, atol=0.05)  # 8 bits


def test_under_autocast_float64_is_refused_in_words():
    """Autocast leaves it as it is, and no product takes two dtypes."""
    module, (queries, keys, values) = some_module(), some_tensors()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for name in ("queries", "keys", "values"):
            given = {"queries": queries, "keys": keys, "values": values}
            given[name] = given[name].double()
            with pytest.raises(ValueError, match=said(name, "bfloat16", "float64")):
                module(**given)


class Scores(torch.nn.Module):
    """`additive_score` with its v, as a module for what takes modules only."""

    def forward(self, queries, keys):
        return additive_score(queries, keys, torch.ones(queries.shape[-1]))


@pytest.mark.parametrize("traced", TRACERS.values(), ids=TRACERS)
def test_traced_it_computes_the_same(as_importer, traced):
    module, tensors, mask = some_module(), some_tensors(), some_mask()
    for inputs in (tensors, [*tensors, mask]):
        expected = module(*inputs)
        torch.testing.assert_close(traced(module, *inputs)(*inputs), expected)
    inputs = torch.randn(2, 5, 3), torch.randn(2, 7, 3)
    torch.testing.assert_close(traced(Scores(), *inputs)(*inputs), Scores()(*inputs))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = module(*tensors, mask)
        result = traced(module, *tensors, mask)(*tensors, mask)
    torch.testing.assert_close(result, expected)


def test_vmap_takes_one_sequence_after_the_other(as_importer):
    module, tensors, mask = some_module(), some_tensors(batch=(3,)), some_mask()
    inputs = [*tensors, mask.expand(3, 5, 7)]
    torch.testing.assert_close(torch.vmap(module)(*inputs), module(*inputs))
    v = torch.randn(11)
    score = partial(additive_score, v=v)
    inputs = torch.randn(3, 5, 11), torch.randn(3, 7, 11)
    torch.testing.assert_close(torch.vmap(score)(*inputs), score(*inputs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("num_keys", [1, 2, 7, 31, 32, 33, 64, 65, 99, 130])
def test_a_blind_query_beside_a_real_one_does_not_touch_it(dtype, num_keys):
    """A product may read past the end of a row, so no row may hold a nan."""
    module = some_module(dtype)
    tensors = [torch.randn(3, num_keys, width).to(dtype) for width in (2, 3, 13)]
    tensors = [tensor.requires_grad_() for tensor in tensors]
    real = torch.arange(num_keys) < torch.tensor([[num_keys], [num_keys // 2], [0]])
    mask = real[:, None] & real[:, :, None]
    context = module(*tensors, mask)
    context.sum().backward()
    assert context.isfinite().all()
    assert (context[~real] == 0).all()
    for tensor in (*tensors, *module.parameters()):
        assert tensor.grad.isfinite().all()
    with torch.no_grad():
        half = num_keys // 2
        alone = module(*(t[1, :half] for t in tensors))
    torch.testing.assert_close(context[1, :half], alone, rtol=0.02, atol=0.02)


@pytest.mark.filterwarnings("ignore")  # that quantization moves to another package
def test_dynamic_quantization_computes_nearly_the_same():
    module, tensors = torch.nn.ModuleList([some_module()]), some_tensors()
    small = torch.ao.quantization.quantize_dynamic(module, {torch.nn.Linear})
    exact = module[0](*tensors)
    torch.testing.assert_close(small[0](*tensors), exact, rtol=0, atol=0.05)


class Wrapped(torch.nn.Module):
    """A layer around a layer, whose `weight` is none or a method."""

    def __init__(self, layer, weight):
        super().__init__()
        self.layer, self.weight = layer, weight

    def forward(self, x):
        return self.layer(x)


@pytest.mark.parametrize("weight", [None, lambda: None], ids=["none", "method"])
def test_a_layer_may_be_wrapped(weight):
    module, tensors = some_module(), some_tensors()
    expected = module(*tensors)
    module.W_query = Wrapped(module.W_query, weight)
    module.W_key = Wrapped(module.W_key, weight)
    assert torch.equal(module(*tensors), expected)


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
    "queries too wide": ({"queries": torch.randn(5, 3)}, ("queries", 2, (5, 3))),
    "keys too narrow": ({"keys": torch.randn(7, 2)}, ("keys", 3, (7, 2))),
    "no length": ({"values": torch.randn(7)}, ("values", "d_value", (7,))),
    "lengths": ({"values": torch.randn(5, 13)}, ("keys and values", 7, 5)),
    "dtype": (
        {"keys": torch.randn(7, 3, dtype=torch.float64)},
        ("keys", "float32 on cpu", "float64"),
    ),
    "whole numbers": (
        {"values": torch.ones(7, 13, dtype=torch.int64)},
        ("values", "floats", "int64"),
    ),
    "device": (
        {"queries": torch.randn(5, 2, device="meta")},
        ("queries", "on cpu", "on meta"),
    ),
    "batches": (
        {"queries": torch.randn(3, 5, 2), "keys": torch.randn(2, 7, 3)},
        ("batch axes", (3,), (2,), ()),
    ),
    "mask of numbers": ({"mask": torch.ones(5, 7)}, ("mask", "booleans", "float32")),
    "mask elsewhere": (
        {"mask": torch.ones(5, 7, dtype=torch.bool, device="meta")},
        ("mask", "on cpu", "on meta"),
    ),
    "mask of another size": (
        {"mask": torch.ones(7, 5, dtype=torch.bool)},
        ("mask", (5, 7), (7, 5)),
    ),
    "mask with further axes": (
        {"mask": torch.ones(2, 5, 7, dtype=torch.bool)},
        ("mask", (5, 7), (2, 5, 7)),
    ),
}


@pytest.mark.parametrize(("given", "fields"), MISFITS.values(), ids=MISFITS.keys())
def test_a_misfit_is_refused_with_both_sides_named(as_importer, given, fields):
    names = ("queries", "keys", "values")
    fitting = dict(zip(names, some_tensors(batch=()), strict=True))
    with pytest.raises(ValueError, match=said(*fields)):
        some_module()(**fitting | given)


@pytest.mark.parametrize("name", ["queries", "keys", "values", "mask"])
@pytest.mark.parametrize("thing", [[[True]], None], ids=["list", "nothing"])
def test_what_is_no_tensor_is_named(as_importer, name, thing):
    if (name, thing) == ("mask", None):
        return  # no mask hides nothing
    names = ("queries", "keys", "values")
    fitting = dict(zip(names, some_tensors(batch=()), strict=True))
    got = type(thing).__name__
    with pytest.raises(TypeError, match=said(name, "torch.Tensor", "got", got)):
        some_module()(**fitting | {name: thing})
    if name != "values":
        del fitting["values"]
        with pytest.raises(TypeError, match=said(name, "torch.Tensor", "got", got)):
            some_module().attention_weights(**fitting | {name: thing})


def test_the_weights_refuse_a_mask_of_another_size(as_importer):
    queries, keys, _ = some_tensors(batch=(3,))
    for shape in ((7, 5), (2, 5, 7)):
        mask = torch.ones(shape, dtype=torch.bool)
        with pytest.raises(ValueError, match=said("mask", (3, 5, 7), "got", shape)):
            some_module().attention_weights(queries, keys, mask)


def test_the_score_refuses_what_would_broadcast_by_accident(as_importer):
    with pytest.raises(ValueError, match=said("queries", 11, "got", (5, 1))):
        additive_score(torch.randn(5, 1), torch.randn(7, 11), torch.randn(11))


@pytest.mark.parametrize(
    ("shapes", "fields"),
    [
        (((5,), (7, 11), (11,)), ("queries", "length", (5,))),
        (((5, 11), (7,), (11,)), ("keys", "length", (7,))),
        (((5, 11), (7, 11), (11, 1)), ("v", "d_hidden", (11, 1))),
        (((5, 11), (7, 1), (11,)), ("keys", 11, (7, 1))),
        (((2, 5, 11), (3, 7, 11), (11,)), ("batch axes", (2,), (3,))),
    ],
    ids=str,
)
def test_the_score_refuses_a_misfit(as_importer, shapes, fields):
    with pytest.raises(ValueError, match=said(*fields)):
        additive_score(*map(torch.randn, shapes))


def test_the_score_refuses_two_dtypes_and_two_devices(as_importer):
    queries, keys, v = torch.randn(5, 11), torch.randn(7, 11), torch.randn(11)
    with pytest.raises(ValueError, match=said("keys", "float32", "got", "float64")):
        additive_score(queries, keys.double(), v)
    with pytest.raises(ValueError, match=said("keys", "cpu", "got", "meta")):
        additive_score(queries, keys.to("meta"), v)
    with pytest.raises(ValueError, match=said("v", "cpu", "got", "meta")):
        additive_score(queries, keys, v.to("meta"))
    with pytest.raises(TypeError, match=said("v", "torch.Tensor", "got list")):
        additive_score(queries, keys, v.tolist())


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
    with pytest.raises(ValueError, match=said("floats", "got", "int64")):
        additive_score(*tensors)


def test_one_of_each_size_will_do():
    module = AdditiveAttention(1, 1, 1)
    values = torch.randn(1, 1)
    assert torch.equal(module(torch.randn(1, 1), torch.randn(1, 1), values), values)


@pytest.mark.parametrize("sizes", [(0, 3, 11), (2, -1, 11), (2, 3, 2.5), (2, True, 1)])
def test_sizes_are_whole_and_positive(as_importer, sizes):
    with pytest.raises(ValueError, match=said("d_", "a whole number", "got")):
        AdditiveAttention(*sizes)
