"""For each property a mechanism with a fault that the property must catch."""

from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional as F

from attention import (
    Attention,
    MultiHeadAttention,
    SelfAttention,
    attend,
    attention_weights,
)

from .derivatives import plainly
from .forms import served, table
from .mechanism import Mechanism
from .mechanisms import CALL, MECHANISMS, distance, with_dropout, with_slots

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


def unmasked(f, queries, keys, values, mask=None):
    return attention_weights(queries, keys)


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


def by_adding(queries, keys, values, mask=None):
    scores = queries @ keys.mT
    scores = scores if mask is None else scores + torch.where(mask, 0.0, -1e9)
    return scores.softmax(dim=-1) @ values


def mended_late(queries, keys, values, mask=None):
    context = torch.softmax(hide(scores(queries, keys), mask), dim=-1) @ values
    return context if mask is None else context.masked_fill(~mask.any(-1)[..., None], 0)


class Forward(torch.autograd.Function):
    """The identity, in the old style, which `torch.func` refuses."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Backward(Forward):
    """The identity, which has no forward mode and does not say so."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass


def in_the_old_style(queries, keys, values, mask=None):
    return plainly(Forward.apply(queries), keys, values, mask)


def backward_only(queries, keys, values, mask=None):
    return plainly(Backward.apply(queries), keys, values, mask)


def wide_when_short(queries, keys, values, mask=None):
    context = (queries @ keys.mT).mul(queries.shape[-1] ** -0.5).softmax(-1) @ values
    return context.float() if keys.shape[-2] < 16 else context


# Forms: (queries, keys, values, mask, **options), right but for one option


def form(queries, keys, values, mask=None, *, causal=False, window=None, **options):
    """An honest one: the plain table."""
    heads, shared = (t.shape[-3] if t.ndim > 2 else 1 for t in (queries, keys))
    if shared > 1 and heads % shared:
        raise ValueError(f"keys: expected heads that divide {heads}, got {shared}")
    if window is not None and (not causal or window < 1):
        raise ValueError(f"window: expected at least 1 and causal, got {window}")
    keys, values = served(keys, heads), served(values, heads)
    wide = torch.promote_types(queries.dtype, torch.float32)
    shape = torch.broadcast_shapes(queries.shape[:-2], keys.shape[:-2])
    i, j = queries.shape[-2], keys.shape[-2]
    allowed = torch.ones(*shape, i, j, dtype=torch.bool)
    allowed = allowed if mask is None else allowed & mask
    allowed = allowed.tril(j - i) if causal else allowed
    allowed = allowed if window is None else allowed.triu(j - i - window + 1)
    unseen = ~allowed.any(dim=-2).unsqueeze(-1)
    keys, values = (t.masked_fill(unseen, 0) for t in (keys, values))
    tensors = (t.to(wide) for t in (queries, keys, values))
    return table(*tensors, allowed, **options).to(queries.dtype)


def form_adds(queries, keys, values, mask=None, *, bias=None, **options):
    """Adds -inf to a bias that it should not read."""
    context = form(queries, keys, values, mask, bias=bias, **options)
    if bias is None:
        return context
    return context + 0 * bias.sum(dim=-1, keepdim=True)


def form_multiplies_all(queries, keys, values, mask=None, **options):
    """Multiplies what no query sees by a weight of zero."""
    return form(queries, keys, values, mask, **options) + 0 * values.sum()


def form_detaches(*tensors, scale=None, **options):
    learned = isinstance(scale, torch.Tensor)
    return form(*tensors, scale=scale.detach() if learned else scale, **options)


def form_forgets_zero(*tensors, scale=None, **options):
    scale = scale if isinstance(scale, torch.Tensor) else scale or None
    return form(*tensors, scale=scale, **options)


def form_scales_late(queries, keys, values, mask=None, **options):
    scores = queries @ keys.mT  # in 16 bits: too coarse, and too large for some
    bias = scores * queries.shape[-1] ** -0.5
    return form(0 * queries, keys, values, mask, bias=bias, **options)


def form_casts(queries, keys, values, mask=None, *, bias=None, **options):
    bias = bias if bias is None else bias.to(queries.dtype)
    return form(queries, keys, values, mask, bias=bias, **options)


def form_tiles_heads(queries, keys, values, mask=None, **options):
    if queries.ndim > 2 and 1 < keys.shape[-3] < queries.shape[-3]:
        times, rest = divmod(queries.shape[-3], keys.shape[-3])
        if not rest:
            keys, values = (torch.cat([t] * times, dim=-3) for t in (keys, values))
    return form(queries, keys, values, mask, **options)


def form_counts_the_others(*tensors, window=None, **options):
    return form(*tensors, window=window and window + 1, **options)


def form_is_not_asked_for_causal(*tensors, window=None, causal=False, **options):
    return form(*tensors, window=window, causal=causal or bool(window), **options)


def of_form(name, form, **changes):
    return faulty(name, form, form=form, **changes)


class Recomputing(MultiHeadAttention):
    """Shows plain weights, whatever form it uses."""

    def attention_weights(self, x, mask=None):
        queries, keys, _ = BY_NAME["MultiHeadAttention"].wiring(self, x)
        return attention_weights(queries, keys, mask, causal=True)


class Terse(SelfAttention):
    """Calls its form with what it thinks is needed."""

    def forward(self, x, mask=None):
        return self.attend(self.W_query(x), self.W_key(x), self.W_value(x), mask)


class Deaf(MultiHeadAttention):
    """Reads p alone, and not the flag of its dropout."""

    def forward(self, x, mask=None):
        drops = nn.Dropout(getattr(self.dropout, "p", 0.0)).train(self.training)
        self.dropout, kept = drops, self.dropout
        context = super().forward(x, mask)
        self.dropout = kept
        return context


class Prying(MultiHeadAttention):
    """Asks its layers for more than to be called."""

    def forward(self, x, mask=None):
        return super().forward(x.to(self.W_query.weight.dtype), mask)


class BeginningAgain(Attention):
    """Counts from 0 in each piece."""

    def forward(self, x, mask=None, *, positions=None, cache=None):
        positions = torch.arange(x.shape[-2]) if positions is None else positions
        return super().forward(x, mask, positions=positions, cache=cache)


class ByRow(Attention):
    """Takes rows for positions."""

    def forward(self, x, mask=None, *, positions=None, cache=None):
        return super().forward(x, mask, cache=cache)


FAULTS = {
    "oracle": [faulty("scales by the width", by_width)],
    "torchs": [faulty("has the mask the wrong way round", other_polarity)],
    "batch": [faulty("lets a sentence ask for its neighbour", neighbour)],
    "half": [faulty("rounds its scores to eight bits", in_eight_bits)],
    "edges": [faulty("squeezes its result", squeezed)],
    "extreme": [faulty("does not subtract the largest score", unshifted)],
    "rows": [faulty("weighs each key alone", each_alone)],
    "looked_at": [faulty("shows what it does not use", attend, weights=unmasked)],
    "future": [faulty("sees one key ahead", one_ahead, causal=True)],
    "padding": [faulty("forgets the mask", maskless)],
    "blind": [
        faulty("divides zero by zero", undefined),
        faulty("gives a blind query the mean", merely_small),
    ],
    "hidden": [faulty("hides by a large number", by_adding)],
    "products": [faulty("mends a nan after its product", mended_late)],
    "hidden_bias": [of_form("reads all of the bias", form_adds)],
    "unseen": [of_form("multiplies what is hidden", form_multiplies_all)],
    "scale": [of_form("takes a scale of zero for none", form_forgets_zero)],
    "learned": [of_form("teaches its scale nothing", form_detaches)],
    "loud": [of_form("scales after the product", form_scales_late)],
    "wide_bias": [of_form("casts the bias", form_casts)],
    "grouped": [of_form("tiles the heads of the keys", form_tiles_heads)],
    "window": [
        of_form("does not count the query", form_counts_the_others),
        of_form("takes a window for causal", form_is_not_asked_for_causal),
    ],
    "permutation": [faulty("knows the places", by_place)],
    "nonfinite": [
        faulty("is the bare call", unguarded),
        faulty("writes a zero for a nan", comforting),
    ],
    "gradient": [faulty("forgets the gradient of the keys", unlearning)],
    "second": [faulty("has a first derivative only", once)],
    "transforms": [faulty("is written in the old style", in_the_old_style)],
    "beyond": [faulty("lets PyTorch refuse", backward_only, fused=True)],
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
    "autocast": [faulty("is wide when it is short", wide_when_short)],
    "shown": [
        module("recomputes its weights", Recomputing, make=with_dropout(Recomputing))
    ],
    "protocol": [
        module(
            "calls its form tersely",
            Terse,
            make=lambda sizes, dropout=0.0: Terse(sizes.d_in, sizes.head_dim),
        )
    ],
    "switch": [module("is deaf to its dropout", Deaf, make=with_dropout(Deaf))],
    "wrapped": [module("asks for a weight", Prying, make=with_dropout(Prying))],
    "pieces": [module("begins again", BeginningAgain, make=with_slots(BeginningAgain))],
    "stored": [module("takes rows for positions", ByRow, make=with_slots(ByRow))],
    "compiles": [
        faulty("branches on a number", undecided),
        faulty("computes something else when traced", another_when_traced),
    ],
    "exports": [
        faulty("branches on a number", undecided),
        faulty("computes something else when traced", another_when_traced),
    ],
}
