"""For each property a mechanism with a fault that the property must catch."""

from dataclasses import replace

import torch
from torch.nn import functional as F

from attention import MultiHeadAttention, SelfAttention, attend

from .mechanism import Mechanism
from .mechanisms import CALL, MECHANISMS, distance, with_dropout

BY_NAME = {mechanism.name: mechanism for mechanism in MECHANISMS}


def faulty(name: str, f, **changes) -> Mechanism:
    """A function of queries, keys, values and a mask that is not what it should be."""
    options = CALL | {"covers": attend} | changes
    return Mechanism(name=name, make=lambda sizes, dropout=0.0: f, **options)


def module(name: str, kind, **changes) -> Mechanism:
    """A `kind` in the place of the class from which it inherits."""
    honest = BY_NAME[kind.__mro__[1].__name__]
    return replace(honest, name=name, covers=kind, **changes)


def scores(queries, keys):
    return queries @ keys.mT * queries.shape[-1] ** -0.5


def hide(scores, mask, fill=-torch.inf):
    return scores if mask is None else scores.masked_fill(~mask, fill)


def by_width(queries, keys, values, mask=None):
    return attend(queries, keys, values, mask, scale=1 / (1 + queries.shape[-1]))


def other_polarity(queries, keys, values, mask=None):
    return attend(queries, keys, values, None if mask is None else ~mask)


def neighbour(queries, keys, values, mask=None):
    queries = queries.roll(1, dims=0) if queries.ndim > 2 else queries
    return attend(queries, keys, values, mask)


def in_eight_bits(queries, keys, values, mask=None):
    few = scores(queries, keys).to(torch.float8_e4m3fn).to(queries.dtype)
    return torch.softmax(hide(few, mask, -1e4), dim=-1) @ values


def squeezed(queries, keys, values, mask=None):
    return attend(queries, keys, values, mask).squeeze()


def unshifted(queries, keys, values, mask=None):
    powers = hide(scores(queries, keys), mask).exp()
    return powers / powers.sum(dim=-1, keepdim=True) @ values


def each_alone(queries, keys, values, mask=None):
    return hide(scores(queries, keys), mask).sigmoid() @ values


def one_ahead(queries, keys, values, mask=None):
    i, j = queries.shape[-2], keys.shape[-2]
    past = torch.ones(i, j, dtype=torch.bool).tril(j - i + 1)
    return attend(queries, keys, values, past if mask is None else past & mask)


def maskless(queries, keys, values, mask=None):
    return attend(queries, keys, values)


def undefined(queries, keys, values, mask=None):
    return torch.softmax(hide(scores(queries, keys), mask), dim=-1) @ values


def merely_small(queries, keys, values, mask=None):
    return torch.softmax(hide(scores(queries, keys), mask, -1e9), dim=-1) @ values


def by_place(queries, keys, values, mask=None):
    return attend(queries, keys, values, mask, bias=distance(queries, keys))


def unlearning(queries, keys, values, mask=None):
    return attend(queries, keys.detach(), values, mask)


class Once(torch.autograd.Function):
    """The square, with a first derivative that forgets where it comes from."""

    @staticmethod
    def forward(ctx, x):
        ctx.x = x.detach()
        return x.square()

    @staticmethod
    def backward(ctx, gradient):
        return 2 * ctx.x * gradient


def once(queries, keys, values, mask=None):
    return BY_NAME["attention_weights"].make(None)(
        Once.apply(queries), keys, values, mask
    )


def unguarded(queries, keys, values, mask=None):
    if mask is not None:
        return attend(queries, keys, values, mask)
    return F.scaled_dot_product_attention(queries, keys, values)


def comforting(queries, keys, values, mask=None):
    return attend(queries, keys, values, mask).nan_to_num()


def as_if_contiguous(queries, keys, values, mask=None):
    strides = torch.empty(queries.shape, device="meta").stride()
    return attend(queries.as_strided(queries.shape, strides), keys, values, mask)


def on_cpu(queries, keys, values, mask=None):
    context = attend(queries, keys, values, mask)
    return torch.zeros(context.shape, dtype=context.dtype)


MOOD = torch.Generator()


def moody(queries, keys, values, mask=None):
    return attend(queries, keys, values, mask) + torch.rand((), generator=MOOD)


def in_place(queries, keys, values, mask=None):
    return attend(queries.mul_(0.5), keys, values, mask, scale=2.0)


def borrowing(queries, keys, values, mask=None):
    return values if keys.shape[-2] == 1 else attend(queries, keys, values, mask)


def undecided(queries, keys, values, mask=None):
    context = attend(queries, keys, values, mask)
    return context if context.sum() > 0 else 1 * context


def another_when_traced(queries, keys, values, mask=None):
    scale = 2.0 if torch.compiler.is_compiling() else None
    return attend(queries, keys, values, mask, scale=scale)


class Restless(MultiHeadAttention):
    """Drops weights in evaluation, too."""

    def forward(self, x, mask=None):
        self.train()
        return super().forward(x, mask)


class Shrinking(MultiHeadAttention):
    """Drops weights and does not make up for it."""

    def forward(self, x, mask=None):
        return super().forward(x, mask) * (1 - self.dropout.p)


class Forgetful(SelfAttention):
    """Computes with a number that it does not save."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.gain = torch.rand(()).item()

    def forward(self, x, mask=None):
        return self.gain * super().forward(x, mask)


FAULTS = {
    "oracle": [faulty("scales by the width", by_width)],
    "torchs": [faulty("has the mask the wrong way round", other_polarity)],
    "batch": [faulty("lets a sentence ask for its neighbour", neighbour)],
    "half": [faulty("rounds its scores to eight bits", in_eight_bits)],
    "edges": [faulty("squeezes its result", squeezed)],
    "extreme": [faulty("does not subtract the largest score", unshifted)],
    "rows": [faulty("weighs each key alone", each_alone)],
    "future": [faulty("sees one key ahead", one_ahead, causal=True)],
    "padding": [faulty("forgets the mask", maskless)],
    "blind": [
        faulty("divides zero by zero", undefined),
        faulty("gives a blind query the mean", merely_small),
    ],
    "permutation": [faulty("knows the places", by_place)],
    "nonfinite": [
        faulty("is the bare call", unguarded),
        faulty("writes a zero for a nan", comforting),
    ],
    "gradient": [faulty("forgets the gradient of the keys", unlearning)],
    "second": [faulty("has a first derivative only", once)],
    "strides": [faulty("believes in contiguous queries", as_if_contiguous)],
    "modes": [module("drops in evaluation", Restless, make=with_dropout(Restless))],
    "dropout": [module("does not scale up", Shrinking, make=with_dropout(Shrinking))],
    "copies": [
        module(
            "keeps a number to itself",
            Forgetful,
            make=lambda sizes, dropout=0.0: Forgetful(sizes.d_in, sizes.head_dim),
        )
    ],
    "meta": [faulty("answers from the CPU", on_cpu)],
    "cuda": [faulty("gives other numbers each time", moody)],
    "untouched": [
        faulty("scales the queries in place", in_place),
        faulty("hands out what it was given", borrowing),
    ],
    "compiles": [
        faulty("branches on a number", undecided),
        faulty("computes something else when traced", another_when_traced),
    ],
    "exports": [
        faulty("branches on a number", undecided),
        faulty("computes something else when traced", another_when_traced),
    ],
}
