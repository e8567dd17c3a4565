"""Flash attention: the same numbers and gradients as by hand, in little memory."""

import math
from functools import partial

import pytest
import torch
from examples import (
    MISFITS,
    TRACERS,
    assert_twins,
    change,
    said,
    some_mask,
    some_tensors,
)
from torch.fx.experimental.proxy_tensor import make_fx
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

from attention import (
    CrossAttention,
    MultiHeadAttention,
    SelfAttention,
    attend,
    attention_weights,
    flash_attend,
    future_leak,
    merge_states,
)
from attention.speed.cost import Ledger
from attention.speed.flash import (
    _Flash,
    attend_tile,
    flash_gradients,
    flash_state,
    tiles,
)

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
    "a scale of zero": {"scale": 0.0, "causal": True},
    "a negative scale": {"scale": -0.3, "causal": True},
    "window": {"causal": True, "window": 3},
    "window of one": {"causal": True, "window": 1},
    "window wider than the text": {"causal": True, "window": 17},
    "window, mask, bias": {
        "causal": True,
        "window": 2,
        "mask": some_mask(3, 5, 7, blind=2),
        "bias": torch.randn(3, 5, 7),
    },
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
    do = torch.randn_like(context)
    gradients = [torch.autograd.grad(y, tensors, do) for y in (context, expected)]
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
    do = torch.randn_like(context)
    gradients = [torch.autograd.grad(y, tensors, do) for y in (context, expected)]
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
    repeated = [t.repeat_interleave(2, dim=1) for t in tensors[1:]]
    expected = by_hand(queries, *repeated, **options)
    torch.testing.assert_close(context, expected)
    do = torch.randn_like(context)
    gradients = [torch.autograd.grad(y, tensors, do) for y in (context, expected)]
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


def test_scores_of_minus_infinity_blind_a_query_except_on_the_shorter_way():
    queries, keys, values = some_tensors()
    queries[:, :, 2], keys = -torch.inf, torch.ones_like(keys)
    learned = queries.clone().requires_grad_()
    mask, bias = torch.ones(5, 7, dtype=torch.bool), torch.zeros(5, 7)
    merged, _ = flash_attend(queries, keys, values, return_lse=True)
    for context in (
        attention_weights(queries, keys) @ values,
        merged,
        flash_attend(learned, keys, values),
        flash_attend(queries, keys, values, tile=(2, 3)),
        flash_attend(queries, keys, values, mask),
        flash_attend(queries, keys, values, bias=bias),
    ):
        assert (context[:, :, 2] == 0).all()
    for form in (flash_attend, attend):
        assert form(queries, keys, values)[:, :, 2].isnan().all()


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
    do = torch.randn(1, 2, 101, 16).to(dtype)

    def both_passes(form, tensors, **options):
        tensors = [t.clone().requires_grad_() for t in tensors]
        context = form(*tensors, causal=True, **options)
        given = do.to(context.dtype)
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


def test_a_gradient_that_does_not_arrive_takes_no_room():
    tensors = [torch.zeros(64, 512, 32, requires_grad=True) for _ in "qkv"]
    peaks = []
    for alone in (0, 1):  # the context, the logsumexp
        outputs = flash_attend(*tensors, return_lse=True)
        with Ledger() as ledger:
            outputs[alone].sum().backward()
        peaks.append(ledger.peak)
    assert peaks[1] < 1.05 * peaks[0]


# What is hidden

HIDES = {
    "mask": {"mask": some_mask(5, 7, blind=2)},
    "causal": {"causal": True},
    "window": {"causal": True, "window": 2},
    "all three": {"mask": some_mask(3, 5, 7, blind=2), "causal": True, "window": 3},
}


def may_see(mask=None, causal=False, window=None):
    """Where one of 5 queries, the last of 7 keys, may see a key."""
    distance = torch.arange(2, 7)[:, None] - torch.arange(7)
    seen = distance >= 0 if causal else torch.ones(5, 7, dtype=torch.bool)
    seen = seen if window is None else seen & (distance < window)
    return seen if mask is None else seen & mask


@pytest.mark.parametrize("tile", [(1, 1), (2, 3), (128, 8192)], ids=str)
@pytest.mark.parametrize("hidden", [math.nan, math.inf, -math.inf, 1e38], ids=str)
@pytest.mark.parametrize("options", HIDES.values(), ids=HIDES.keys())
def test_a_hidden_bias_has_no_effect(options, hidden, tile):
    tensors = [t.requires_grad_() for t in some_tensors()]
    seen = may_see(**options).expand(3, 5, 7)
    clean = torch.randn(3, 5, 7).masked_fill(~seen, 0).requires_grad_()
    bias = clean.detach().masked_fill(~seen, hidden).requires_grad_()
    context = flash_attend(*tensors, **options, bias=bias, tile=tile)
    expected = by_hand(*tensors, **options, bias=clean)
    torch.testing.assert_close(context, expected)
    do = torch.randn_like(context)
    found = torch.autograd.grad(context, [*tensors, bias], do)
    wanted = torch.autograd.grad(expected, [*tensors, clean], do)
    torch.testing.assert_close(found, wanted)
    assert (found[3][~seen] == 0).all()


@pytest.mark.parametrize("tile", [(2, 3), (128, 8192)], ids=str)
@pytest.mark.parametrize("options", HIDES.values(), ids=HIDES.keys())
def test_a_score_that_is_hidden_has_no_effect(options, tile):
    queries, keys, values = some_tensors()
    lonely = ~may_see(**options).expand(3, 5, 7).any(dim=1)  # keys that nobody sees
    odd = keys.masked_fill(lonely[:, :, None], math.nan)
    context = flash_attend(queries, odd, values, **options, tile=tile)
    torch.testing.assert_close(context, by_hand(queries, keys, values, **options))


class FiniteProducts(TorchDispatchMode):
    """Every product of matrices must read numbers alone.

    A kernel may read past the end of a row, so that a nan reaches its neighbours.
    """

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket.__name__ in ("mm", "bmm", "addmm", "baddbmm"):
            for operand in args:
                assert operand.isfinite().all(), f"{function} reads {operand}"
        return function(*args, **kwargs or {})


DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("tile", [(4, 17), (128, 8192)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_no_product_reads_what_is_not_a_number(dtype, tile):
    for width in range(1, 131):  # of the rows of weights, odd and even
        mask = torch.rand(1, 5, width) < 0.5
        mask[..., 0] = True
        mask[:, 1::2] = False  # blind rows above and below those that see
        bias = torch.zeros(2, 5, width, dtype=dtype)
        bias[1, 2], bias[0, 4, 1:] = -math.inf, -math.inf
        tensors = [torch.randn(2, length, 3) for length in (5, width, width)]
        tensors = [t.to(dtype).requires_grad_() for t in tensors]
        with FiniteProducts():
            context = flash_attend(*tensors, mask, bias=bias, tile=tile)
            gradients = torch.autograd.grad(context.float().sin().sum(), tensors)
        for found in (context, *gradients):
            assert found.isfinite().all()
        assert (context[:, 1::2] == 0).all()
        assert (gradients[0][:, 1::2] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", [{}, {"window": 3}], ids=str)
def test_nor_where_a_tile_begins_behind_the_diagonal(dtype, options):
    for width in (1, 2, 31, 32, 33, 65, 99, 130):
        tensors = [torch.randn(2, width, 3).to(dtype).requires_grad_() for _ in "qkv"]
        with FiniteProducts():
            context = flash_attend(*tensors, causal=True, **options, tile=(8, 3))
            torch.autograd.grad(context.float().sin().sum(), tensors)


# A window


@pytest.mark.parametrize("tile", [(16, 16), (32, 8), (128, 8192)], ids=str)
@pytest.mark.parametrize("window", [1, 7, 16, 40, 53, 100])
@pytest.mark.parametrize("earlier", [0, 13])
def test_a_window_counts_the_query_itself(window, tile, earlier):
    tensors = [torch.randn(2, length, 5) for length in (53, 53 + earlier, 53 + earlier)]
    tensors = [tensor.requires_grad_() for tensor in tensors]
    distance = torch.arange(earlier, 53 + earlier)[:, None]
    distance = distance - torch.arange(53 + earlier)
    band = (distance >= 0) & (distance < window)
    context = flash_attend(*tensors, causal=True, window=window, tile=tile)
    expected = by_hand(*tensors, band)
    torch.testing.assert_close(context, expected)
    do = torch.randn_like(context)
    gradients = [torch.autograd.grad(y, tensors, do) for y in (context, expected)]
    torch.testing.assert_close(*gradients)


def test_tiles_outside_the_window_are_never_made():
    made = {}
    for window in (None, 64):
        bands = tiles(4096, 4096, causal=True, window=window, tile=(64, 256))
        made[window] = [sum(s.stop - s.start for s in columns) for _, columns in bands]
    assert max(made[64]) <= 64 + 63
    assert sum(made[64]) < sum(made[None]) / 15


@pytest.mark.parametrize("backward", [False, True])
def test_the_work_falls_with_the_window(backward):
    from torch.utils.flop_counter import FlopCounterMode

    def flops(window):
        tensors = [torch.randn(1, 2048, 4, requires_grad=backward) for _ in "qkv"]
        with FlopCounterMode(display=False) as counter:
            context = flash_attend(*tensors, causal=True, window=window)
            if backward:
                context.sum().backward()
        return counter.get_total_flops()

    assert flops(128) < flops(None) / 4  # a band of 128 sees 255 keys, not 1088


def test_memory_falls_with_the_window():
    tensors = [torch.zeros(1, 8192, 4) for _ in "qkv"]
    peaks = []
    for window in (None, 128):
        with Ledger() as ledger:
            flash_attend(*tensors, causal=True, window=window)
        peaks.append(ledger.peak)
    assert peaks[1] < peaks[0] / 4


# A bias in 32 bits, a scale that learns


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_bias_in_float32_is_added_in_float32(dtype):
    tensors = [torch.randn(2, 3, 301, 16).to(dtype).requires_grad_() for _ in "qkv"]
    distance = (torch.arange(301)[:, None] - torch.arange(301)).float()
    bias = -distance.abs().expand(3, -1, -1) + 299  # as of ALiBi: large differences
    bias = bias.clone().requires_grad_()
    context = flash_attend(*tensors, bias=bias, causal=True, tile=(64, 128))
    exact = by_hand(*(t.double() for t in (*tensors,)), bias=bias.double(), causal=True)
    assert context.dtype == dtype
    torch.testing.assert_close(context.double(), exact, rtol=0.02, atol=0.02)  # 16 bits
    do = torch.randn_like(exact)
    found = torch.autograd.grad(context, [*tensors, bias], do.to(dtype))
    wanted = torch.autograd.grad(exact, [*tensors, bias], do)
    assert [g.dtype for g in found] == [dtype, dtype, dtype, torch.float32]
    torch.testing.assert_close(found, wanted, rtol=0.05, atol=0.05)  # 16 bits


SCALES = {
    "one for all": torch.tensor(0.3),
    "one for each head": torch.rand(3, 1, 1),
    "of 64 bits": torch.tensor(0.3, dtype=torch.float64),
}


@pytest.mark.parametrize("scale", SCALES.values(), ids=SCALES.keys())
@pytest.mark.parametrize("causal", [False, True])
def test_a_learned_scale_learns(scale, causal):
    tensors = [t.requires_grad_() for t in some_tensors()]
    scale = scale.clone().requires_grad_()
    found, expected = (
        form(*tensors, scale=scale, causal=causal) for form in (flash_attend, by_hand)
    )
    torch.testing.assert_close(found, expected)
    do = torch.randn_like(found)
    gradients = [
        torch.autograd.grad(y, [scale, *tensors], do) for y in (found, expected)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)  # long sums in 32 bits


# The logsumexp


def by_hand_with_lse(queries, keys, values, mask=None, bias=0.0):
    scores = queries @ keys.mT / keys.shape[-1] ** 0.5 + bias
    scores = scores if mask is None else scores.masked_fill(~mask, -math.inf)
    weights = scores.softmax(dim=-1)
    return weights @ values, scores.logsumexp(dim=-1)


@pytest.mark.parametrize("tile", [(2, 3), (128, 8192)], ids=str)
@pytest.mark.parametrize("grad", [False, True])
def test_it_tells_the_logsumexp_when_asked(tile, grad):
    tensors = [t.requires_grad_(grad) for t in some_tensors()]
    bias = torch.randn(5, 7, requires_grad=grad)
    found = flash_attend(*tensors, bias=bias, tile=tile, return_lse=True)
    expected = by_hand_with_lse(*tensors, bias=bias)
    torch.testing.assert_close(found, expected)
    assert torch.equal(found[0], flash_attend(*tensors, bias=bias, tile=tile))
    if grad:  # of both
        sums = [
            (c.sin() @ torch.randn(13)).sum() * 0 + (c.sin().sum() + lse.cos().sum())
            for c, lse in (found, expected)
        ]
        gradients = [torch.autograd.grad(y, [*tensors, bias]) for y in sums]
        torch.testing.assert_close(*gradients)


def test_the_gradient_of_the_logsumexp_is_right():
    tensors = [t.requires_grad_() for t in some_tensors(torch.float64, batch=())]
    form = partial(flash_attend, mask=some_mask(5, 7), tile=(2, 3), return_lse=True)
    assert torch.autograd.gradcheck(form, tensors)
    assert torch.autograd.gradcheck(lambda *three: form(*three)[1], tensors)


@pytest.mark.parametrize("length", [0, 7])
@pytest.mark.parametrize("grad", [False, True])
def test_a_blind_query_has_zeros_and_minus_infinity(length, grad):
    queries, keys, values = (t.requires_grad_(grad) for t in some_tensors())
    tensors = queries, keys[..., :length, :], values[..., :length, :]
    mask = torch.zeros(5, length, dtype=torch.bool)
    for options in ({"mask": mask}, {"bias": torch.full((5, length), -math.inf)}):
        context, lse = flash_attend(*tensors, **options, return_lse=True)
        assert (context == 0).all()
        assert lse.isneginf().all()
        if grad:
            for gradient in torch.autograd.grad([context.sum(), lse.sum()], tensors):
                assert (gradient == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_parts_of_the_keys_merge_and_train(dtype):
    queries, keys, values = (t.to(dtype).requires_grad_() for t in some_tensors())
    mask = some_mask(5, 7, blind=2)
    mask[1, :3] = False  # blind in the first part
    parts = [
        flash_attend(queries, keys[..., j, :], values[..., j, :], mask[:, j], **options)
        for j in (slice(0, 3), slice(3, 7))
        for options in [{"return_lse": True}]
    ]
    context, _ = merge_states(*parts[0], *parts[1])
    tensors = queries, keys, values
    expected = by_hand(*(t.float() for t in tensors), mask).to(dtype)
    tolerance = {} if dtype == torch.float32 else {"rtol": 0.02, "atol": 0.02}  # bits
    torch.testing.assert_close(context, expected, **tolerance)
    do = torch.randn_like(context)
    gradients = [torch.autograd.grad(y, tensors, do) for y in (context, expected)]
    torch.testing.assert_close(*gradients, **tolerance)


# Under torch.func


def pulled(form, inputs, names, **options):
    """`form` as a function of the named inputs alone."""

    def f(*some):
        given = inputs | dict(zip(names, some, strict=True))
        return form(**given, **options)

    return f


def func_inputs():
    queries, keys, values = some_tensors(torch.float64)
    bias = torch.randn(5, 7, dtype=torch.float64)
    three = {"queries": queries, "keys": keys, "values": values}
    return three | {"mask": some_mask(5, 7, blind=2), "bias": bias}


LEARNED = ("queries", "keys", "values", "bias")


@pytest.mark.parametrize("argnum", range(4))
def test_torch_func_grad_is_the_gradient(argnum):
    inputs, found = func_inputs(), []
    for form in (flash_attend, by_hand):
        f = pulled(form, inputs, LEARNED, causal=True)
        loss = lambda *some, f=f: f(*some).sin().sum()  # noqa: E731
        args = [inputs[name] for name in LEARNED]
        found.append(torch.func.grad(loss, argnum)(*args))
    torch.testing.assert_close(*found)


def test_vjp_and_jacrev_are_those_of_by_hand():
    inputs = func_inputs()
    args, do = [inputs[name] for name in LEARNED], torch.randn(2, 3, 5, 13).double()
    pulls, jacobians = [], []
    for form in (flash_attend, by_hand):
        f = pulled(form, inputs, LEARNED)
        pulls.append(torch.func.vjp(f, *args)[1](do))
        jacobians.append(torch.func.jacrev(f, argnums=(0, 1, 2, 3))(*args))
    torch.testing.assert_close(*pulls)
    torch.testing.assert_close(*jacobians)


@pytest.mark.parametrize("tile", [(2, 3), (128, 8192)], ids=str)
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("mapped", ["q", "k", "v", "m", "b", "qk", "kvb", "qkvmb"])
def test_vmap_maps_any_of_its_inputs(mapped, learned, tile):
    inputs = func_inputs() | {"window": 4}
    names = ("queries", "keys", "values", "mask", "bias")
    chosen = [name for name in names if name[0] in mapped]
    dims = tuple(range(1, -1, -1)[n % 2] for n, _ in enumerate(chosen))  # 1, 0, 1 …
    args = []
    for name, dim in zip(chosen, dims, strict=True):
        table = inputs[name]
        many = torch.rand(11, *table.shape) < 0.5 if name == "mask" else None
        many = torch.randn(11, *table.shape).double() if many is None else many
        args.append(many.movedim(0, dim))
    learners = [a.requires_grad_() for a in args if learned and a.is_floating_point()]
    found = []
    for form in (partial(flash_attend, tile=tile), by_hand):
        f = pulled(form, inputs, chosen, causal=True)
        context = torch.vmap(f, dims)(*args)
        gradients = []
        if learners:
            gradients = torch.autograd.grad(context.sin().sum(), learners)
        found.append([context, *gradients])
    torch.testing.assert_close(*found)


def test_vmap_may_be_nested():
    inputs, found = func_inputs(), []
    queries, values = torch.randn(11, 5, 3).double(), torch.randn(2, 7, 4).double()
    inputs["keys"] = torch.randn(7, 3).double()
    for form in (flash_attend, by_hand):
        f = pulled(form, inputs, ("queries", "values"))
        inner = torch.vmap(f, (None, 0))
        found.append(torch.vmap(inner, (0, None))(queries, values))
    assert found[0].shape == (11, 2, 5, 4)
    torch.testing.assert_close(*found)


def test_each_sample_has_its_own_gradient():
    inputs, found = func_inputs(), []
    samples = [torch.randn(11, *inputs[name].shape).double() for name in LEARNED]
    for form in (flash_attend, by_hand):
        f = pulled(form, inputs, LEARNED)
        loss = lambda *some, f=f: f(*some).sin().sum()  # noqa: E731
        grads = torch.func.grad(loss, argnums=(0, 1, 2, 3))
        found.append(
            torch.vmap(grads, (0, 0, None, 0))(
                *samples[:2], inputs["values"], samples[3]
            )
        )
    torch.testing.assert_close(*found)


def test_a_gradient_outside_sees_a_map_inside():
    inputs, found = func_inputs(), []
    samples = torch.randn(11, *inputs["queries"].shape).double()
    for form in (flash_attend, by_hand):
        f = pulled(form, inputs, ("queries", "keys"))
        loss = lambda q, k, f=f: torch.vmap(f, (0, None))(q, k).sin().sum()  # noqa: E731
        found.append(torch.func.grad(loss, argnums=(0, 1))(samples, inputs["keys"]))
    torch.testing.assert_close(*found)


def test_per_sample_gradients_of_a_module():
    module = MultiHeadAttention(3, 10, 7, 0.0, 5, attend=flash_attend)
    parameters = {name: p.detach() for name, p in module.named_parameters()}
    samples = torch.randn(11, 7, 3)

    def loss(parameters, x):
        return torch.func.functional_call(module, parameters, (x[None],)).sin().sum()

    each = torch.vmap(torch.func.grad(loss), (None, 0))(parameters, samples)
    for name, gradient in torch.func.grad(loss)(parameters, samples[4]).items():
        torch.testing.assert_close(each[name][4], gradient)


SECOND = {
    "autograd": lambda f, x: torch.autograd.grad(
        torch.autograd.grad(f(x), x, create_graph=True)[0].sum(), x
    ),
    "hessian": lambda f, x: torch.func.hessian(f)(x),
    "grad of grad": lambda f, x: torch.func.grad(lambda x: torch.func.grad(f)(x).sum())(
        x
    ),
    "jacrev of jacrev": lambda f, x: torch.func.jacrev(torch.func.jacrev(f))(x),
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (x,)),
    "jacfwd": lambda f, x: torch.func.jacfwd(f)(x),
    "autograd's forward mode": lambda f, x: torch.autograd.functional.jvp(
        f, x, x, strict=True
    ),
}


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # PyTorch's
@pytest.mark.parametrize("ask", SECOND.values(), ids=SECOND.keys())
@pytest.mark.parametrize("causal", [False, True])
def test_more_than_a_first_derivative_is_refused(ask, causal):
    queries, keys, values = some_tensors()
    f = lambda q: flash_attend(q, keys, values, causal=causal).sin().sum()  # noqa: E731
    with pytest.raises(RuntimeError, match=said("flash_attend", "first derivative")):
        ask(f, queries.requires_grad_())


def test_create_graph_alone_is_no_second_derivative():
    tensors, found = [t.requires_grad_() for t in some_tensors()], []
    for form in (flash_attend, by_hand):
        loss = form(*tensors).sin().sum()
        found.append(torch.autograd.grad(loss, tensors, create_graph=True))
    torch.testing.assert_close(*found)


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
    torch.testing.assert_close(logsumexp.float(), scores.logsumexp(dim=-1))


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
    tensors, found = [torch.randn(2, 4, 1031, 2) for _ in range(3)], []
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
        said("heads", "got", "(2, 7), (2, 3), (2, 3)"),
    ),
    "values have other heads": (
        change(queries=torch.randn(2, 6, 5, 11), values=torch.randn(2, 5, 7, 13)),
        said("heads", "got", "(2, 6), (2, 3), (2, 5)"),
    ),
    "mask for other heads": (
        change(
            queries=torch.randn(2, 6, 5, 11), mask=torch.ones(3, 5, 7, dtype=torch.bool)
        ),
        said("mask", "(2, 6, 5, 7)", "got", "(3, 5, 7)"),
    ),
    "dropout": (change(dropout_p=0.1), said("dropout_p", "0", "got", "0.1")),
    "window of nothing": (change(causal=True, window=0), said("window", "got", "0")),
    "window of truth": (
        change(causal=True, window=True),
        said("window", "got", "True"),
    ),
    "window without causal": (change(window=3), said("window", "got", "causal=False")),
    "tile without rows": (change(tile=(0, 3)), said("BLOCK_M", "got", "0")),
    "half a column": (change(tile=(3, 0.5)), said("BLOCK_N", "got", "0.5")),
    "tile of one side": (change(tile=(16,)), said("tile", "BLOCK_M", "got", "(16,)")),
    "bias of 64 bits": (
        change(bias=torch.zeros(5, 7, dtype=torch.float64)),
        said("bias", "float32", "got", "float64"),
    ),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD.keys())
def test_a_misfit_is_refused_and_both_sides_are_named(as_importer, arguments, message):
    with pytest.raises(ValueError, match=message):
        flash_attend(**arguments)


def test_what_is_no_tensor_is_refused(as_importer):
    queries, keys, values = some_tensors()
    with pytest.raises(TypeError, match=said("keys", "torch.Tensor", "got", "list")):
        flash_attend(queries, keys.tolist(), values)


# A part of the keys


PARTS = {
    "plain": {},
    "mask": {"mask": some_mask(2, 1, 5, 12, blind=2)},
    "bias": {"bias": torch.randn(2, 3, 5, 12)},
    "both": {"mask": some_mask(5, 12), "bias": torch.randn(2, 3, 5, 12)},
}


def parts_of(options, keys, values):
    """Keys 0 to 6 and 7 to 11, with what belongs to them."""
    for some in (slice(0, 7), slice(7, 12)):
        tables = {name: table[..., some] for name, table in options.items()}
        yield (keys[..., some, :], values[..., some, :]), tables


@pytest.mark.parametrize("tile", [(2, 3), (128, 8192)])
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("options", PARTS.values(), ids=PARTS.keys())
def test_the_gradients_of_parts_are_those_of_the_whole(options, heads, tile):
    def draw(*shape):
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    queries, keys, values = (
        draw(2, 3, 5, 4),
        draw(2, heads, 12, 4),
        draw(2, heads, 12, 7),
    )
    options, more = dict(options), []
    if "bias" in options:
        options["bias"] = options["bias"].double().requires_grad_()
        more = [options["bias"]]
    context, lse = flash_attend(queries, keys, values, **options, return_lse=True)
    do, dlse = torch.randn_like(context), torch.randn_like(lse)
    wanted = torch.autograd.grad(
        (context, lse), [queries, keys, values, *more], (do, dlse)
    )
    options = {name: table.detach() for name, table in options.items()}
    known = [tensor.detach() for tensor in (do, context, lse, queries)]
    found = [
        flash_gradients(*known, *both, **tables, scale=0.5, tile=tile, dlse=dlse)
        for both, tables in parts_of(options, keys.detach(), values.detach())
    ]
    close = torch.testing.assert_close
    close(found[0][0] + found[1][0], wanted[0])
    for place, dim in ((1, -2), (2, -2), (3, -1))[: len(wanted) - 1]:
        close(torch.cat([part[place] for part in found], dim), wanted[place])
    assert more or found[0][3] is None


@pytest.mark.parametrize("options", PARTS.values(), ids=PARTS.keys())
def test_the_states_of_parts_merge_to_the_whole(options):
    queries, keys = torch.randn(2, 3, 5, 4), torch.randn(2, 1, 12, 4)
    states = [
        flash_state(queries, *both, **tables, scale=0.5)
        for both, tables in parts_of(options, keys, keys)
    ]
    context, lse = merge_states(*states[0], *states[1])
    wanted = flash_attend(queries, keys, keys, **options, return_lse=True)
    torch.testing.assert_close((context, lse.float()), wanted)


@pytest.mark.parametrize("options", PARTS.values(), ids=PARTS.keys())
def test_a_state_goes_on_where_other_keys_have_left_it(options):
    queries, keys = torch.randn(2, 3, 5, 4), torch.randn(2, 1, 12, 4)
    first, second = parts_of(options, keys, keys)
    state = flash_state(queries, *first[0], **first[1], scale=0.5)
    context, lse = flash_state(queries, *second[0], **second[1], scale=0.5, state=state)
    wanted = flash_attend(queries, keys, keys, **options, return_lse=True)
    torch.testing.assert_close((context, lse.float()), wanted)
    assert context is state[0]
    assert lse is state[1]


@pytest.mark.parametrize("heads", [1, 3])
def test_gradients_of_a_part_are_added_to_sums_that_are_given(heads):
    queries, do = torch.randn(2, 2, 3, 5, 4)
    keys, values = torch.randn(2, 2, heads, 12, 4)
    known = do, *flash_state(queries, keys, values, scale=0.5), queries
    alone = flash_gradients(*known, keys, values, scale=0.5)
    sums = [torch.full_like(tensor, 7) for tensor in (queries, keys, values)]
    flash_gradients(*known, keys, values, scale=0.5, sums=sums)
    torch.testing.assert_close(sums, [found + 7 for found in alone[:3]])


@pytest.mark.parametrize("gap", [0, 9, 30, 200, torch.inf])
def test_the_logsumexp_is_right_however_little_the_first_keys_weigh(gap):
    queries, keys, values = torch.randn(3, 3, 5, 307, 8)
    bias = torch.zeros(307, 307)
    bias[2:, :100] = -gap  # in all rows but two
    tables = {"bias": bias, "return_lse": True, "tile": (64, 101)}
    found = flash_attend(queries, keys, values, **tables)
    exact = (tensor.double() for tensor in (queries, keys, values))
    scores = next(exact) @ next(exact).mT / 8**0.5 + bias
    torch.testing.assert_close(found[1], scores.logsumexp(dim=-1).float())
    torch.testing.assert_close(found[0], (scores.softmax(-1) @ next(exact)).float())


class Searches(TorchDispatchMode):
    """How many weights are made, and among how many numbers the largest is sought."""

    def __init__(self):
        super().__init__()
        self.made, self.read = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        self.made += args[0].numel() if name in ("softmax", "_softmax") else 0
        self.read += args[0].numel() if name == "amax" else 0
        return function(*args, **kwargs or {})


@pytest.mark.parametrize(("gap", "again"), [(0, 0), (200, 1)])
def test_on_a_cpu_the_largest_is_sought_in_few_keys_until_they_weigh_too_little(
    gap, again
):
    """Then all is made again, and from the next tile on in the longer way alone."""
    bias, tensors = torch.zeros(5, 1000), [torch.randn(2, n, 3) for n in (5, 1000)]
    bias.view(5, 5, 200)[..., :64] = -gap  # in each of the tiles
    with Searches() as searches:
        flash_attend(*tensors, tensors[1], bias=bias, tile=(5, 200))
    assert searches.made == 2 * 5 * (1000 + again * 200)
    assert (searches.read < searches.made) == (gap == 0)


@pytest.mark.parametrize("window", [7, 8, 9, 10])
def test_the_largest_is_not_sought_at_all_where_every_band_is_one_tile(window):
    options = {"causal": True, "window": window}
    bands = tiles(31, 31, **options, tile=(5, 31))
    widest = max(columns[-1].stop - columns[0].start for _, columns in bands)
    with Searches() as searches:
        flash_attend(*torch.randn(3, 2, 31, 3), **options, tile=(5, 12))
    assert (searches.read == 0) == (widest <= 12)


def test_no_key_is_a_state_that_counts_for_nothing():
    queries, none = torch.randn(2, 3, 5, 4), torch.randn(2, 1, 0, 4)
    context, lse = flash_state(queries, none, none, scale=0.5)
    assert (context == 0).all()
    assert lse.isneginf().all()


def test_a_logsumexp_is_kept_to_more_digits_than_32_bits_have():
    signs = torch.randint(-1, 2, (3, 61, 64)).float()  # so that scores are exact
    exact = (signs.double() @ signs.double().mT / 4).logsumexp(dim=-1)
    _, lse = flash_state(signs, signs, signs, scale=0.25, tile=(7, 13))
    assert 8 < exact.max() < 16
    assert (lse - exact).abs().max() < 3.5e-7  # rounded to 32 bits: 4.8e-7


@pytest.mark.parametrize("tile", [(7, 13), (128, 8192)], ids=str)
def test_what_is_added_to_all_scores_alike_changes_no_gradient(tile):
    signs = torch.randint(0, 2, (3, 3, 61, 64)) * 2.0 - 1  # so that scores are exact
    found = []
    for shift in (0, 2**14):
        tensors = [tensor.clone().requires_grad_() for tensor in signs]
        bias = torch.full((61, 61), float(shift))
        context, lse = flash_attend(
            *tensors, bias=bias, scale=0.25, tile=tile, return_lse=True
        )
        loss = context.sin().sum() + lse.sum()
        found.append(torch.autograd.grad(loss, tensors))
    torch.testing.assert_close(*found)


# In graphs.


class Flash(torch.nn.Module):
    def forward(self, queries, keys, values, **options):
        return flash_attend(queries, keys, values, causal=True, tile=(2, 3))


def by_make_fx(module, *inputs):
    return make_fx(module)(*inputs)


@pytest.mark.parametrize(
    "traced", [*TRACERS.values(), by_make_fx], ids=[*TRACERS, "make_fx"]
)
def test_a_graph_of_it_gives_other_tensors_their_own_contexts(as_importer, traced):
    graph, others = traced(Flash(), *some_tensors()), some_tensors()
    torch.testing.assert_close(graph(*others), Flash()(*others))


def test_a_graph_has_it_as_one_operator_whose_gradients_are_those_of_the_call(
    as_importer,
):
    tensors = [tensor.requires_grad_() for tensor in some_tensors()]
    graph = torch.compile(Flash(), fullgraph=True, backend="aot_eager")
    found, must = (
        torch.autograd.grad(form(*tensors).sin().sum(), tensors)
        for form in (graph, Flash())
    )
    torch.testing.assert_close(found, must)
    nodes = make_fx(Flash())(*some_tensors()).graph.nodes
    called = [node.target for node in nodes if "attention" in str(node.target)]
    assert called == [torch.ops.attention.flash_attend.default]


@pytest.mark.parametrize("bias", [None, torch.randn(2, 3, 5, 7, requires_grad=True)])
def test_its_operator_keeps_what_pytorch_asks_of_one(bias):
    tensors = [tensor.requires_grad_() for tensor in some_tensors()]
    form = _Flash(0.5, True, None, (2, 3), keep=True)
    opcheck(
        torch.ops.attention.flash_attend, (*tensors, bias, some_mask(2, 3, 5, 7), *form)
    )
