"""Scaled dot-product attention: the oracle, the fused call, and the module."""

import math
from functools import partial

import pytest
import torch
from examples import MISFITS, said, some_mask, some_tensors
from torch import nn
from torch.nn import functional as F

from attention import SelfAttention, attend, attention_weights
from attention.core.scaled_dot_product import Attend, visible, weights_of
from attention.tools.checks import check_fit, nan_of, spread


def by_loops(queries, keys, values):
    """Equation 1 with nothing but numbers, for one sequence."""

    def dot(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True))

    contexts = []
    for q in queries.tolist():
        powers = [math.exp(dot(q, k) / math.sqrt(len(q))) for k in keys.tolist()]
        shares = [p / sum(powers) for p in powers]
        columns = zip(*values.tolist(), strict=True)
        contexts.append([dot(shares, column) for column in columns])
    return torch.tensor(contexts)


def by_torch(queries, keys, values, **options):
    return F.scaled_dot_product_attention(queries, keys, values, **options)


def test_the_oracle_equals_plain_loops():
    queries, keys, values = some_tensors(torch.float64, batch=())
    context = attention_weights(queries, keys) @ values
    expected = by_loops(queries, keys, values)
    torch.testing.assert_close(context.float(), expected)


def test_the_oracle_equals_pytorch():
    queries, keys, values = some_tensors()
    context = attention_weights(queries, keys) @ values
    torch.testing.assert_close(context, by_torch(queries, keys, values))


def test_rows_of_weights_sum_to_one():
    queries, keys, _ = some_tensors()
    sums = attention_weights(queries, keys).sum(dim=-1)
    torch.testing.assert_close(sums, torch.ones(2, 3, 5))


OPTIONS = {
    "plain": {},
    "mask": {"mask": some_mask(2, 3, 5, 7)},
    "mask for all heads": {"mask": some_mask(2, 1, 5, 7)},
    "mask for all queries": {"mask": some_mask(7)},
    "causal": {"causal": True},
    "causal and mask": {"causal": True, "mask": some_mask(5, 7)},
    "bias": {"bias": torch.randn(3, 5, 7)},
    "bias and causal": {"bias": torch.randn(3, 5, 7), "causal": True},
    "bias and mask": {"bias": torch.randn(3, 5, 7), "mask": some_mask(5, 7)},
    "scale": {"scale": 0.3},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_fused_equals_by_hand(options):
    queries, keys, values = some_tensors()
    context = attention_weights(queries, keys, **options) @ values
    torch.testing.assert_close(attend(queries, keys, values, **options), context)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
def test_fused_and_by_hand_have_the_same_gradients(options):
    tensors = [t.requires_grad_() for t in some_tensors()]
    queries, keys, values = tensors
    fused = attend(queries, keys, values, **options).pow(2).sum()
    by_hand = (attention_weights(queries, keys, **options) @ values).pow(2).sum()
    gradients = [torch.autograd.grad(y, tensors) for y in (fused, by_hand)]
    torch.testing.assert_close(*gradients)


def test_the_gradient_is_right():
    tensors = [t.requires_grad_() for t in some_tensors(torch.float64, batch=())]
    mask = some_mask(5, 7)
    assert torch.autograd.gradcheck(
        lambda q, k, v: attention_weights(q, k, mask) @ v, tensors
    )
    assert torch.autograd.gradcheck(lambda q, k, v: attend(q, k, v, mask), tensors)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_in_half_precision_fused_errs_no_more_than_twice_by_hand(dtype):
    tensors = some_tensors(torch.float64)
    exact = attend(*tensors)
    queries, keys, values = (t.to(dtype) for t in tensors)
    fused = (attend(queries, keys, values) - exact).abs().mean()
    by_hand = (attention_weights(queries, keys) @ values - exact).abs().mean()
    assert fused <= 2 * by_hand


@pytest.mark.parametrize("options", [{}, {"causal": True}, {"mask": some_mask(5, 7)}])
def test_extreme_scores_stay_finite(options):
    queries, keys, values = some_tensors()
    queries, keys = 100 * queries, 100 * keys
    assert attend(queries, keys, values, **options).isfinite().all()
    assert attention_weights(queries, keys, **options).isfinite().all()


def blind_mask():
    mask = some_mask(5, 7)
    mask[2] = False
    return mask


@pytest.mark.parametrize("bias", [None, torch.randn(5, 7)])
def test_a_query_that_sees_no_key_gets_zeros_and_a_zero_gradient(bias):
    tensors = [t.requires_grad_() for t in some_tensors()]
    queries, keys, values = tensors
    mask = blind_mask()
    context = attend(queries, keys, values, mask, bias=bias)
    weights = attention_weights(queries, keys, mask, bias=bias)
    assert (context[:, :, 2] == 0).all()
    assert (weights[:, :, 2] == 0).all()
    torch.testing.assert_close(context, weights @ values)
    for result in (context, weights):
        for gradient in torch.autograd.grad(result.pow(2).sum(), tensors[:2]):
            assert gradient.isfinite().all()
            assert (gradient[:, :, 2] == 0).all() or gradient.shape == keys.shape


def test_what_is_masked_changes_nothing():
    queries, keys, values = some_tensors()
    mask = torch.ones(7, dtype=torch.bool)
    mask[4:] = False
    seen = attend(queries, keys[..., :4, :], values[..., :4, :])
    torch.testing.assert_close(attend(queries, keys, values, mask), seen)
    weights = attention_weights(queries, keys, mask)
    assert (weights[..., 4:] == 0).all()


def test_causal_queries_are_the_last_of_the_keys():
    queries, keys, values = some_tensors()
    last = attend(queries[..., -1:, :], keys, values)
    context = attend(queries, keys, values, causal=True)
    torch.testing.assert_close(context[..., -1:, :], last)


@pytest.mark.parametrize("batch", [(), (7,), (2, 7)], ids=str)
@pytest.mark.parametrize("num_queries", [2, 5, 7])
def test_what_is_causal_is_so_with_any_leading_axes(batch, num_queries):
    queries, keys = torch.randn(*batch, num_queries, 3), torch.randn(*batch, 7, 3)
    past = torch.ones(num_queries, 7, dtype=torch.bool).tril(7 - num_queries)
    context = attention_weights(queries, keys, past) @ keys
    torch.testing.assert_close(attend(queries, keys, keys, causal=True), context)
    weights = attention_weights(queries, keys, causal=True)
    torch.testing.assert_close(weights @ keys, context)
    bias = torch.randn(num_queries, 7)
    context = attention_weights(queries, keys, past, bias=bias) @ keys
    biased = attend(queries, keys, keys, causal=True, bias=bias)
    torch.testing.assert_close(biased, context)


def test_a_mask_and_causal_hide_what_either_hides():
    queries, keys, values = some_tensors()
    mask = some_mask(5, 7)
    both = mask & torch.ones(5, 7, dtype=torch.bool).tril(2)
    weights = attention_weights(queries, keys, mask, causal=True)
    assert torch.equal(weights, attention_weights(queries, keys, both))
    context = attend(queries, keys, values, mask, causal=True)
    assert torch.equal(context, attend(queries, keys, values, both))


def test_permuted_keys_change_nothing():
    queries, keys, values = some_tensors()
    order = torch.randperm(7)
    permuted = attend(queries, keys[..., order, :], values[..., order, :])
    torch.testing.assert_close(permuted, attend(queries, keys, values))


def test_leading_axes_broadcast():
    queries, keys, values = some_tensors()
    shared = attend(queries, keys[:, :1], values[:, :1])
    repeated = attend(
        queries, keys[:, :1].repeat(1, 3, 1, 1), values[:, :1].repeat(1, 3, 1, 1)
    )
    torch.testing.assert_close(shared, repeated)
    weights = attention_weights(queries, keys[:, :1])
    torch.testing.assert_close(shared, weights @ values[:, :1])


def test_no_keys_give_zeros():
    queries, keys, values = some_tensors()
    assert (attend(queries, keys[..., :0, :], values[..., :0, :]) == 0).all()
    assert attention_weights(queries, keys[..., :0, :]).shape == (2, 3, 5, 0)


def test_an_empty_batch_stays_empty():
    queries, keys, values = (t[:0] for t in some_tensors())
    assert attend(queries, keys, values).shape == (0, 3, 5, 13)


def test_dropout_keeps_the_expected_context():
    queries, keys, values = some_tensors(batch=())
    expected = attend(queries, keys, values)
    many = [t.expand(100, *t.shape) for t in (queries, keys, values)]
    draws = [attend(*many, dropout_p=0.3) for _ in range(40)]
    mean = torch.cat(draws).mean(dim=0)
    # the spread of a mean of 4000 draws is about 0.01 here
    torch.testing.assert_close(mean, expected, atol=0.06, rtol=0)
    assert not torch.equal(draws[0], draws[1])


def test_all_weights_may_be_dropped():
    queries, keys, values = some_tensors()
    for ours in (values, keys):  # of another width than keys, and of the same
        assert (attend(queries, keys, ours, dropout_p=1.0) == 0).all()


def test_another_score_is_not_scaled_unless_asked():
    queries, keys, _ = some_tensors()

    def distance(queries, keys):
        return -torch.cdist(queries, keys)

    expected = torch.softmax(distance(queries, keys), dim=-1)
    weights = attention_weights(queries, keys, score=distance)
    torch.testing.assert_close(weights, expected)


def test_inputs_are_left_alone():
    tensors, mask = some_tensors(), blind_mask()
    before = [t.clone() for t in (*tensors, mask)]
    attend(*tensors, mask, causal=True)
    attention_weights(*tensors[:2], mask, causal=True)
    for was, now in zip(before, (*tensors, mask), strict=True):
        assert torch.equal(was, now)


@pytest.mark.parametrize(("arguments", "message"), MISFITS.values(), ids=MISFITS.keys())
def test_attend_refuses_a_misfit_and_names_both_sides(as_importer, arguments, message):
    with pytest.raises(ValueError, match=message):
        attend(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [pair for pair in MISFITS.values() if "values" not in pair[1]],
    ids=[key for key, pair in MISFITS.items() if "values" not in pair[1]],
)
def test_the_oracle_refuses_the_same(as_importer, arguments, message):
    message = message.replace(r"\(2, 3\), \(2, 3\)", "")
    with pytest.raises(ValueError, match=message):
        attention_weights(**{k: v for k, v in arguments.items() if k != "values"})


@pytest.mark.parametrize("dropout_p", [-0.1, 1.1, math.nan])
def test_dropout_must_be_a_probability(as_importer, dropout_p):
    with pytest.raises(
        ValueError, match=said("dropout_p", "from 0 to 1", "got", dropout_p)
    ):
        attend(*some_tensors(), dropout_p=dropout_p)


# The module


def some_module(**options):
    module = SelfAttention(3, 5, **options)
    return module, torch.randn(2, 7, 3)


def test_the_module_equals_pytorchs_multi_head_attention_with_one_head():
    module, x = SelfAttention(5, 5, qkv_bias=True), torch.randn(2, 7, 5)
    peer = nn.MultiheadAttention(5, 1, batch_first=True)
    layers = (module.W_query, module.W_key, module.W_value)
    with torch.no_grad():
        peer.in_proj_weight.copy_(torch.cat([layer.weight for layer in layers]))
        peer.in_proj_bias.copy_(torch.cat([layer.bias for layer in layers]))
        peer.out_proj.weight.copy_(torch.eye(5))
        peer.out_proj.bias.zero_()
    context, weights = peer(x, x, x)
    torch.testing.assert_close(module(x), context)
    torch.testing.assert_close(module.attention_weights(x), weights)


def test_the_weights_of_a_module_are_those_it_uses():
    module, x = some_module()
    mask = blind_mask()[:, :7][torch.tensor([0, 1, 2, 3, 4, 0, 1])]
    context = module.attention_weights(x, mask) @ module.W_value(x)
    torch.testing.assert_close(module(x, mask), context)


def test_a_sequence_without_a_batch_is_welcome():
    module, x = some_module()
    torch.testing.assert_close(module(x)[1], module(x[1]))


def test_bias_is_off_unless_asked_for():
    names = {name for name, _ in some_module()[0].named_parameters()}
    assert names == {"W_query.weight", "W_key.weight", "W_value.weight"}
    assert some_module(qkv_bias=True)[0].W_key.bias is not None


def test_one_token_of_width_one_attends_to_itself():
    module, x = SelfAttention(1, 1), torch.randn(1, 1)
    assert torch.equal(module(x), module.W_value(x))


def test_another_attend_can_be_handed_in():
    def by_hand(queries, keys, values, mask=None, *, causal=False, dropout_p=0.0):
        return attention_weights(queries, keys, mask) @ values

    module, x = some_module(attend=by_hand)
    peer = SelfAttention(3, 5)
    peer.load_state_dict(module.state_dict())
    torch.testing.assert_close(module(x), peer(x))


def test_autocast_is_no_misfit():
    module, x = some_module()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert module(x).dtype == torch.bfloat16
        assert module(x.bfloat16()).dtype == torch.bfloat16


def test_a_module_with_replaced_layers_still_runs():
    class Adapter(nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.inner = layer

        def forward(self, x):
            return self.inner(x)

    module, x = some_module()
    before = module(x)
    module.W_query = Adapter(module.W_query)
    torch.testing.assert_close(module(x), before)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.randn(7, 5), said("x", "(..., length, d_in=3)", "got", "(7, 5)")),
        (torch.randn(3), said("x", "(..., length, d_in=3)", "got", "(3,)")),
        (
            torch.randn(7, 3, dtype=torch.float64),
            said("x", "torch.float32", "weights", "got torch.float64"),
        ),
        (torch.randn(7, 3, device="meta"), said("x", "on cpu", "got", "on meta")),
    ],
)
def test_the_module_refuses_a_misfit(as_importer, x, message):
    module, _ = some_module()
    for use in (module, module.attention_weights):
        with pytest.raises(ValueError, match=message):
            use(x)


@pytest.mark.parametrize("sizes", [(0, 5), (3, -1), (3, 2.5)])
def test_sizes_are_whole_and_positive(as_importer, sizes):
    with pytest.raises(ValueError, match=said("d_", "a whole number", "got")):
        SelfAttention(*sizes)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", ["queries", "keys"])
def test_what_is_no_number_is_noticed_and_a_zero_is_not(bad, place):
    given = {"queries": torch.zeros(2, 5, 3), "keys": torch.zeros(2, 7, 3)}
    assert torch.equal(nan_of(**given), torch.zeros(2, 5, 1))
    given[place][0, 4, 1] = bad
    rows = slice(4, 5) if place == "queries" else slice(None)
    expected = torch.zeros(2, 5, 1)
    expected[0, rows] = math.nan
    assert torch.equal(nan_of(**given).isnan(), expected.isnan())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_nan_query_is_never_answered_by_a_number(dtype):
    for num_keys in range(1, 41):  # the fused call overlooks it up to 15
        queries, keys = torch.randn(2, 1, 2, num_keys, 5, dtype=dtype)
        queries[..., num_keys // 2, 3] = math.nan
        assert attend(queries, keys, keys)[..., num_keys // 2, :].isnan().all()


def test_a_nan_query_among_many_with_few_keys_is_noticed():
    queries, keys = torch.randn(1, 17, 17, 5), torch.randn(1, 17, 3, 5)
    queries[..., 4, 3] = math.nan
    assert attend(queries, keys, keys)[..., 4, :].isnan().all()


def test_more_queries_than_keys_fit_unless_they_are_causal(as_importer):
    queries, keys = torch.randn(7, 3), torch.randn(5, 3)
    assert check_fit(queries, keys, keys) == (7, 5)
    with pytest.raises(ValueError, match=said("causal", "no more queries", "got 7")):
        check_fit(queries, keys, keys, causal=True)


def test_a_table_is_spread_over_the_last_two_axes_alone():
    for shape in ((5, 7), (2, 5, 7), (2, 3, 5, 7)):
        assert spread("mask", torch.ones(1, 1), shape).shape == (5, 7)
    assert spread("mask", torch.ones(2, 1, 7), (2, 5, 7)).shape == (2, 5, 7)


# The weights shown are the weights used


def hardened(queries, keys, values, mask=None, **options):
    return attend(queries, keys, values, mask, scale=5.0, **options)


def windowed(queries, keys, values, mask=None, *, causal=False, dropout_p=0.0):
    i, j = queries.shape[-2], keys.shape[-2]
    near = torch.ones(i, j, dtype=torch.bool).triu(j - i - 1)
    mask = near if mask is None else near & mask
    return attend(queries, keys, values, mask, causal=causal)


def linear(queries, keys, values, mask=None, *, causal=False, dropout_p=0.0):
    """A kernel feature map in the place of softmax: some weights are negative."""
    scores = queries.sin() @ keys.cos().mT
    allowed = visible(scores.shape, mask, causal, queries.device)
    return (scores if allowed is None else scores * allowed) @ values


UNEQUAL = {
    "a scale": partial(attend, scale=5.0),
    "a wrapped scale": hardened,
    "a bias": partial(attend, bias=torch.arange(7.0)),
    "a window": windowed,
    "no softmax": linear,
}


@pytest.mark.parametrize("form", UNEQUAL.values(), ids=UNEQUAL)
@pytest.mark.parametrize("causal", [False, True])
def test_the_weights_of_a_form_times_the_values_are_its_context(form, causal):
    queries, keys, values = some_tensors()
    options = {"mask": some_mask(5, 7), "causal": causal}
    weights = weights_of(form, queries, keys, values, **options)
    context = form(queries, keys, values, **options)
    torch.testing.assert_close(weights @ values, context)
    plain = attention_weights(queries, keys, **options)
    assert not torch.allclose(weights, plain)


@pytest.mark.parametrize("width", [1, 3, 7, 13])
def test_a_form_may_be_made_for_one_width_of_values(width):
    def form(queries, keys, values, mask=None, **options):
        assert values.shape[-1] == width
        return attend(queries, keys, values, mask, **options)

    queries, keys, _ = some_tensors()
    weights = weights_of(form, queries, keys, torch.randn(2, 3, 7, width))
    torch.testing.assert_close(weights, attention_weights(queries, keys))


def largest(queries, keys, values, mask=None, **options):
    return values.amax(dim=-2, keepdim=True).expand(*queries.shape[:-1], -1)


def clipped(queries, keys, values, mask=None, **options):
    return attend(queries, keys, values, mask, **options).relu()


@pytest.mark.parametrize("form", [largest, clipped])
def test_a_form_that_averages_nothing_has_no_weights_to_show(form):
    must = said("attend", "weights @ values", "got", form.__name__)
    with pytest.raises(ValueError, match=must):
        weights_of(form, *some_tensors())


def test_a_form_may_offer_its_weights():
    def form(queries, keys, values, mask=None, **options):
        raise AssertionError("it need not be called")

    form.attention_weights = attention_weights
    queries, keys, values = some_tensors()
    weights = weights_of(partial(form, scale=2.0, dropout_p=0.5), queries, keys, values)
    torch.testing.assert_close(weights, attention_weights(queries, keys, scale=2.0))


def test_weights_that_are_found_can_be_trained():
    queries, keys, values = some_tensors(torch.float64)
    queries.requires_grad_()
    weights = weights_of(hardened, queries, keys, values)
    expected = attention_weights(queries, keys, scale=5.0)
    one, two = (
        torch.autograd.grad(w.square().sum(), queries)[0] for w in (weights, expected)
    )
    torch.testing.assert_close(one, two)


def test_every_form_is_called_by_one_protocol():
    assert isinstance(attend, Attend)
    assert isinstance(partial(attend, scale=5.0), Attend)


# Groups of heads, windows, learned scales


GROUPED = {
    "plain": {},
    "causal": {"causal": True},
    "window": {"causal": True, "window": 2},
    "mask": {"mask": some_mask(2, 1, 5, 7, blind=3)},
    "bias": {"bias": torch.randn(6, 5, 7)},
    "negative scale": {"causal": True, "scale": -0.3},
    "a scale for each head": {"scale": torch.rand(6, 1, 1)},
}


@pytest.mark.parametrize("options", GROUPED.values(), ids=GROUPED)
@pytest.mark.parametrize("lead", [(2,), ()], ids=["batch", "no batch"])
def test_fewer_heads_of_keys_equal_keys_repeated_in_a_row(options, lead):
    queries = torch.randn(*lead, 6, 5, 11)
    keys, values = torch.randn(*lead, 2, 7, 11), torch.randn(*lead, 2, 7, 13)
    options = dict(options)
    if "mask" in options and not lead:
        options["mask"] = options["mask"][0]
    many = [t.repeat_interleave(3, dim=-3) for t in (keys, values)]
    expected = attention_weights(queries, many[0], **options) @ many[1]
    torch.testing.assert_close(attend(queries, keys, values, **options), expected)
    weights = attention_weights(queries, keys, **options)
    torch.testing.assert_close(weights @ many[1], expected)


def by_weights(queries, keys, values, **options):
    return attention_weights(queries, keys, **options) @ values


@pytest.mark.parametrize("form", [attend, by_weights])
@pytest.mark.parametrize("window", [1, 2, 3, 7, 100])
def test_a_window_counts_the_query_itself(form, window):
    queries, keys, values = some_tensors()
    place = torch.arange(5)[:, None] + 2 - torch.arange(7)  # the queries are the last
    mask = (place >= 0) & (place < window)
    assert mask.sum(dim=-1).max() == min(window, 7)
    context = form(queries, keys, values, causal=True, window=window)
    torch.testing.assert_close(context, form(queries, keys, values, mask=mask))


@pytest.mark.parametrize("form", [attend, by_weights])
@pytest.mark.parametrize(
    "options",
    [
        {"window": 3},
        {"window": 0, "causal": True},
        {"window": 2.0, "causal": True},
        {"window": True, "causal": True},
    ],
)
def test_a_window_is_whole_and_of_a_causal_query(as_importer, form, options):
    with pytest.raises(ValueError, match=said("window", "causal=True", "got")):
        form(*some_tensors(), **options)


@pytest.mark.parametrize("scale", [0.0, -1.0, -0.3, 5.0])
@pytest.mark.parametrize("lengths", [(5, 5), (5, 7), (40, 40)])
def test_any_number_may_be_the_scale_of_a_causal_call(scale, lengths):
    queries = torch.randn(2, 3, lengths[0], 16)
    keys, values = torch.randn(2, 2, 3, lengths[1], 16)
    expected = attention_weights(queries, keys, causal=True, scale=scale) @ values
    context = attend(queries, keys, values, causal=True, scale=scale)
    torch.testing.assert_close(
        context, expected, rtol=1e-4, atol=1e-5
    )  # both forms round


@pytest.mark.parametrize("shape", [(), (3, 1, 1)])
@pytest.mark.parametrize("causal", [False, True])
def test_a_learned_scale_is_trained(shape, causal):
    queries, keys, values = some_tensors(torch.float64)
    gradients = []
    for form in (attend, by_weights):
        scale = torch.full(shape, 0.7, dtype=torch.float64, requires_grad=True)
        context = form(queries, keys, values, causal=causal, scale=scale)
        gradients += torch.autograd.grad(context.square().sum(), scale)
    torch.testing.assert_close(*gradients)
    assert (gradients[0] != 0).all()


# Half precision and autocast


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 9, 60])
def test_scores_of_16_bits_are_computed_in_float32(dtype, size):
    queries, keys, values = (size * torch.randn(2, 8, 64).to(dtype) for _ in range(3))
    exact = attention_weights(queries.double(), keys.double()) @ values.double()
    plain = F.scaled_dot_product_attention(queries, keys, values)
    error = (attention_weights(queries, keys) @ values - exact).abs().max()
    assert error <= 2 * (plain - exact).abs().max() + torch.finfo(dtype).eps * size


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [8, 40])
def test_a_large_bias_is_added_in_float32(dtype, causal, length):
    distance = torch.arange(length)[:, None] - torch.arange(length)
    bias = -299.0 - 0.3 * distance.abs()
    queries, keys, values = (torch.randn(2, 3, length, 16).to(dtype) for _ in range(3))
    options = {"causal": causal}
    doubles = [t.double() for t in (queries, keys, values)]
    exact = by_weights(*doubles, bias=bias.double(), **options)
    for context in (
        attend(queries, keys, values, bias=bias, **options),
        by_weights(queries, keys, values, bias=bias, **options),
    ):
        assert context.dtype == dtype
        assert (context - exact).abs().max() <= 4 * torch.finfo(dtype).eps


@pytest.mark.parametrize("length", [1, 5, 15, 16, 17, 40])
def test_under_autocast_dtypes_may_mix_and_the_result_never_depends_on_length(length):
    queries, keys, values = (torch.randn(2, length, 16) for _ in range(3))
    expected = attend(queries, keys, values)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        context = attend(queries.bfloat16(), keys, values)
        weights = attention_weights(queries, keys.bfloat16())
    assert context.dtype == weights.dtype == torch.bfloat16
    torch.testing.assert_close(context.float(), expected, rtol=0.05, atol=0.05)  # bf16


# Second order and forward mode


def test_a_second_derivative_of_the_fused_call_is_refused_in_our_words():
    queries, keys, values = torch.randn(3, 2, 3, 20, 16).unbind()
    queries.requires_grad_()
    total = attend(queries, keys, values).square().sum()
    (gradient,) = torch.autograd.grad(total, queries, create_graph=True)
    with pytest.raises(RuntimeError, match=said("attend", "first derivative", "got")):
        torch.autograd.grad(gradient.sum(), queries)


def test_where_the_call_is_not_fused_there_is_a_second_derivative():
    queries, keys, values = some_tensors(torch.float64, batch=())
    queries.requires_grad_()
    assert torch.autograd.gradgradcheck(lambda q: attend(q, keys, values), queries)


def test_forward_mode_of_the_fused_call_is_refused_in_our_words():
    tensors = torch.randn(3, 2, 3, 20, 16).unbind()
    with pytest.raises(RuntimeError, match=said("attend", "reverse mode", "got")):
        torch.func.jvp(attend, tensors, tensors)


def test_first_derivatives_by_torch_func_equal_those_of_the_oracle():
    queries, keys, values = torch.randn(3, 2, 3, 20, 16).unbind()

    def loss(form):
        return lambda q: form(q, keys, values, causal=True).square().sum()

    one, two = (torch.func.grad(loss(form))(queries) for form in (attend, by_weights))
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)  # both forms round


# What padding holds


@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf, 1e38])
@pytest.mark.parametrize("shape", [(2, 1, 1, 7), (1, 1, 1, 7), (1, 7), (7,)])
def test_what_padding_holds_has_no_effect(junk, shape):
    queries, keys, values = some_tensors()
    mask = torch.arange(7).expand(shape) < 4
    expected = attend(queries, keys, values, mask)
    tensors = [t.clone() for t in (queries, keys, values)]
    for tensor in tensors[1:]:
        tensor[..., 4:, :] = junk
    tensors = [t.requires_grad_() for t in tensors]
    context = attend(*tensors, mask)
    torch.testing.assert_close(context, expected)
    for gradient in torch.autograd.grad(context.square().sum(), tensors):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("length", [5, 20])
def test_a_nan_in_a_key_does_not_reach_the_past(length):
    queries, keys, values = torch.randn(3, 2, 3, length, 16).unbind()
    expected = attend(queries, keys, values, causal=True)
    keys[..., 3, :] = math.nan
    context = attend(queries, keys, values, causal=True)
    torch.testing.assert_close(context[..., :3, :], expected[..., :3, :])
    assert context[..., 3:, :].isnan().all()


def test_grouped_heads_are_compiled_for_sizes_that_change(as_importer):
    torch.compiler.reset()
    options = {"fullgraph": True, "dynamic": True, "backend": "aot_eager"}
    fast = torch.compile(partial(attend, causal=True), **options)
    for batch, length in ((2, 5), (3, 7), (5, 11)):
        queries = torch.randn(batch, 6, length, 16)
        keys, values = torch.randn(2, batch, 2, length, 16)
        expected = attend(queries, keys, values, causal=True)
        torch.testing.assert_close(fast(queries, keys, values), expected)


def operators(*inputs, **options):
    """The operators that `attend` calls for these inputs."""
    from torch.profiler import profile

    with profile() as seen:
        attend(*inputs, **options)
    return {event.key for event in seen.key_averages()}


@pytest.mark.parametrize("heads", [1, 2, 4])
@pytest.mark.parametrize("queries", [1, 7])
def test_shared_heads_and_one_query_keep_the_fused_kernel(heads, queries):
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(3, 4, queries, 8, generator=generator)
    k, v = torch.randn(2, 3, heads, 7, 8, generator=generator)
    by_hand = attention_weights(q, k, causal=True) @ v.repeat_interleave(4 // heads, 1)
    torch.testing.assert_close(attend(q, k, v, causal=True), by_hand)
    called = operators(q, k, v, causal=True)
    if heads < 4 and torch.__version__ < (2, 9):
        pytest.skip("a CPU's kernel knows no groups of heads")
    assert any("flash_attention" in name for name in called)


def test_one_causal_query_needs_no_table():
    q, k = torch.randn(1, 2, 1, 8), torch.randn(1, 2, 7, 8)
    assert not any("tril" in name for name in operators(q, k, k, causal=True))


@pytest.mark.parametrize("dropout_p", [0.0, 1e-12])  # with a kernel, and without
@pytest.mark.parametrize("lead", [(), (2,), (2, 5)])
@pytest.mark.parametrize("shared", [(), (1,), (1, 1)])
def test_keys_that_all_heads_share_may_lack_axes(lead, shared, dropout_p):
    queries = torch.randn(*lead, 3, 7, 11)
    keys, values = torch.randn(2, *shared[: len(lead) + 1], 13, 11)
    for mask in (None, some_mask(3, 7, 13, blind=2), some_mask(7, 13)):
        got = attend(queries, keys, values, mask, dropout_p=dropout_p)
        must = attention_weights(queries, keys, mask) @ values
        torch.testing.assert_close(got, must)


@pytest.mark.parametrize("num_keys", [5, 17])
@pytest.mark.parametrize("num_queries", [1, 5, 17])
@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("causal", [False, True])
def test_a_call_that_leaves_everything_out_equals_one_that_says_all(
    num_keys, num_queries, groups, causal
):
    if causal and num_queries > num_keys:
        pytest.skip("there is no such call")
    queries = torch.randn(2, 6, num_queries, 11)
    keys, values = torch.randn(2, 2, groups, num_keys, 11)
    said_all = {"scale": 11**-0.5, "mask": torch.ones(1, 1, dtype=torch.bool)}
    torch.testing.assert_close(
        attend(queries, keys, values, causal=causal),
        attend(queries, keys, values, causal=causal, **said_all),
    )


@pytest.mark.parametrize("apart", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_queries_that_are_windows_of_one_series_are_read_as_they_are(dtype, apart):
    series = torch.randn(2, 1, 17, dtype=dtype)
    windows = series.unfold(-1, 11, apart).requires_grad_()
    mask = some_mask(*[windows.shape[-2]] * 2)
    for options in ({}, {"causal": True}, {"mask": mask}):
        apart_ = windows.detach().contiguous().requires_grad_()
        contexts = [attend(w, w, w, **options) for w in (windows, apart_)]
        both = zip(contexts, (windows, apart_), strict=True)
        gradients = [torch.autograd.grad(c.sum(), w)[0] for c, w in both]
        for one, other in (contexts, gradients):
            rounding = 8 * torch.finfo(dtype).eps * other.abs().max().item()
            torch.testing.assert_close(one, other, rtol=0, atol=rounding)


@pytest.mark.parametrize("num_keys", [0, 7])
@pytest.mark.parametrize("num_queries", [0, 1, 5])
@pytest.mark.parametrize("table", [None, "mask", "bias", "both"])
def test_values_alone_may_bring_a_batch_axis(table, num_queries, num_keys):
    queries, keys = torch.randn(3, num_queries, 11), torch.randn(3, num_keys, 11)
    values = torch.randn(2, 3, num_keys, 11)
    size = 2, 1, num_queries, num_keys
    mask = torch.rand(size) < 0.5 if table in ("mask", "both") else None
    bias = torch.randn(size) if table in ("bias", "both") else None
    each = [
        attention_weights(
            *(queries, keys, None if mask is None else mask[text]),
            bias=None if bias is None else bias[text],
        )
        @ values[text]
        for text in range(2)
    ]
    context = attend(queries, keys, values, mask, bias=bias)
    torch.testing.assert_close(context, torch.stack(each))


def test_no_heads_of_queries_are_refused_where_keys_have_some_as_in_the_weights():
    queries, keys = torch.randn(1, 0, 3, 8), torch.randn(1, 2, 3, 8)
    for call in (partial(attention_weights, queries, keys), partial(attend, queries)):
        given = (keys, keys) if call.func is attend else ()
        with pytest.raises(ValueError, match=said("queries", "heads", "got")):
            call(*given)
