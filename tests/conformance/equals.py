"""Properties: the numbers are right, whatever the sizes and the precision."""

import copy

import torch
from hypothesis import assume
from torch import nn

from .cases import EXACT, HALF, Case
from .mechanism import Excuse, Sizes, softmax
from .suite import sentence

equal = torch.testing.assert_close


def by_hand(case: Case, f, tensors=None):
    """What the oracle gives, in float64, of the numbers that `f` was given."""
    tensors = case.tensors() if tensors is None else tensors
    f = copy.deepcopy(f).double() if isinstance(f, nn.Module) else f
    doubles = [t.double() for t in tensors]
    return case.mechanism.by_hand(f, doubles, case.allowed())


@sentence("equals the by-hand oracle in float64")
def oracle(case):
    f = case.make()
    equal(case.call(f).double(), by_hand(case, f), msg=wired, **close(case.dtype))


def wired(difference):
    """What an entry may lack whose mechanism is right."""
    fields = "scores by `score=`, weights by `weigh=` where they are no softmax"
    return f"{difference}\nThe oracle computes what the entry says: {fields}"


def close(dtype):
    """The default tolerance of `dtype`, for numbers that are compared in float64."""
    return {
        torch.float64: {"rtol": 1e-7, "atol": 1e-7},
        torch.float32: {"rtol": 1e-4, "atol": 1e-5},
    }[dtype]


def no_peer(mechanism):
    if mechanism.peer is None:
        why = "no softmax of scaled dot products: PyTorch has no such call"
        remedy = (
            "give it `peer=`, as CALL does, or `weigh=` if its weights are no softmax"
        )
        return Excuse(why, has_no_call, remedy)


def has_no_call(mechanism) -> bool:
    """Has it no softmax, or other scores than scale · queries · keys + a bias by place?

    The bias is the same for all numbers: the difference of two tables has none.
    """
    if mechanism.weigh is not softmax:
        return True
    scores, products = [], []
    for seed in (0, 1):
        sizes = mechanism.fits(Sizes(head_dim=4, d_in=4, d_context=4))
        f = Case(mechanism, sizes, torch.float64, 0).make()
        queries, keys, _ = Case(mechanism, sizes, torch.float64, seed).wired(f)
        scores.append(mechanism.score(f, queries, keys))
        products.append(queries @ keys.mT)
    score, product = scores[0] - scores[1], products[0] - products[1]
    scale = (score * product).sum() / product.square().sum()
    return not torch.allclose(score, scale * product)


@sentence("equals PyTorch's own", excuse=no_peer, square=True, masks="seeing")
def torchs(case):
    f = case.make()
    with torch.no_grad():
        expected = case.mechanism.peer(f, case.tensors(), case.allowed())
    equal(case.call(f).detach(), expected)


@sentence("a batch of n equals n batches")
def batch(case):
    f, lead = case.make(), case.sizes.lead
    tensors = [t.expand(*lead, *t.shape[-2:]) for t in case.tensors()]
    masks = case.mechanism.masks(case.sizes)
    mask = None if case.mask is None else case.mask.expand(masks)
    together = case.call(f)
    for where in places(lead):
        alone = case.call(
            f, [t[where] for t in tensors], None if mask is None else mask[where]
        )
        equal(together[where], alone)


def places(lead):
    return [tuple(where.tolist()) for where in torch.ones(lead).nonzero()]


@sentence("in half precision errs at most twice as much as the plain form", dtypes=HALF)
def half(case):
    f, tensors, allowed = case.make(), case.tensors(), case.allowed()
    exact = by_hand(case, f)
    with torch.no_grad():
        plain = (case.mechanism.plain(f, tensors, allowed) - exact).abs()
        error = (case.call(f) - exact).abs()
    assert case.call(f).dtype == case.dtype
    if error.numel():  # few numbers: the plain form may be right by chance
        sizes = [t.abs().max() for t in (exact, *case.mechanism.wiring(f, *tensors))]
        rounding = torch.finfo(case.dtype).eps * max(sizes)
        assert error.max() <= 2 * plain.max() + 2 * rounding


@sentence(
    "is right for d_in ≠ d_out, odd sizes, a length of 1 and a batch of 0", edges=True
)
def edges(case):
    f = case.make()
    equal(case.call(f).double(), by_hand(case, f), **close(case.dtype))


def loud(case, f, tensors):
    """What scores grow with: a weight of the module, or else the first input."""
    named = dict(f.named_parameters()) if isinstance(f, nn.Module) else {}
    if "v" in named:
        return [named["v"].data]
    return [p.data for name, p in named.items() if "W_query" in name] or tensors[:1]


def largest_score(case, f, tensors):
    queries, keys, _ = case.mechanism.wiring(f, *tensors)
    return case.mechanism.score(f, queries, keys).abs().max().item()


@sentence("scores of ±1e4 stay finite, gradients too", dtypes=(*EXACT, *HALF))
def extreme(case):
    f, tensors = case.make(), case.tensors()
    grown = loud(case, f, tensors)
    originals, low, high = [t.clone() for t in grown], 0.0, 1e6
    with torch.no_grad():
        for _ in range(26):  # bisection: not every score is proportional to an input
            factor = (low + high) / 2
            for tensor, original in zip(grown, originals, strict=True):
                tensor.copy_(factor * original)
            if largest_score(case, f, tensors) < 1e4:
                low = factor
            else:
                high = factor
        assume(8e3 <= largest_score(case, f, tensors) <= 1.2e4)  # none overflowed
    tensors = [t.requires_grad_() for t in tensors]
    context = case.call(f, tensors)
    assert context.isfinite().all()
    for gradient in torch.autograd.grad(context.float().pow(2).sum(), tensors):
        assert gradient.isfinite().all()
