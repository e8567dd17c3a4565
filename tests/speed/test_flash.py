"""Flash attention: the same numbers and gradients as by hand, in little memory."""

import math

import pytest
import torch
from examples import MISFITS, assert_twins, change, some_mask, some_tensors

from attention import (
    CrossAttention,
    MultiHeadAttention,
    SelfAttention,
    attend,
    attention_weights,
    flash_attend,
    future_leak,
)
from attention.speed.cost import Ledger
from attention.speed.flash import attend_tile, tiles

OPTIONS = {
    "plain": {},
    "mask": {"mask": some_mask(2, 3, 5, 7, blind=2)},
    "mask for all heads": {"mask": some_mask(2, 1, 5, 7, blind=2)},
    "mask for all batches": {"mask": some_mask(3, 5, 7, blind=2)},
    "mask for all queries": {"mask": some_mask(7)},
    "causal": {"causal": True},
    "causal and mask": {"causal": True, "mask": some_mask(5, 7, blind=2)},
    "bias": {"bias": torch.randn(2, 3, 5, 7)},
    "bias for all batches": {"bias": torch.randn(3, 5, 7)},
    "bias for all queries": {"bias": torch.randn(7)},
    "bias and causal": {"bias": torch.randn(3, 5, 7), "causal": True},
    "bias, mask, causal": {
        "bias": torch.randn(5, 7),
        "mask": some_mask(3, 5, 7, blind=2),
        "causal": True,
    },
    "scale": {"scale": 0.3},
}
TILES = [(1, 1), (2, 3), (3, 2), (5, 7), (128, 8192)]


def by_hand(queries, keys, values, mask=None, **options):
    return attention_weights(queries, keys, mask, **options) @ values


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_in_tiles_equals_by_hand(options, tile):
    tensors = some_tensors()
    context = flash_attend(*tensors, **options, tile=tile)
    torch.testing.assert_close(context, by_hand(*tensors, **options))


@pytest.mark.parametrize("tile", [(2, 3), (128, 8192)], ids=str)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_in_tiles_has_the_gradients_of_by_hand(options, tile):
    tensors = [t.requires_grad_() for t in some_tensors()]
    options = dict(options)
    if "bias" in options:
        options["bias"] = options["bias"].clone().requires_grad_()
        tensors.append(options["bias"])
    context = flash_attend(*tensors[:3], **options, tile=tile)
    expected = by_hand(*tensors[:3], **options)
    arrived = torch.randn_like(context)
    gradients = [torch.autograd.grad(y, tensors, arrived) for y in (context, expected)]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("causal", [False, True])
def test_the_gradient_is_right(causal):
    tensors = [t.requires_grad_() for t in some_tensors(torch.float64, batch=())]
    bias = torch.randn(5, 7, dtype=torch.float64, requires_grad=True)
    mask = some_mask(5, 7, blind=2)

    def attention(queries, keys, values, bias):
        options = {"causal": causal, "bias": bias, "tile": (2, 3)}
        return flash_attend(queries, keys, values, mask, **options)

    assert torch.autograd.gradcheck(attention, [*tensors, bias])


@pytest.mark.parametrize("batch", [(), (3,), (2, 3), (2, 1, 3)], ids=str)
def test_any_number_of_leading_axes_will_do(batch):
    tensors = some_tensors(batch=batch)
    context = flash_attend(*tensors, causal=True, tile=(2, 3))
    torch.testing.assert_close(context, attend(*tensors, causal=True))


def test_leading_axes_broadcast_and_their_gradients_add_up():
    queries, keys, values = some_tensors()
    tensors = [queries, keys[:, :1].clone(), values[0].clone()]
    tensors = [t.requires_grad_() for t in tensors]
    context, expected = flash_attend(*tensors, tile=(2, 3)), by_hand(*tensors)
    torch.testing.assert_close(context, expected)
    arrived = torch.randn_like(context)
    gradients = [torch.autograd.grad(y, tensors, arrived) for y in (context, expected)]
    torch.testing.assert_close(*gradients)


GROUPED = {
    "plain": {},
    "causal": {"causal": True},
    "mask for all heads": {"mask": some_mask(2, 1, 5, 7, blind=2)},
    "mask by head": {"mask": some_mask(6, 5, 7, blind=2)},
    "bias by head": {"bias": torch.randn(6, 5, 7)},
    "bias for all": {"bias": torch.randn(1, 5, 7), "mask": some_mask(5, 7, blind=2)},
}


@pytest.mark.parametrize("options", GROUPED.values(), ids=GROUPED.keys())
def test_fewer_key_heads_serve_neighbouring_query_heads(options):
    _, keys, values = some_tensors()
    queries = torch.randn(2, 6, 5, 11)
    tensors = [t.requires_grad_() for t in (queries, keys, values)]
    context = flash_attend(*tensors, **options, tile=(2, 3))
    repeated = (t.repeat_interleave(2, dim=1) for t in tensors[1:])
    expected = by_hand(queries, *repeated, **options)
    torch.testing.assert_close(context, expected)
    arrived = torch.randn_like(context)
    gradients = [torch.autograd.grad(y, tensors, arrived) for y in (context, expected)]
    torch.testing.assert_close(*gradients)


def test_two_heads_of_keys_serve_six_of_queries_without_a_batch():
    queries = torch.randn(6, 5, 11)
    keys, values = torch.randn(2, 7, 11), torch.randn(2, 7, 13)
    repeated = (t.repeat_interleave(3, dim=0) for t in (keys, values))
    context = flash_attend(queries, keys, values)
    torch.testing.assert_close(context, by_hand(queries, *repeated))


def test_keys_without_heads_serve_all_heads():
    queries, keys, values = (
        torch.randn(4, 5, 11),
        torch.randn(7, 11),
        torch.randn(7, 13),
    )
    context = flash_attend(queries, keys, values)
    torch.testing.assert_close(context, by_hand(queries, keys, values))


def test_a_bias_of_minus_infinity_blinds_a_query():
    bias = torch.zeros(5, 7)
    bias[2] = -torch.inf
    context = flash_attend(*some_tensors(), bias=bias)
    assert (context[:, :, 2] == 0).all()
    assert context.isfinite().all()


def test_a_blind_query_gets_zeros_and_teaches_nothing():
    tensors = [t.requires_grad_() for t in some_tensors()]
    bias = torch.randn(5, 7, requires_grad=True)
    context = flash_attend(*tensors, some_mask(5, 7, blind=2), bias=bias, tile=(2, 3))
    assert (context[:, :, 2] == 0).all()
    gradients = torch.autograd.grad(context.pow(2).sum(), [*tensors, bias])
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert (gradients[0][:, :, 2] == 0).all()
    assert (gradients[3][2] == 0).all()


def test_a_bias_of_minus_infinity_hides_a_key():
    tensors, mask = some_tensors(), some_mask(5, 7, blind=2)
    bias = torch.zeros(5, 7).masked_fill(~mask, -torch.inf)
    context = flash_attend(*tensors, bias=bias, tile=(2, 3))
    torch.testing.assert_close(context, attend(*tensors, mask))


@pytest.mark.parametrize(
    "options", [{}, {"causal": True}, {"mask": some_mask(5, 7, blind=2)}]
)
def test_extreme_scores_stay_finite(options):
    queries, keys, values = some_tensors()
    tensors = [t.requires_grad_() for t in (100 * queries, 100 * keys, values)]
    context = flash_attend(*tensors, **options, tile=(2, 3))
    torch.testing.assert_close(context, by_hand(*tensors, **options))
    for gradient in torch.autograd.grad(context.sum(), tensors):
        assert gradient.isfinite().all()


def test_not_a_number_is_not_hidden():
    queries, keys, values = some_tensors()
    queries[:, :, 3] = math.nan
    context = flash_attend(queries, keys, values, tile=(2, 3))
    assert context[:, :, 3].isnan().all()
    assert context[:, :, :3].isfinite().all()


def test_there_may_be_no_keys_no_queries_or_no_batch():
    queries, keys, values = (t.requires_grad_() for t in some_tensors())
    nothing = flash_attend(queries, keys[..., :0, :], values[..., :0, :])
    assert nothing.shape == (2, 3, 5, 13)
    assert (nothing == 0).all()
    nothing.sum().backward()
    assert (queries.grad == 0).all()
    with torch.no_grad():
        nothing = flash_attend(queries, keys[..., :0, :], values[..., :0, :])
    assert (nothing == 0).all()
    assert flash_attend(queries[..., :0, :], keys, values).shape == (2, 3, 0, 13)
    assert flash_attend(queries[:0], keys[:0], values[:0]).shape == (0, 3, 5, 13)


def test_what_is_no_copy_is_read_as_well():
    queries, keys, values = (
        t.transpose(1, 2).contiguous().transpose(1, 2) for t in some_tensors()
    )
    context = flash_attend(queries, keys, values, causal=True)
    torch.testing.assert_close(context, attend(queries, keys, values, causal=True))


def test_inputs_are_left_alone():
    tensors = [*some_tensors(), some_mask(5, 7, blind=2), torch.randn(5, 7)]
    before = [t.clone() for t in tensors]
    queries, keys, values, mask, bias = tensors
    flash_attend(queries, keys, values, mask, bias=bias, causal=True, tile=(2, 3))
    for was, now in zip(before, tensors, strict=True):
        assert torch.equal(was, now)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("tile", [(16, 32), (128, 8192)], ids=str)
def test_in_half_precision_it_errs_little_more_than_the_fused_call(dtype, tile):
    exact = [torch.randn(1, 2, 101, 16).to(dtype).double() for _ in range(3)]
    arrived = torch.randn(1, 2, 101, 16).to(dtype)

    def both_passes(form, tensors, **options):
        tensors = [t.clone().requires_grad_() for t in tensors]
        context = form(*tensors, causal=True, **options)
        given = arrived.to(context.dtype)
        return [context, *torch.autograd.grad(context, tensors, given)]

    half = [t.to(dtype) for t in exact]
    expected = both_passes(attend, exact)
    ours = both_passes(flash_attend, half, tile=tile)
    fused = both_passes(attend, half)
    for one, other, truth in zip(ours, fused, expected, strict=True):
        assert one.dtype == dtype
        error, allowed = ((t - truth).abs().mean() for t in (one, other))
        assert error <= 1.5 * allowed  # each tile rounds its context once more


@pytest.mark.parametrize("backward", [False, True])
def test_memory_grows_with_the_length_and_not_with_its_square(backward):
    def peak(length):
        tensors = [torch.zeros(1, 1, length, 8) for _ in range(3)]
        tensors = [t.requires_grad_(backward) for t in tensors]
        with Ledger() as ledger:
            context = flash_attend(*tensors, causal=True, tile=(32, 64))
            if backward:
                context.sum().backward()
        return ledger.peak

    assert peak(2048) < 2.1 * peak(1024) < 2.1**2 * peak(512)


def test_many_heads_of_a_long_text_take_the_room_of_one_tile():
    tensors = [torch.zeros(5, 8192, 1) for _ in range(3)]
    with Ledger() as ledger:
        flash_attend(*tensors, causal=True)
    assert ledger.peak < 1.5 * 4 * 128 * 8192  # bytes; the rest is small


def test_memory_is_at_most_twice_that_of_the_fused_call():
    tensors = [torch.zeros(1, 12, 2048, 64, requires_grad=True) for _ in range(3)]
    peaks = []
    for form in (flash_attend, attend):
        with Ledger() as ledger:  # of attend it sees the results alone
            form(*tensors, causal=True).sum().backward()
        peaks.append(ledger.peak)
    assert peaks[0] <= 2 * peaks[1]


# Tiles


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("tile", TILES, ids=str)
def test_tiles_cover_what_may_be_seen_once(causal, tile):
    table = torch.zeros(5, 7, dtype=torch.int64)
    for rows, columns in tiles(5, 7, causal=causal, tile=tile):
        for some in columns:
            table[rows, some] += 1
    visible = torch.ones(5, 7, dtype=torch.bool).tril(2 if causal else 7)
    assert (table[visible] == 1).all()
    assert (table <= 1).all()


def test_tiles_cover_all_keys_unless_causal_is_said():
    assert [*tiles(5, 7, tile=(2, 3))] == [*tiles(5, 7, causal=False, tile=(2, 3))]


def test_tiles_in_the_future_are_skipped():
    visited = [len(columns) for _, columns in tiles(12, 12, causal=True, tile=(2, 2))]
    assert visited == [1, 2, 3, 4, 5, 6]


def test_a_tile_knows_its_context_and_logsumexp():
    scores, values = torch.randn(2, 3, 5), torch.randn(2, 5, 7)
    context, logsumexp = attend_tile(scores.clone(), values)
    torch.testing.assert_close(context, scores.softmax(dim=-1) @ values)
    torch.testing.assert_close(logsumexp, scores.logsumexp(dim=-1))


def test_a_tile_with_nothing_to_see_counts_for_nothing():
    scores = torch.full((1, 3, 5), -torch.inf)
    context, logsumexp = attend_tile(scores, torch.randn(1, 5, 7))
    assert (context == 0).all()
    assert (logsumexp == -torch.inf).all()


# Heads at once


def results(tensors, **options):
    """The context and the gradients of its sum."""
    inputs = [t.clone().requires_grad_() for t in tensors]
    context = flash_attend(*inputs, **options)
    return [context.detach(), *torch.autograd.grad(context.sum(), inputs)]


def test_heads_taken_together_equal_each_by_itself():
    tensors = [torch.randn(17, 701, 3) for _ in range(3)]  # more than one group
    together = results(tensors, causal=True)
    for head in (0, 10, 11, 16):
        alone = results([tensor[head] for tensor in tensors], causal=True)
        torch.testing.assert_close([found[head] for found in together], alone)


def test_the_number_of_cores_changes_nothing():
    tensors, found = [torch.randn(2, 4, 4099, 2) for _ in range(3)], []
    cores = torch.get_num_threads()
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        found.append(results(tensors, causal=True))
    torch.set_num_threads(cores)
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])


def test_the_same_numbers_come_each_time():
    queries, keys, values = (torch.randn(2, 3, 1031, 2) for _ in range(3))
    tensors = queries, keys[:, :1], values[:, :1]  # shared by three heads
    first, second = results(tensors), results(tensors)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


def test_without_numbers_it_gives_the_shape():
    tensors = [tensor.to("meta") for tensor in some_tensors()]
    assert flash_attend(*tensors, causal=True).shape == (2, 3, 5, 13)


def test_it_works_in_inference_mode():
    with torch.inference_mode():
        tensors = some_tensors()
        torch.testing.assert_close(flash_attend(*tensors), attend(*tensors))


def test_no_gradient_is_recorded_where_none_is_wanted():
    tensors = [t.requires_grad_() for t in some_tensors()]
    with torch.no_grad():
        assert not flash_attend(*tensors).requires_grad


# In a module


MODULES = {
    "SelfAttention": lambda form: SelfAttention(3, 5, attend=form),
    "MultiHeadAttention": lambda form: MultiHeadAttention(
        3, 10, 11, 0.0, 5, attend=form
    ),
}


@pytest.mark.parametrize("build", MODULES.values(), ids=MODULES.keys())
def test_a_module_takes_it_in_the_place_of_attend(build):
    assert_twins(build(attend), build(flash_attend), torch.randn(2, 7, 3))


def test_cross_attention_takes_it_too():
    module = CrossAttention(3, 10, 5, d_context=2)
    twin = CrossAttention(3, 10, 5, d_context=2, attend=flash_attend)
    assert_twins(module, twin, torch.randn(2, 7, 3), torch.randn(2, 11, 2))


def test_the_future_does_not_leak():
    module = MultiHeadAttention(3, 10, 11, 0.0, 5, attend=flash_attend)
    assert future_leak(module, torch.randn(2, 7, 3)) == 0


def test_it_obeys_autocast():
    module = MultiHeadAttention(3, 10, 11, 0.0, 5, attend=flash_attend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        context = module(torch.randn(2, 7, 3))
        assert context.dtype == torch.bfloat16
        context.sum().backward()
    assert module.W_query.weight.grad.isfinite().all()


# Misfits


BAD = MISFITS | {
    "heads are no multiple": (
        change(queries=torch.randn(2, 7, 5, 11)),
        r"must broadcast, came=\(2, 7\), \(2, 3\), \(2, 3\)",
    ),
    "values have other heads": (
        change(queries=torch.randn(2, 6, 5, 11), values=torch.randn(2, 5, 7, 13)),
        "batch and head axes must broadcast",
    ),
    "mask for other heads": (
        change(
            queries=torch.randn(2, 6, 5, 11), mask=torch.ones(3, 5, 7, dtype=torch.bool)
        ),
        r"mask must broadcast to \(2, 6, 5, 7\), came=\(3, 5, 7\)",
    ),
    "dropout": (
        change(dropout_p=0.1),
        "supports dropout_p=0 alone, came dropout_p=0.1",
    ),
    "tile without rows": (
        change(tile=(0, 3)),
        "tile_height=0 must be a whole number of at least 1",
    ),
    "half a column": (change(tile=(3, 0.5)), "tile_width=0.5 must be a whole number"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD.keys())
def test_a_misfit_is_refused_and_both_sides_are_named(as_importer, arguments, message):
    with pytest.raises(ValueError, match=message):
        flash_attend(**arguments)


def test_a_second_derivative_is_refused():
    queries, keys, values = (t.requires_grad_() for t in some_tensors())
    context = flash_attend(queries, keys, values)
    with pytest.raises(
        RuntimeError, match=r"not implemented.*must be False, came True"
    ):
        torch.autograd.grad(context.sum(), queries, create_graph=True)
