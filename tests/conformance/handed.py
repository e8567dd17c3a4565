"""Properties: what is handed to a module, or put in place of a part of it."""

import copy
import warnings
from functools import wraps

import torch
from torch import nn
from torch.nn import functional as F

from attention import attend, attention_weights, flash_attend
from attention.tools.checks import repeat_kv

from .equals import close, equal
from .mechanism import Excuse, accepts
from .suite import sentence
from .uses import a_function, drops, never_drops

FLOAT = {"dtypes": (torch.float32,)}


def takes_no_form(mechanism):
    if not accepts(mechanism.covers, "attend"):
        return Excuse(
            "takes no form as attend=", lambda m: not accepts(m.covers, "attend")
        )


def handed(f, form):
    """`f` with another form in it."""
    for part in f.modules():
        if hasattr(part, "attend"):
            part.attend = form
    return f


# Forms, unequal to the one that is there already. A form is called by one protocol.


def places(queries, keys):
    """Where queries and keys stand: the queries are the last of the keys."""
    i, j = queries.shape[-2], keys.shape[-2]
    return torch.arange(j - i, j), torch.arange(j)


def hidden(queries, keys, mask, causal):
    seen = torch.ones(queries.shape[-2], keys.shape[-2], dtype=torch.bool)
    seen = seen.tril(keys.shape[-2] - queries.shape[-2]) if causal else seen
    return ~seen if mask is None else ~(seen & mask)


def sharper(queries, keys, values, mask, *, causal, dropout_p):
    options = {"causal": causal, "dropout_p": dropout_p}
    return attend(queries, keys, values, mask, scale=5.0, **options)


def softer(queries, keys, values, mask, *, causal, dropout_p):
    weights = attention_weights(queries, keys, mask, causal=causal, scale=0.01)
    return weights @ repeat_kv(values, queries)


def tiled(queries, keys, values, mask, *, causal, dropout_p):
    tile = {"tile": (2, 3)}
    return flash_attend(queries, keys, values, mask, causal=causal, scale=2.0, **tile)


def near(queries, keys, values, mask, *, causal, dropout_p):
    here, there = places(queries, keys)
    seen = (here[:, None] - there).abs() < 2
    mask = seen if mask is None else mask & seen
    return attend(queries, keys, values, mask, causal=causal, dropout_p=dropout_p)


def sloped(queries, keys, values, mask, *, causal, dropout_p):
    here, there = places(queries, keys)
    heads = queries.shape[-3] if queries.ndim > 2 else 1
    slopes = 0.5 ** torch.arange(heads).view(-1, 1, 1)
    bias = (-slopes * (here[:, None] - there).abs()).to(queries)
    bias = bias if queries.ndim > 2 else bias[0]
    options = {"causal": causal, "dropout_p": dropout_p, "bias": bias}
    return attend(queries, keys, values, mask, **options)


def turned(x, places):
    """The first two numbers of each token, turned by as many radians as its place."""
    cos, sin = places.cos().to(x), places.sin().to(x)
    if x.shape[-1] < 2:
        return x * (1 + sin[:, None])
    a, b, rest = x[..., 0], x[..., 1], x[..., 2:]
    pair = torch.stack([cos * a - sin * b, sin * a + cos * b], dim=-1)
    return torch.cat([pair, rest], dim=-1)


def rotary(queries, keys, values, mask, *, causal, dropout_p):
    here, there = places(queries, keys)
    queries, keys = turned(queries, here), turned(keys, there)
    return attend(queries, keys, values, mask, causal=causal, dropout_p=dropout_p)


def linear(queries, keys, values, mask, *, causal, dropout_p):
    """Kernel features in place of softmax."""
    keys, values = repeat_kv(keys, queries), repeat_kv(values, queries)
    scores = (F.elu(queries) + 1) @ (F.elu(keys) + 1).mT
    scores = scores.masked_fill(hidden(queries, keys, mask, causal), 0)
    return scores / scores.sum(dim=-1, keepdim=True).clamp(min=1e-6) @ values


@wraps(attend)  # which hands on all that the plain form offers
def decorated(queries, keys, values, mask, *, causal, dropout_p):
    options = {"causal": causal, "dropout_p": dropout_p}
    return attend(3 * queries, keys, values, mask, **options)


def rectified(queries, keys, values, mask, *, causal, dropout_p):
    return attend(queries, keys, values, mask, causal=causal).relu()


def largest(queries, keys, values, mask, *, causal, dropout_p):
    """The largest share of all, not their sum."""
    values = repeat_kv(values, queries)
    weights = attention_weights(queries, keys, mask, causal=causal)
    return (weights.unsqueeze(-1) * values.unsqueeze(-3)).amax(dim=-2)


def moved(queries, keys, values, mask, *, causal, dropout_p):
    return attend(queries, keys, values, mask, causal=causal) + 1


LINEAR = (sharper, softer, tiled, near, sloped, rotary, linear, decorated)
OTHERS = (rectified, largest, moved)  # in the values: they have no weights


@sentence(
    "the weights shown are the weights used, whatever form is handed in",
    excuse=takes_no_form,
    **FLOAT,
)
def shown(case):
    form = (*LINEAR, *OTHERS)[case.pick(len(LINEAR) + len(OTHERS) - 1)]
    f, tensors, mechanism = handed(case.make(), form), case.tensors(), case.mechanism
    try:
        weights = mechanism.weights(f, *tensors, **case.options)
    except ValueError as error:
        if form in LINEAR or "weights" not in str(error):
            raise AssertionError(str(error)) from error
        return
    assert weights.shape == torch.broadcast_shapes(weights.shape, case.allowed().shape)
    shared = mechanism.after(f, weights @ case.wired(f)[-1])
    equal(shared, case.call(f, tensors), **close(case.dtype))


@sentence("all call a form by one protocol", excuse=takes_no_form, **FLOAT)
def protocol(case):
    calls, mechanism, dropping = [], case.mechanism, bool(case.pick(1))

    def form(*tensors, **options):
        calls.append((tensors, options))
        return attend(*tensors, **options)

    f = handed(case.make(dropout=0.25), form).train(dropping)
    case.call(f)
    used = len(calls)
    mechanism.weights(f, *case.tensors(), **case.options)
    expected = 0.25 if dropping and drops(mechanism) else 0.0
    for number, (tensors, options) in enumerate(calls):
        assert len(tensors) == 4, "queries, keys, values and the mask, by position"
        assert tensors[3] is case.mask
        dropout_p = expected if number < used else 0.0  # what is shown drops nothing
        told = {"causal": mechanism.causal, "dropout_p": dropout_p}
        assert options == told, f"by keyword: {told}, got {options}"
    assert used


@sentence(
    "dropout's own flag decides, as that of nn.Dropout does",
    excuse=lambda mechanism: a_function(mechanism) or never_drops(mechanism),
    **FLOAT,
)
def switch(case):
    f = case.make(dropout=0.5)
    expected, form = case.call(case.make().eval()), case.pick(3)
    nothing = torch.zeros_like((case.allowed() * 1.0) @ case.wired(f)[-1])
    nothing = case.mechanism.after(f, nothing)
    f.train(form == 1 or bool(case.pick(1)))
    for part in [part for part in f.modules() if hasattr(part, "dropout")]:
        part.dropout.train(form != 0)
        if form == 1:
            part.dropout = nn.Identity()
        if form == 2:
            part.dropout.p = 1.0  # all weights are dropped
        if form == 3:
            part.dropout = nn.Dropout(1.0).train()
    equal(case.call(f), nothing if form >= 2 else expected)
    shown = f.attention_weights(*case.tensors(), **case.options)
    equal(shown, case.make().attention_weights(*case.tensors(), **case.options))


class Wrapped(nn.Module):
    """A layer around a layer, as adapters are: it has no weight of its own."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x)


class WithNone(Wrapped):
    weight = None


class WithMethod(Wrapped):
    def weight(self):
        return self.inner.weight


def quantized(f):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a deprecation; it is in use
        return torch.ao.quantization.quantize_dynamic(f, {nn.Linear}, dtype=torch.qint8)


@sentence(
    "its layers may be wrapped, or dynamically quantised", excuse=a_function, **FLOAT
)
def wrapped(case):
    f, kinds = case.make().eval(), (Wrapped, WithNone, WithMethod)
    expected, form = case.call(f).detach(), case.pick(len(kinds))
    other = copy.deepcopy(f)
    if form < len(kinds):
        for part in [part for part in other.modules() if not isinstance(part, Wrapped)]:
            for name, layer in list(part.named_children()):
                if isinstance(layer, nn.Linear):
                    setattr(part, name, kinds[form](layer))
        near = {}
    else:
        other, near = quantized(other), {"rtol": 0.0, "atol": 0.2}  # 8 bits
    try:
        equal(case.call(other), expected, **near)
        reads = case.tensors()
        reads = reads[:2] if len(reads) == 3 else reads
        other.attention_weights(*reads, **case.options)
    except (AttributeError, TypeError, RuntimeError) as error:
        raise AssertionError(str(error)) from error
