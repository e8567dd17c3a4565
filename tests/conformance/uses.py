"""Properties: what a user does with a mechanism changes nothing in its numbers."""

import copy
import io
import pickle
from dataclasses import replace
from inspect import isclass

import torch
from torch import nn

from .cases import EXACT, HALF, Case
from .equals import equal
from .mechanism import Excuse, accepts
from .suite import sentence


def a_function(mechanism):
    if not isclass(mechanism.covers):
        return Excuse("a function: it has no state", lambda m: not isclass(m.covers))


def scattered(tensor, form):
    """The same numbers, not side by side in memory."""
    if form == 0 and tensor.ndim > 1:
        return tensor.mT.contiguous().mT
    wide = tensor.new_zeros(*tensor.shape[:-1], 2 * tensor.shape[-1])
    wide[..., ::2] = tensor
    return wide[..., ::2]


@sentence("inputs need not be contiguous")
def strides(case):
    f = case.make()
    tensors = [scattered(t, case.pick(1)) for t in case.tensors()]
    mask = None if case.mask is None else scattered(case.mask, case.pick(1))
    equal(case.call(f, tensors, mask), case.call(f))


@sentence("train and eval differ by dropout alone", excuse=a_function)
def modes(case):
    plain, dropping = case.make(), case.make(dropout=0.5)
    expected = case.call(plain.train())
    equal(case.call(plain.eval()), expected)
    equal(case.call(dropping.eval()), expected)


def never_drops(mechanism):
    if not drops(mechanism):
        return Excuse("takes neither dropout nor dropout_p", lambda m: not drops(m))


def drops(mechanism):
    return any(accepts(mechanism.covers, name) for name in ("dropout", "dropout_p"))


@sentence("dropout keeps the expectation", excuse=never_drops)
def dropout(case):
    count, plain = 2000, case.make()
    tensors = [t.expand(count, *t.shape) for t in case.tensors()]
    with torch.no_grad():
        draws = case.call(case.make(dropout=0.3), tensors).double()
        expected = case.call(plain).double()
    spread = draws.std(dim=0) / count**0.5
    assert ((draws.mean(dim=0) - expected).abs() <= 6 * spread + 1e-6).all()
    if case.allowed().any():
        assert spread.max() > 0


@sentence("a state dict, a deep copy and a pickle compute the same", excuse=a_function)
def copies(case):
    f = case.make()
    expected = case.call(f)
    other = Case(case.mechanism, case.sizes, case.dtype, case.seed + 1).make()
    file = io.BytesIO()
    torch.save(f.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    for twin in (other, copy.deepcopy(f), pickle.loads(pickle.dumps(f))):
        equal(case.call(twin), expected, rtol=0, atol=0)
        held = {p.data_ptr() for p in f.parameters()}
        assert not held & {p.data_ptr() for p in twin.parameters()}


@sentence("the meta device gives the shapes", dtypes=(*EXACT, *HALF))
def meta(case):
    expected = case.call(case.make())
    tensors = [t.to("meta") for t in case.tensors()]
    mask = None if case.mask is None else case.mask.to("meta")
    context = case.call(case.make(device="meta"), tensors, mask)
    assert context.device.type == "meta"
    assert (context.shape, context.dtype) == (expected.shape, expected.dtype)


def device():
    return "cuda" if torch.cuda.is_available() else "cpu"


@sentence("CUDA gives the numbers of the CPU")
def cuda(case):
    expected = case.call(case.make())
    tensors = [t.to(device()) for t in case.tensors()]
    mask = None if case.mask is None else case.mask.to(device())
    context = case.call(case.make(device=device()), tensors, mask).cpu()
    equal(context, expected, rtol=1e-4, atol=1e-5)  # other kernels, other roundings


@sentence("inputs are never changed in place", dtypes=(*EXACT, *HALF))
def untouched(case):
    f, tensors, mask = case.make(), case.tensors(), case.mask
    read = [t for t in (*tensors, mask) if t is not None]
    if isinstance(f, nn.Module):
        read += [*f.parameters(), *f.buffers()]
    before = [t.clone() for t in read]
    with torch.no_grad():
        context = case.call(f, tensors)
    for was, now in zip(before, read, strict=True):
        assert torch.equal(was, now)
    held = {t.untyped_storage().data_ptr() for t in read if t.numel()}
    assert context.untyped_storage().data_ptr() not in held or not context.numel()


LENGTHS = (1, 5, 15, 16, 17, 40)


@sentence(
    "under autocast it mixes dtypes, and gives the same one at all lengths",
    dtypes=(torch.float32,),
    masks="none",
)
def autocast(case):
    low = [bool(case.pick(1)) for _ in case.mechanism.reads]
    short, long = case.pick(2), case.pick(5, low=3)  # PyTorch has two kernels
    for length in (LENGTHS[short], LENGTHS[long]):
        sizes = replace(case.sizes, queries=length, keys=length)
        this = Case(case.mechanism, sizes, torch.float32, case.seed)
        f, mixed = this.make(), this.tensors()
        mixed = [t.bfloat16() if few else t for t, few in zip(mixed, low, strict=True)]
        with torch.no_grad():
            exact = this.call(f, [t.float() for t in mixed])
        mixed = [t.requires_grad_() for t in mixed]
        try:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                context = this.call(f, mixed)
            gradients = torch.autograd.grad(context.float().sum(), mixed)
        except (ValueError, RuntimeError) as error:
            raise AssertionError(f"{type(error).__name__}: {error}") from error
        assert context.dtype == torch.bfloat16, context.dtype
        assert all(gradient.isfinite().all() for gradient in gradients)
        near = 0.1 * max(1.0, exact.abs().max().item())
        equal(context.float(), exact, rtol=0.0, atol=near)
