"""Properties: who may see whom, and what is hidden stays hidden."""

import torch
from hypothesis import assume
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from .cases import HALF, Case, takes_mask
from .equals import by_hand, close, equal
from .mechanism import Excuse, Sizes, softmax
from .suite import sentence


def no_mask(mechanism):
    if not takes_mask(mechanism):
        return Excuse("takes no mask", lambda m: not takes_mask(m))


def with_ones(case):
    """The case's tensors, with 1 as the first number of each value."""
    tensors = case.tensors()
    tensors[-1][..., 0] = 1
    return tensors


def no_softmax(mechanism):
    if mechanism.weigh is not softmax:
        return Excuse("is no softmax: its rows sum to any number", "fails")


@sentence(
    "rows of weights sum to one, or to zero where nothing is seen", excuse=no_softmax
)
def rows(case):
    f, mechanism, tensors = case.make(), case.mechanism, case.tensors()
    seeing = case.allowed().any(dim=-1).to(case.dtype)
    if mechanism.weights is not None:
        weights = mechanism.weights(f, *tensors, **case.options)
        assert (weights >= 0).all()
        equal(weights.sum(dim=-1), seeing.expand(weights.shape[:-1]))
    if not isinstance(f, nn.Module):
        tensors = with_ones(case)
        sums = case.call(f, tensors)[..., 0]
        equal(sums, seeing.expand(sums.shape))


def shows_none(mechanism):
    if mechanism.weights is None:
        return Excuse("has no `weights=` to look at", lambda m: m.weights is None)


@sentence(
    "weights to look at are those used, and zero on what is hidden", excuse=shows_none
)
def looked_at(case):
    f, mechanism, tensors = case.make(), case.mechanism, case.tensors()
    weights = mechanism.weights(f, *tensors, **case.options)
    assert (weights[~case.allowed().expand(weights.shape)] == 0).all()
    values = mechanism.wiring(f, *tensors)[-1]
    equal(mechanism.after(f, weights @ values), case.call(f, tensors))


def sees_the_future(mechanism):
    if not mechanism.causal:
        return Excuse("sees the future on purpose", "fails")


@sentence("the future changes nothing in the past", excuse=sees_the_future, least=2)
def future(case):
    f, sizes, tensors = case.make(), case.sizes, case.tensors()
    now = case.pick(sizes.queries - 2)  # the last query that must not notice
    changed = []
    for read, tensor in zip(case.mechanism.reads, tensors, strict=True):
        ahead = sizes.keys - sizes.queries if read.holds == "keys" else 0
        later = tensor[..., now + ahead + 1 :, :]
        noise = 10 * case.noise(*later.shape)
        changed.append(torch.cat([tensor[..., : now + ahead + 1, :], noise], dim=-2))
    before, after = (case.call(f, t)[..., : now + 1, :] for t in (tensors, changed))
    equal(after, before)


@sentence("padding changes nothing", excuse=no_mask)
def padding(case):
    f, sizes, reads = case.make(), case.sizes, case.mechanism.reads
    more, left = case.pick(3, low=1), bool(case.pick(1))
    mask = case.mask
    full = torch.ones(case.mechanism.masks(sizes), dtype=torch.bool)
    mask = full if mask is None else full & mask
    expected, tensors = case.call(f, mask=mask), []
    for read, tensor in zip(reads, case.tensors(), strict=True):
        junk = 10 * case.noise(*tensor.shape[:-2], more, tensor.shape[-1])
        pair = [junk, tensor] if left else [tensor, junk]
        keep = left and read.holds == "queries"
        tensors.append(tensor if keep else torch.cat(pair, dim=-2))
    hidden = torch.zeros(*mask.shape[:-1], more, dtype=torch.bool)
    mask = torch.cat([hidden, mask] if left else [mask, hidden], dim=-1)
    rows = tensors[0].shape[-2]
    extra = torch.ones(*mask.shape[:-2], rows - sizes.queries, mask.shape[-1])
    pair = [extra.bool(), mask] if left else [mask, extra.bool()]
    mask = torch.cat(pair, dim=-2)
    f = longer(case, f, more)
    padded = case.call(f, tensors, mask)
    start = rows - sizes.queries if left else 0
    equal(padded[..., start : start + sizes.queries, :], expected)


def longer(case, f, more):
    """`f` with room for a longer sequence, and the same weights."""
    if not isinstance(f, nn.Module):
        return f
    sizes = Sizes(**{**vars(case.sizes), "queries": case.sizes.queries + more})
    roomy = Case(case.mechanism, sizes, case.dtype, case.seed).make()
    roomy.load_state_dict(f.state_dict())
    return roomy


@sentence(
    "blind rows give zeros and finite gradients, their own being zero",
    excuse=no_mask,
    masks="blind",
)
def blind(case):
    f, tensors = case.make(), [t.requires_grad_() for t in case.tensors()]
    context = case.call(f, tensors)
    allowed = case.allowed()
    blind = ~allowed.any(dim=-1)
    if case.mechanism.heads:
        blind = blind.all(dim=-2)
    blind = blind.expand(context.shape[:-1])
    values = case.mechanism.wiring(f, *tensors)[-1]
    nothing = case.mechanism.after(
        f, torch.zeros_like((allowed * 1.0).to(values) @ values)
    )
    equal(context[blind], nothing[blind], rtol=0, atol=0)
    inputs = [*tensors, *parameters(f)]
    gradients = torch.autograd.grad(
        context.pow(2).sum(), inputs, retain_graph=True, allow_unused=True
    )
    assert all(g.isfinite().all() for g in gradients if g is not None)
    if not context[blind].requires_grad:
        return
    for gradient in torch.autograd.grad(context[blind].pow(2).sum(), tensors):
        assert (gradient == 0).all()


def parameters(f):
    return [*f.parameters()] if isinstance(f, nn.Module) else []


def ordered(mechanism):
    if mechanism.causal:
        return Excuse("the order counts: causal", "fails")


@sentence(
    "permuted tokens give permuted outputs", excuse=ordered, masks="none", least=2
)
def permutation(case):
    f, sizes, tensors = case.make(), case.sizes, []
    orders = {
        holds: torch.randperm(length, generator=case.random)
        for holds, length in (("queries", sizes.queries), ("keys", sizes.keys))
    }
    orders["both"] = orders["queries"]
    for read, tensor in zip(case.mechanism.reads, case.tensors(), strict=True):
        tensors.append(tensor[..., orders[read.holds], :])
    equal(case.call(f, tensors), case.call(f)[..., orders["queries"], :])


@sentence("a nan or an infinity is never answered by a wrong number")
def nonfinite(case):
    bad = (torch.nan, torch.nan, torch.inf, -torch.inf)[case.pick(3)]
    for number in range(len(case.tensors()) + len(parameters(case.make()))):
        f, tensors = case.make(), case.tensors()
        place = [*tensors, *parameters(f)][number]
        with torch.no_grad():
            if number < len(tensors):
                place = place[tuple(case.pick(n - 1) for n in place.shape[:-1])]
            place.fill_(bad)
            context = case.call(f, tensors).double()
            expected = by_hand(case, f, tensors)
        right = torch.isclose(context, expected, **close(case.dtype))
        assert (right | ~context.isfinite()).all()


def hides_nothing(mechanism):
    if not mechanism.causal and not takes_mask(mechanism):
        return Excuse(
            "takes no mask, and is not causal",
            lambda m: not m.causal and not takes_mask(m),
        )


@sentence("what is hidden has no effect, however large", excuse=hides_nothing)
def hidden(case):
    f, sizes, mechanism = case.make(), case.sizes, case.mechanism
    last = case.pick(sizes.keys - 1)
    if takes_mask(mechanism) and not (mechanism.causal and case.pick(1)):
        mask = torch.ones(mechanism.masks(sizes), dtype=torch.bool)
        mask = mask if case.mask is None else mask & case.mask
        case.mask = mask.index_fill(-1, torch.tensor(last), False)
    unseen = ~case.allowed()[..., last]
    unseen = unseen.all(dim=-2) if mechanism.heads else unseen
    together = any(read.holds == "both" for read in mechanism.reads)
    if together:  # its own context may be any
        unseen = unseen.index_fill(-1, torch.tensor(last), False)
    assume(unseen.any())
    huge = 1e12 if together else 1e30  # its own score is the square, and finite
    outcomes = []
    for number in (None, huge, -huge):
        tensors = case.tensors()
        for read, tensor in zip(mechanism.reads, tensors, strict=True):
            if number is not None and read.holds != "queries":
                tensor[..., last, :] = number
        tensors = [t.requires_grad_() for t in tensors]
        rows = case.call(f, tensors)
        rows = rows[unseen.expand(rows.shape[:-1])]
        inputs = [*tensors, *parameters(f)]
        gradients = torch.autograd.grad(
            rows.square().sum(), inputs, materialize_grads=True
        )
        for read, gradient in zip(mechanism.reads, gradients, strict=False):
            if read.holds != "queries":
                assert (gradient[..., last, :] == 0).all()
        outcomes.append((rows, *gradients))
    for outcome in outcomes[1:]:
        for one, plain in zip(outcome, outcomes[0], strict=True):
            equal(one, plain, **close(case.dtype))
    if not isinstance(f, nn.Module):
        unspoiled(case, f, last, unseen)


def unspoiled(case, f, last, unseen):
    """Not even a nan, or an infinity, among the keys is noticed where it is hidden."""
    queries, keys, values = case.tensors()
    bad = (torch.nan, torch.inf, -torch.inf)[case.pick(2)]
    spoiled = keys.index_fill(-2, torch.tensor(last), bad)
    both = [(queries, some, values) for some in (keys, spoiled)]
    before, after = (case.call(f, [*tensors]) for tensors in both)
    unseen = unseen.expand(before.shape[:-1])
    equal(after[unseen], before[unseen], **close(case.dtype))
    if (weights := case.mechanism.weights) is not None:
        before, after = (weights(f, *tensors, mask=case.mask) for tensors in both)
        unseen = unseen.expand(before.shape[:-1])
        equal(after[unseen], before[unseen])


class Products(TorchDispatchMode):
    """Looks at what enters a product of matrices, forward and backward.

    A kernel may read past the end of a row: a nan in one row reaches the next.
    """

    names = ("mm", "bmm", "addmm", "baddbmm", "dot", "mv", "addmv", "matmul", "_scaled")

    def __torch_dispatch__(self, call, types, args=(), kwargs=None):
        name = call.overloadpacket.__name__
        if name in self.names or name.startswith(self.names[-1]):
            for tensor in args:
                if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
                    assert not tensor.isnan().any(), f"a nan enters {name}"
        return call(*args, **kwargs or {})


@sentence(
    "no nan enters a product, though rows are blind",
    excuse=no_mask,
    masks="blind",
    most=130,
    dtypes=(torch.float32, *HALF),
)
def products(case):
    f, tensors = case.make(), [t.requires_grad_() for t in case.tensors()]
    with Products():
        context = case.call(f, tensors)
        gradients = torch.autograd.grad(context.float().square().sum(), tensors)
    for tensor in (context, *gradients):
        assert tensor.isfinite().all()
