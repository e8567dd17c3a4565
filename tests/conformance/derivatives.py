"""Properties: the gradients, first and second, are those of the numbers."""

import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.autograd.gradcheck import GradcheckError
from torch.func import functional_call

from attention import attention_weights

from .suite import sentence

DOUBLE = {"dtypes": (torch.float64,)}


def as_function(case, f):
    """`f` as a function of its inputs and its parameters, and what it is given."""
    tensors, mask = case.tensors(), case.mask
    options = {} if mask is None else {"mask": mask}
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


def plainly(queries, keys, values, mask=None, *, causal=False, dropout_p=0.0):
    return attention_weights(queries, keys, mask, causal=causal) @ values


@sentence("gradgradcheck passes in float64, or is refused by the fused call", **DOUBLE)
def second(case):
    f = case.make()
    try:
        must_pass(gradgradcheck, *as_function(case, f))
    except RuntimeError as error:
        if not case.mechanism.fused or "is not implemented" not in str(error):
            raise
    if not isinstance(f, nn.Module) or not case.mechanism.fused:
        return
    for part in f.modules():
        if hasattr(part, "attend"):
            part.attend = plainly
    must_pass(gradgradcheck, *as_function(case, f))
