"""Properties: the gradients, first and second, are those of the numbers."""

import re
import warnings
from contextlib import contextmanager

import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.gradcheck import GradcheckError
from torch.func import functional_call

from attention import attention_weights
from attention.tools.checks import repeat_kv

from .equals import equal
from .suite import sentence

with warnings.catch_warnings():  # PyTorch warns of itself when it is first asked
    warnings.simplefilter("ignore", DeprecationWarning)
    import torch._decomp.decompositions_for_jvp

DOUBLE = {"dtypes": (torch.float64,)}


def as_function(case, f):
    """`f` as a function of its inputs and its parameters, and what it is given."""
    tensors, options = case.tensors(), case.options
    if not isinstance(f, nn.Module):
        inputs = tuple(t.requires_grad_() for t in tensors)
        return lambda *tensors: f(*tensors, **options), inputs
    names, parameters = zip(*f.named_parameters(), strict=True)
    count = len(tensors)

    def call(*inputs):
        state = dict(zip(names, inputs[count:], strict=True))
        return functional_call(f, state, inputs[:count], options)

    inputs = (*tensors, *(p.detach() for p in parameters))
    return call, tuple(t.requires_grad_() for t in inputs)


def must_pass(check, call, inputs):
    try:
        check(call, inputs, fast_mode=True)
    except GradcheckError as error:
        raise AssertionError(str(error)) from None


@sentence("gradcheck passes in float64", **DOUBLE)
def gradient(case):
    must_pass(gradcheck, *as_function(case, case.make()))


def must_be_ours(error, mechanism):
    """What is fused may refuse, in words that begin with a name of ours."""
    names = (mechanism.covers.__name__, "attend", "flash_attend", "triton_attend")
    ours = re.match(rf"({'|'.join(names)})\b", str(error))
    if not (mechanism.fused and ours):
        raise AssertionError(f"{type(error).__name__}: {error}") from error


def plainly(queries, keys, values, mask=None, *, causal=False, dropout_p=0.0, **more):
    weights = attention_weights(queries, keys, mask, causal=causal, **more)
    return weights @ repeat_kv(values, queries)


@sentence("gradgradcheck passes in float64, or is refused by a sentence", **DOUBLE)
def second(case):
    f = case.make()
    try:
        must_pass(gradgradcheck, *as_function(case, f))
    except RuntimeError as error:
        must_be_ours(error, case.mechanism)
    if not isinstance(f, nn.Module) or not case.mechanism.fused:
        return
    for part in f.modules():
        if hasattr(part, "attend"):
            part.attend = plainly
    must_pass(gradgradcheck, *as_function(case, f))


@contextmanager
def no_error():
    """What PyTorch's transforms refuse is a property that fails."""
    try:
        with warnings.catch_warnings():
            slow = "There is a performance drop"  # what maps itself by a loop
            warnings.filterwarnings("ignore", slow, UserWarning)
            yield
    except (RuntimeError, NotImplementedError, ValueError) as error:
        raise AssertionError(f"{type(error).__name__}: {error}") from error


def as_plain(case, f):
    """The function, and the plain table that it should equal, of the inputs alone."""
    allowed = case.allowed()
    return (
        lambda *tensors: case.call(f, tensors),
        lambda *tensors: case.mechanism.plain(f, tensors, allowed),
    )


def squared(call):
    return lambda *tensors: call(*tensors).square().sum()


@sentence("torch.func gives its derivatives, and maps it over a batch", **DOUBLE)
def transforms(case):
    f, tensors = case.make(), case.tensors()
    every, form, one = tuple(range(len(tensors))), case.pick(4), case.pick(99)
    cotangent, copies = case.noise(*case.call(f).shape), case.pick(2, low=1)
    many = [t + case.noise(copies, *t.shape) for t in tensors]
    results = []
    with no_error():
        for call in as_plain(case, f):
            if form == 0:
                result = torch.func.grad(squared(call), every)(*tensors)
            elif form == 1:
                result = torch.func.vjp(call, *tensors)[1](cotangent)
            elif form == 2:
                result = torch.func.jacrev(call, one % len(every))(*tensors)
            elif form == 3:
                result = torch.func.vmap(call)(*many)
            else:
                result = torch.func.vmap(torch.func.grad(squared(call), every))(*many)
            results.append(result)
    equal(*results)


@sentence("forward mode and second order are right, or refused by a sentence", **DOUBLE)
def beyond(case):
    f, tensors = case.make(), case.tensors()
    form, tangents = case.pick(2), tuple(case.noise(*t.shape) for t in tensors)
    ours, plain = as_plain(case, f)

    def asked(call):
        if form == 0:
            return torch.func.jvp(call, tuple(tensors), tangents)[1]
        gradient = torch.func.grad(squared(call))
        if form == 1:
            return torch.func.jvp(gradient, tuple(tensors), tangents)[1]
        along = lambda *t: (gradient(*t) * tangents[0]).sum()  # noqa: E731
        return torch.func.grad(along)(*tensors)

    try:
        result = asked(ours)
    except (RuntimeError, NotImplementedError) as error:
        must_be_ours(error, case.mechanism)
        return
    equal(result, asked(plain))
