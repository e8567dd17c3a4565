"""Properties: positions alone say who is where, and the past may be remembered."""

from inspect import isclass

import torch
from examples import Growing
from hypothesis import assume

from .equals import close, equal
from .mechanism import Excuse, accepts
from .suite import sentence


def takes(mechanism, name: str) -> bool:
    covers = mechanism.covers
    return accepts(covers.forward if isclass(covers) else covers, name)


def without(name: str):
    excuse = Excuse(f"takes no {name}", lambda mechanism: not takes(mechanism, name))
    return lambda mechanism: None if takes(mechanism, name) else excuse


def full_mask(case):
    """The mask of the case for every query and key; None if there is none."""
    whole = case.mechanism.masks(case.sizes)
    return None if case.mask is None else case.mask.expand(whole)


@sentence("in pieces equals the whole", excuse=without("cache"))
def pieces(case):
    (x,), f, mask = case.tensors(), case.make(), full_mask(case)
    length, cache, parts, shown = case.sizes.queries, Growing(), [], []
    looking, start = Growing(), 0
    while start < length:
        end = start + case.pick(length - start, low=1)
        part = x[..., start:end, :]
        own = None if mask is None else mask[..., start:end, :end]
        parts.append(f(part, own, cache=cache))
        weights = f.attention_weights(part, own, cache=looking)
        shown.append(torch.nn.functional.pad(weights, (0, length - end)))
        start = end
    equal(torch.cat(parts, dim=-2), f(x, mask), **close(case.dtype))
    whole = f.attention_weights(x, mask)
    equal(torch.cat(shown, dim=-2), whole, **close(case.dtype))


@sentence(
    "tokens that are stored in another order give the same", excuse=without("positions")
)
def stored(case):
    (x,), f, mask = case.tensors(), case.make(), full_mask(case)
    length = case.sizes.queries
    order = torch.randperm(length, generator=case.random)
    assume(length < 2 or not torch.equal(order, order.sort().values))
    positions = order
    if case.pick(1):  # each sentence with positions of its own
        positions = order.expand(*case.sizes.lead, length)
    own = None if mask is None else mask[..., order, :][..., order]
    moved = f(x[..., order, :], own, positions=positions)
    equal(moved, f(x, mask)[..., order, :], **close(case.dtype))
    moved = f.attention_weights(x[..., order, :], own, positions=positions)
    whole = f.attention_weights(x, mask)[..., order, :][..., order]
    equal(moved, whole, **close(case.dtype))
