"""A mechanism: how it is made, what it reads, and what it should compute."""

import inspect
import itertools
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

ALL = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Sizes:
    """All sizes that a mechanism may need; most read a few of them."""

    lead: tuple[int, ...] = (2,)  # batch axes
    queries: int = 5
    keys: int = 7
    heads: int = 3
    head_dim: int = 2
    d_in: int = 5
    d_context: int = 3
    d_value: int = 7
    qkv_bias: bool = False
    shared: bool = False  # have keys and values leading axes of 1?

    @property
    def d_out(self) -> int:
        return self.heads * self.head_dim


class Input(NamedTuple):
    """A tensor that is read: what stands along its length, and what its width is."""

    name: str
    holds: str  # "queries", "keys", or "both" where one sequence is read
    width: str


X = (Input("x", "both", "d_in"),)
X_AND_CONTEXT = (
    Input("x", "queries", "d_in"),
    Input("context_input", "keys", "d_context"),
)
QUERIES_KEYS_VALUES = (
    Input("queries", "queries", "head_dim"),
    Input("keys", "keys", "head_dim"),
    Input("values", "keys", "d_value"),
)


# Wiring: (module, *tensors) -> queries, keys and values of the scores


def as_given(f, queries, keys, values):
    return queries, keys, values


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    y = x @ layer.weight.mT
    return y if layer.bias is None else y + layer.bias


def one_head(f, x):
    return linear(f.W_query, x), linear(f.W_key, x), linear(f.W_value, x)


def grouped_heads(f, x):
    """Each head of keys and values as often as it serves, the first two processed."""
    layers = {
        f.W_query: f.num_heads,
        f.W_key: f.num_kv_heads,
        f.W_value: f.num_kv_heads,
    }
    queries, keys, values = (
        torch.stack(linear(layer, x).chunk(heads, dim=-1), dim=-3)
        for layer, heads in layers.items()
    )
    if f.process_heads is not None:
        queries, keys = f.process_heads(queries, keys, torch.arange(x.shape[-2]))
    times = f.num_heads // f.num_kv_heads
    return queries, *(t.repeat_interleave(times, dim=-3) for t in (keys, values))


def unit(norm, x):
    """Vectors with a mean square of 1, times the weights of `norm`."""
    return x / (x.square().mean(dim=-1, keepdim=True) + norm.eps).sqrt() * norm.weight


def latent_heads(f, x):
    """Keys and values of all heads, made of the latents; slices that turn, behind."""
    read = x
    if f.W_query_latent is not None:
        read = unit(f.query_norm, linear(f.W_query_latent, x))
    latents = unit(f.latent_norm, linear(f.W_latent, x))
    queries, keys, values = (
        torch.stack(linear(layer, t).chunk(f.num_heads, dim=-1), dim=-3)
        for layer, t in ((f.W_query, read), (f.W_key, latents), (f.W_value, latents))
    )
    own, turning = queries[..., : f.head_dim], queries[..., f.head_dim :]
    shared = linear(f.W_turned_key, x).unsqueeze(-3)
    turned, shared = f.process_heads(turning, shared, torch.arange(x.shape[-2]))
    shared = shared.expand(*keys.shape[:-1], f.rotary_dim)
    return torch.cat([own, turned], -1), torch.cat([keys, shared], -1), values


def split_heads(f, x, context_input=None):
    other = x if context_input is None else context_input
    layers = ((f.W_query, x), (f.W_key, other), (f.W_value, other))
    return [
        torch.stack(linear(layer, read).chunk(f.num_heads, dim=-1), dim=-3)
        for layer, read in layers
    ]


# Scores: (module, queries, keys) -> scores


def scaled(f, queries, keys):
    return queries @ keys.mT / math.sqrt(queries.shape[-1])


# Weights: (scores, where a query may see a key) -> weights; zeros where nothing is seen


def softmax(scores, allowed):
    blind = ~allowed.any(dim=-1, keepdim=True)
    scores = scores.masked_fill(~(allowed | blind), -torch.inf)
    return torch.softmax(scores, dim=-1).masked_fill(blind, 0)


# What is done with the context: (module, context) -> output


def unchanged(f, context):
    return context


def side_by_side(f, context):
    return torch.cat(context.unbind(dim=-3), dim=-1)


def projected(f, context):
    return linear(f.out_proj, side_by_side(f, context))


def weights_method(f, *tensors, mask=None):
    return f.attention_weights(*tensors, mask=mask)


def unchanged_sizes(sizes: Sizes) -> Sizes:
    return sizes


def accepts(call: Callable, name: str) -> bool:
    """Does `call` take an argument of this name, be it by **options?"""
    try:
        inspect.signature(call).bind_partial(**{name: None})
    except TypeError:
        return False
    return True


class Excuse(NamedTuple):
    """Why a property does not apply, and a check that this is so.

    `holds` takes the mechanism; "fails" means that the property is indeed false of it.
    `remedy` says what an entry lacks of which it is not so.
    """

    reason: str
    holds: Callable[["Mechanism"], bool] | str
    remedy: str = "mend the entry, or this excuse"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Mechanism:
    """Something that attends."""

    name: str
    covers: Any  # the public function or class
    make: Callable[..., Callable]  # (sizes, dropout) -> f, called f(*tensors, mask=…)
    reads: tuple[Input, ...]
    wiring: Callable = as_given
    score: Callable = scaled
    weigh: Callable = softmax  # the weights of scores; another where it is no softmax
    after: Callable = unchanged
    heads: bool = False  # has its context an axis of heads?
    heads_share_mask: bool = False  # is a mask given without that axis?
    causal: bool = False
    window: int | None = None  # of a causal one: how many keys a query sees
    fused: bool = False  # may it refuse a second derivative, by a sentence?
    dtypes: Collection[torch.dtype] = ALL
    peer: Callable | None = None  # PyTorch's own: (f, tensors, allowed) -> output
    form: Callable | None = None  # (queries, keys, values, mask, **options) -> context
    fits: Callable[[Sizes], Sizes] = unchanged_sizes  # the nearest sizes that it takes
    weights: Callable | None = None  # (f, *tensors, mask) -> weights
    excused: Mapping[str, Excuse] = field(default_factory=dict)

    def __repr__(self) -> str:
        return self.name

    def masks(self, sizes: Sizes) -> tuple[int, ...]:
        """What a mask must broadcast to."""
        heads = (sizes.heads,) if self.heads and not self.heads_share_mask else ()
        return (*sizes.lead, *heads, sizes.queries, sizes.keys)

    def allowed(self, sizes: Sizes, mask: Tensor | None) -> Tensor:
        """Where a query may see a key, for each score."""
        allowed = torch.ones(self.masks(sizes), dtype=torch.bool)
        if mask is not None:
            allowed = allowed & mask
        if self.causal:
            allowed = allowed.tril(sizes.keys - sizes.queries)
        if self.window is not None:
            allowed = allowed.triu(sizes.keys - sizes.queries - self.window + 1)
        if self.heads and self.heads_share_mask:
            allowed = torch.stack([allowed] * sizes.heads, dim=-3)
        return allowed

    def by_hand(self, f, tensors, allowed: Tensor) -> Tensor:
        """The oracle: one query at a time, over the keys that it may see, no others."""
        queries, keys, values = self.wiring(f, *tensors)
        lead = allowed.shape[:-2]
        queries, keys, values = (
            t.expand(*lead, *t.shape[-2:]) for t in (queries, keys, values)
        )
        context = queries.new_zeros(*queries.shape[:-1], values.shape[-1])
        rows = itertools.product(*map(range, queries.shape[:-1]))
        scores = self.score(f, queries, keys)
        for *where, i in rows:
            seen = allowed[(*where, i)]
            mine = scores[(*where, i)][seen]
            if not (mine == -torch.inf).all():  # true of no keys, too
                weights = self.weigh(mine, torch.ones_like(mine, dtype=torch.bool))
                context[(*where, i)] = weights @ values[(*where,)][seen]
        return self.after(f, context)

    def plain(self, f, tensors, allowed: Tensor) -> Tensor:
        """The same by whole tables, in whatever precision the tensors have."""
        queries, keys, values = self.wiring(f, *tensors)
        weights = self.weigh(self.score(f, queries, keys), allowed)
        return self.after(f, weights.to(values.dtype) @ values)
