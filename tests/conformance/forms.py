"""Properties: what the options of a form do, asked of all forms alike."""

from inspect import isclass

import pytest
import torch
from hypothesis import assume
from torch import Tensor

from . import peers
from .cases import EXACT, HALF, takes_mask
from .equals import close, equal, no_peer
from .mechanism import Excuse, accepts, scaled, softmax
from .mechanisms import MECHANISMS, weighed_form
from .suite import sentence


def no(option: str):
    """The excuse of a form that takes no such option, or is asked in another entry."""

    def takes_it(mechanism):
        return mechanism.form is not None and accepts(mechanism.form, option)

    def elsewhere(mechanism):
        entries = (m for m in MECHANISMS if m.covers is mechanism.covers)
        asked = isclass(mechanism.covers) or any(map(takes_it, entries))
        return not accepts(mechanism.covers, option) or asked

    why = f"takes no {option}, or its plain form is asked, or the form in its slots"
    form = "a call (queries, keys, values, mask, *, causal), like the function itself"
    remedy = f"give it `form=`, {form}, or an Excuse in `excused=`"
    excuse = Excuse(why, elsewhere, remedy)
    return lambda mechanism: None if takes_it(mechanism) else excuse


def table(
    queries, keys, values, allowed, scale=None, bias=None, score=scaled, weigh=softmax
):
    """The plain table; of a bias, what is hidden is not even read."""
    own = score(None, queries, keys) if scale is None else scale * (queries @ keys.mT)
    scores = own if bias is None else own + bias.masked_fill(~allowed, 0)
    return weigh(scores, allowed).to(values.dtype) @ values


def same(case, tensors, mask, allowed, extra=None, **options):
    """Numbers and gradients of the form, of all that is given, are the table's."""
    outcomes, mechanism = [], case.mechanism
    for form in (mechanism.form, table):
        exact = form is table
        leaves, given = [], {}

        def leaf(thing, exact=exact, leaves=leaves):
            if not isinstance(thing, Tensor):
                return thing
            copy = thing.detach().clone()
            leaves.append((copy.double() if exact else copy).requires_grad_())
            return leaves[-1]

        three = [leaf(t) for t in tensors]
        given = {name: leaf(option) for name, option in options.items()}
        if exact:
            heads = three[0].shape[-3] if three[0].ndim > 2 else 1
            three[1:] = [served(t, heads) for t in three[1:]]
            given |= {"score": mechanism.score, "weigh": mechanism.weigh}
            context = form(*three, allowed, **given)
        else:
            causal = {"causal": mechanism.causal} | (extra or {})
            context = form(*three, mask, **causal, **given)
        gradients = torch.autograd.grad(
            context.square().sum(), leaves, materialize_grads=True
        )
        outcomes.append((context, *gradients))
    largest = max((t.abs().max().item() for t in outcomes[1] if t.numel()), default=0.0)
    near = close(case.dtype)
    near["atol"] *= max(1.0, largest)  # a sum may be 0 whose terms are not
    for ours, exact in zip(*outcomes, strict=True):
        assert ours.dtype == case.dtype
        equal(ours.double(), exact, **near)


def served(tensor: Tensor, heads: int) -> Tensor:
    """Keys or values, each repeated for the query heads in a row that it serves."""
    if tensor.ndim < 3 or tensor.shape[-3] in (0, 1, heads):
        return tensor
    return tensor.repeat_interleave(heads // tensor.shape[-3], dim=-3)


@sentence(
    "a bias that is hidden has no effect, be it nan or infinite",
    excuse=no("bias"),
    dtypes=EXACT,
)
def hidden_bias(case):
    allowed, extra, sizes = case.allowed(), {}, case.sizes
    windowed = accepts(case.mechanism.form, "window")
    if windowed and sizes.queries <= sizes.keys and case.pick(2) == 0:  # hidden by it
        extra = {"causal": True, "window": case.pick(sizes.keys, low=1)}
        allowed = within(case, **extra)
    assume(not allowed.all())
    bias = case.noise(*allowed.shape)
    bad = (torch.nan, torch.inf, -torch.inf, 1e30)[case.pick(3)]
    bias = bias.masked_fill(~allowed, bad)
    same(case, case.tensors(), case.mask, allowed, extra, bias=bias)


def within(case, window, causal=True):
    """Where a query may see a key, of so many that end at its own place."""
    earlier = case.sizes.keys - case.sizes.queries
    return case.allowed().tril(earlier).triu(earlier - window + 1)


@sentence("a scale may be negative, zero or large", excuse=no("scale"), dtypes=EXACT)
def scale(case):
    number = (-1.5, -0.2, 0.0, 12.0)[case.pick(3)]
    same(case, case.tensors(), case.mask, case.allowed(), scale=number)


@sentence(
    "a scale may be learned, one for each head too", excuse=no("scale"), dtypes=EXACT
)
def learned(case):
    heads, tensors = case.sizes.lead[-1:], case.tensors()
    axes = (*heads, 1, 1) if heads and case.pick(1) else ()
    learned = case.pick(2) - 1 + case.noise(*axes)
    same(case, tensors, case.mask, case.allowed(), scale=learned)


def errs_little(case, tensors, **options):
    """At most twice as much as PyTorch's plain path, in the same half precision."""
    allowed, values = case.allowed(), tensors[-1]
    doubles = {name: bias.double() for name, bias in options.items()}
    exact = table(*(t.double() for t in tensors), allowed, **doubles)
    with torch.no_grad():
        plain = (peers.by_call(None, tensors, allowed, **options) - exact).abs()
        causal = case.mechanism.causal
        context = case.mechanism.form(*tensors, case.mask, causal=causal, **options)
    assert context.dtype == case.dtype
    assert context.isfinite().all()
    slack = torch.finfo(case.dtype).eps * values.abs().max()  # two roundings
    error, allowed = (context - exact).abs().max(), 2 * plain.max() + slack
    assert error <= allowed, f"an error of {error:.2g}, above {allowed:.2g}"


SEEING = {"masks": "seeing", "dtypes": HALF}


@sentence(
    "in half precision loud inputs err at most twice as much as in PyTorch",
    excuse=lambda mechanism: no("causal")(mechanism) or no_peer(mechanism),
    **SEEING,
)
def loud(case):
    factor, times = (9, 60)[case.pick(1)], 64 // case.sizes.head_dim
    # So wide that q·k exceeds float16:
    wide = [t.repeat_interleave(times, dim=-1) for t in case.tensors()]
    queries, keys, values = wide
    errs_little(case, (factor * queries, factor * keys, values))


@sentence(
    "a float32 bias beside 16 bits is added in float32",
    excuse=lambda mechanism: no("bias")(mechanism) or no_peer(mechanism),
    **SEEING,
)
def wide_bias(case):
    noise = case.noise(*case.allowed().shape[-2:]).float()
    bias = -297 - 4 * noise.sigmoid()  # ALiBi's of far keys; -299 is -300 in bfloat16
    errs_little(case, case.tensors(), bias=bias)


@sentence(
    "each key head serves query heads in a row", excuse=no("causal"), dtypes=EXACT
)
def grouped(case):
    sizes, mechanism = case.sizes, case.mechanism
    tensors, some = in_groups(case)
    *lead, shared, _, _ = tensors[1].shape
    allowed = torch.ones(sizes.queries, sizes.keys, dtype=torch.bool)
    if mechanism.causal:
        allowed = allowed.tril(sizes.keys - sizes.queries)
    mask = some if takes_mask(mechanism) and case.pick(1) else None
    same(case, tensors, mask, allowed if mask is None else allowed & mask)
    if shared > 1:
        odd = case.noise(*lead, shared + 1, sizes.queries, sizes.head_dim)
        refused(case, odd, *tensors[1:])


def in_groups(case):
    """Queries, and keys and values of fewer heads; and a mask for each query head."""
    sizes = case.sizes
    shared, times = case.pick(3, low=1), case.pick(3, low=2)
    lead = (2,)[: case.pick(1)]
    shapes = {
        "queries": (shared * times, sizes.queries, sizes.head_dim),
        "keys": (shared, sizes.keys, sizes.head_dim),
        "values": (shared, sizes.keys, sizes.d_value),
    }
    tensors = [case.noise(*lead, *shape) for shape in shapes.values()]
    table = (shared * times, sizes.queries, sizes.keys)
    return tensors, torch.rand(table, generator=case.random) < 0.8


def no_mask_or_no_values(mechanism):
    if mechanism.form is weighed_form:
        return Excuse("gives weights, with which all values are multiplied", "fails")
    return no("mask")(mechanism)


@sentence(
    "keys and values that no query may see may hold anything",
    excuse=no_mask_or_no_values,
    dtypes=EXACT,
)
def unseen(case):
    tensors, mask = in_groups(case)
    bad = (torch.nan, torch.inf, -torch.inf)[case.pick(2)]
    place = torch.tensor(case.pick(case.sizes.keys - 1))
    mask = mask.index_fill(-1, place, False)
    outcomes = []
    for number in (0.0, bad):
        queries, *both = tensors
        given = [queries, *(t.index_fill(-2, place, number) for t in both)]
        given = [t.requires_grad_() for t in (t.detach().clone() for t in given)]
        context = case.mechanism.form(*given, mask, causal=case.mechanism.causal)
        gradients = torch.autograd.grad(context.square().sum(), given)
        outcomes.append((context, *gradients))
    for one, plain in zip(*outcomes, strict=True):
        equal(one, plain, msg=cleared, **close(case.dtype))


def cleared(difference):
    """How a form keeps it, or its entry says that it does not."""
    call = "`clear_unseen` of attention/core/scaled_dot_product.py writes zeros there"
    excuse = '`excused={"unseen": Excuse(why, "fails")}`'
    return f"{difference}\n{call}; if that is not for this form, {excuse}"


def refused(case, *tensors, **options):
    """By a sentence: what does not fit is a ValueError."""
    try:
        with pytest.raises(ValueError, match=r"\w+: expected .*, got"):
            case.mechanism.form(*tensors, **options)
    except pytest.fail.Exception as error:
        raise AssertionError(str(error)) from None


@sentence(
    "a window counts the query itself, and needs causal",
    excuse=no("window"),
    dtypes=EXACT,
)
def window(case):
    sizes, tensors = case.sizes, case.tensors()
    assume(sizes.queries <= sizes.keys)
    window = case.pick(sizes.keys + 1, low=1)
    extra = {"causal": True, "window": window}
    same(case, tensors, case.mask, within(case, **extra), extra)
    refused(case, *tensors, window=window)
    refused(case, *tensors, window=0, causal=True)
