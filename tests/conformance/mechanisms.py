"""All that attends in the package: one entry each, found missing by the suite."""

import os
import shutil
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from attention import (
    AdditiveAttention,
    Attention,
    CausalAttention,
    CrossAttention,
    LatentAttention,
    MultiHeadAttention,
    Rotary,
    SelfAttention,
    StackedHeads,
    attend,
    attention_weights,
    cpp_attend,
    flash_attend,
    ring_attend,
    simple_self_attention,
    tree_attend,
    triton_attend,
    ulysses_attend,
    window,
)

from . import mechanism as wired
from . import peers
from .mechanism import (
    QUERIES_KEYS_VALUES,
    X_AND_CONTEXT,
    Excuse,
    Input,
    Mechanism,
    Sizes,
    X,
)

# Functions of queries, keys and values


def fused(sizes, dropout=0.0, **options):
    def f(queries, keys, values, mask=None):
        return attend(queries, keys, values, mask, dropout_p=dropout, **options)

    return f


def in_tiles(sizes, dropout=0.0, **options):
    options = {**options, "tile": (2, 3)}  # several, though the examples are short

    def f(queries, keys, values, mask=None):
        return flash_attend(queries, keys, values, mask, dropout_p=dropout, **options)

    return f


def weighed(sizes, dropout=0.0, **options):
    def f(queries, keys, values, mask=None):
        return attention_weights(queries, keys, mask, **options) @ values

    return f


def weighed_form(queries, keys, values, mask=None, **options):
    """`attention_weights` as a form: the weights of each head, times its values."""
    weights = attention_weights(queries, keys, mask, **options)
    heads = weights.shape[-3] if weights.ndim > 2 else 1
    if values.ndim > 2 and 1 < values.shape[-3] < heads:
        values = values.repeat_interleave(heads // values.shape[-3], dim=-3)
    return weights @ values


def weighed_weights(f, queries, keys, values, mask=None, **options):
    return attention_weights(queries, keys, mask, **options)


def distance(queries: Tensor, keys: Tensor) -> Tensor:
    """A bias by place, aligned where the sequences end."""
    i, j = queries.shape[-2], keys.shape[-2]
    places = torch.arange(i)[:, None] + j - i - torch.arange(j)
    return (-0.5 * places.abs()).to(queries)


def by_place(queries: Tensor, keys: Tensor) -> dict:
    """Three options at once, for a call that takes them."""
    return {"scale": 0.3, "bias": distance(queries, keys), "causal": True}


def biased(form):
    def make(sizes, dropout=0.0):
        def f(queries, keys, values, mask=None):
            options = by_place(queries, keys)
            return form(sizes, dropout, **options)(queries, keys, values, mask)

        return f

    return make


def biased_score(f, queries, keys):
    return 0.3 * queries @ keys.mT + distance(queries, keys)


def biased_weights(f, queries, keys, values, mask=None):
    return attention_weights(queries, keys, mask, **by_place(queries, keys))


def biased_peer(f, tensors, allowed):
    options = {"scale": 0.3, "bias": distance(*tensors[:2])}
    return peers.by_call(f, tensors, allowed, **options)


def by_score(sizes, dropout=0.0):
    """The slot `score`: the negative distance, which another score may be."""

    def f(queries, keys, values, mask=None):
        return attention_weights(queries, keys, mask, score=far) @ values

    return f


def far(queries, keys):
    return -(queries.unsqueeze(-2) - keys.unsqueeze(-3)).square().sum(dim=-1)


CALL = {"reads": QUERIES_KEYS_VALUES, "peer": peers.by_call}
FUSED = CALL | {"covers": attend, "form": attend, "fused": True}
WEIGHED = CALL | {"covers": attention_weights, "form": weighed_form}


def refuses_dropout(mechanism) -> bool:
    try:
        mechanism.covers(*torch.ones(3, 1, 1), dropout_p=0.5)
    except ValueError:
        return True
    return False


REFUSED = {
    "dropout": Excuse("refuses dropout", refuses_dropout),
}
TILED = CALL | {
    "covers": flash_attend,
    "form": partial(flash_attend, tile=(2, 3)),
    "fused": True,
    "excused": REFUSED,
}


def in_cpp(sizes, dropout=0.0, **options):
    def f(queries, keys, values, mask=None):
        return cpp_attend(queries, keys, values, mask, dropout_p=dropout, **options)

    return f


def alone(form, sizes, dropout=0.0, **options):
    """A form of several ranks, in a group of one."""

    def f(queries, keys, values, mask=None):
        return form(queries, keys, values, mask, dropout_p=dropout, **options)

    return f


COMPILED = TILED | {"covers": cpp_attend, "form": cpp_attend}
HAS_COMPILER = shutil.which(os.environ.get("CXX", "c++")) is not None


def of_ranks(form) -> Mechanism:
    """With causal=True: what else there is, its own tests ask on several ranks."""
    options = TILED | {"covers": form, "form": form}
    make = partial(alone, form, causal=True)
    name = f"{form.__name__} causal"
    return Mechanism(name=name, make=make, causal=True, **options)


def in_kernels(sizes, dropout=0.0, **options):
    def f(queries, keys, values):
        return triton_attend(queries, keys, values, dropout_p=dropout, **options)

    return f


KERNELS = Mechanism(  # slow where they are interpreted, and so asked less
    name="triton_attend",
    covers=in_kernels(None),
    form=triton_attend,
    make=in_kernels,
    dtypes=(torch.float32, torch.float16),
    fits=lambda sizes: replace(sizes, head_dim=16, d_value=16),
    fused=True,
    **CALL,
)

# Modules


def with_dropout(kind):
    """For arguments d_in, d_out, context_length, dropout, num_heads, qkv_bias."""

    def make(sizes, dropout=0.0):
        width = sizes.head_dim if kind is StackedHeads else sizes.d_out
        d_in, length = sizes.d_in, max(sizes.queries, 1)
        return kind(d_in, width, length, dropout, sizes.heads, sizes.qkv_bias)

    return make


def self_attention(sizes, dropout=0.0):
    return SelfAttention(sizes.d_in, sizes.head_dim, sizes.qkv_bias)


def causal_attention(sizes, dropout=0.0):
    length = max(sizes.queries, 1)
    return CausalAttention(sizes.d_in, sizes.head_dim, length, dropout, sizes.qkv_bias)


def cross_attention(sizes, dropout=0.0):
    options = {"dropout": dropout, "qkv_bias": sizes.qkv_bias}
    d_context = sizes.d_context
    return CrossAttention(
        sizes.d_in, sizes.d_out, sizes.heads, d_context=d_context, **options
    )


def with_slots(kind=Attention, **slots):
    """A layer with as many heads as are asked for, and these slots."""

    def make(sizes, dropout=0.0):
        options = {"dropout": dropout, "qkv_bias": sizes.qkv_bias} | slots
        return kind(sizes.d_in, sizes.d_out, sizes.heads, **options)

    return make


def grouped(sizes, dropout=0.0):
    """Two heads of queries for each head of keys, wider than d_out says."""
    groups = {"num_kv_heads": sizes.heads // 2, "head_dim": sizes.head_dim}
    options = {"dropout": dropout, "qkv_bias": sizes.qkv_bias} | groups
    return Attention(sizes.d_in, sizes.d_out + 1, sizes.heads, **options)


def in_twos(sizes):
    return replace(sizes, heads=2 * sizes.heads)


def turned(queries, keys, positions):
    """The first two numbers of each head, turned by its position."""
    angle = positions.unsqueeze(-2)
    cos, sin = angle.cos().to(queries), angle.sin().to(queries)

    def turn(t):
        if t.shape[-1] < 2:
            return t
        a, b, rest = t[..., 0], t[..., 1], t[..., 2:]
        pair = torch.stack([cos * a - sin * b, sin * a + cos * b], dim=-1)
        return torch.cat([pair, rest], dim=-1)

    return turn(queries), turn(keys)


def rotary(sizes, dropout=0.0):
    """Two numbers of each head turn by their position."""
    process = Rotary(sizes.head_dim, rotary_dim=2)
    return with_slots(process_heads=process)(sizes, dropout)


def by_distance(query_positions, key_positions):
    return -0.5 * (query_positions[..., :, None] - key_positions[..., None, :]).abs()


def biased_heads(f, queries, keys):
    places = torch.arange(queries.shape[-2])
    return scaled(f, queries, keys) + by_distance(places, places).to(queries)


def by_call_of_heads(f, tensors, allowed, **options):
    three = wired.grouped_heads(f, *tensors)
    return wired.projected(f, peers.by_call(f, three, allowed, **options))


def by_call_biased(f, tensors, allowed):
    places = torch.arange(tensors[0].shape[-2])
    bias = by_distance(places, places).to(tensors[0])
    return by_call_of_heads(f, tensors, allowed, bias=bias)


BIASED = Excuse(
    "hands its bias to forms that take one", lambda m: m.make(Sizes()).bias is not None
)
TABLES = Excuse("makes a table of positions", "fails")


def latent(sizes, dropout=0.0, **options):
    """Latents of three numbers, and one more slice of two, which turns."""
    options |= {"latent_dim": 3, "rotary_dim": 2, "head_dim": sizes.head_dim}
    options |= {"value_dim": sizes.d_value, "qkv_bias": sizes.qkv_bias}
    return LatentAttention(
        sizes.d_in, sizes.d_out + 1, sizes.heads, dropout=dropout, **options
    )


def by_call_of_latents(f, tensors, allowed):
    three = wired.latent_heads(f, *tensors)
    return wired.projected(f, peers.by_call(f, three, allowed))


ABSORBED = Excuse(
    "needs a form that takes a scale, and matrices as they are",
    lambda m: m.make(Sizes()).absorb is True,
)


def additive(sizes, dropout=0.0):
    return AdditiveAttention(sizes.d_in, sizes.d_context, sizes.head_dim)


def additive_wiring(f, queries, keys, values):
    return wired.linear(f.W_query, queries), wired.linear(f.W_key, keys), values


def additive_score(f, queries, keys):
    return torch.tanh(queries.unsqueeze(-2) + keys.unsqueeze(-3)) @ f.v


scaled = wired.scaled
MODULE = {"weights": wired.weights_method, "peer": peers.by_module, "fused": True}
ONE_HEAD = MODULE | {"reads": X, "wiring": wired.one_head}
HEADS = MODULE | {"wiring": wired.split_heads, "after": wired.projected, "heads": True}
LAYER = HEADS | {"covers": Attention, "reads": X, "wiring": wired.grouped_heads}
LAYER |= {"causal": True, "peer": by_call_of_heads}
LATENT = LAYER | {"covers": LatentAttention, "wiring": wired.latent_heads}
LATENT |= {"peer": by_call_of_latents}


def plain_causal_biased(make, options) -> list[Mechanism]:
    """What a function of queries, keys and values does with and without options."""
    name = options["covers"].__name__
    return [
        Mechanism(name=name, make=make, **options),
        Mechanism(
            name=f"{name} causal",
            make=partial(make, causal=True),
            causal=True,
            **options,
        ),
        Mechanism(
            name=f"{name} biased",
            make=biased(make),
            score=biased_score,
            causal=True,
            **options | {"peer": biased_peer, "form": None},
        ),
    ]


MECHANISMS = [
    Mechanism(
        name="simple_self_attention",
        covers=simple_self_attention,
        make=lambda sizes, dropout=0.0: lambda x: simple_self_attention(x),
        reads=X,
        wiring=lambda f, x: (x, x, x),
        score=lambda f, queries, keys: queries @ keys.mT,
        peer=peers.by_call_on_itself,
    ),
    *plain_causal_biased(fused, FUSED),
    *plain_causal_biased(in_tiles, TILED),
    *(plain_causal_biased(in_cpp, COMPILED) if HAS_COMPILER else []),
    of_ranks(ring_attend),
    of_ranks(ulysses_attend),
    of_ranks(tree_attend),
    Mechanism(
        name="attention_weights", make=weighed, weights=weighed_weights, **WEIGHED
    ),
    Mechanism(
        name="attention_weights biased",
        make=biased(weighed),
        score=biased_score,
        weights=biased_weights,
        causal=True,
        **WEIGHED | {"peer": biased_peer, "form": None},
    ),
    Mechanism(
        name="attention_weights by distance",
        make=by_score,
        score=lambda f, queries, keys: far(queries, keys),
        weights=partial(weighed_weights, score=far),
        **WEIGHED | {"peer": None, "form": None},
    ),
    Mechanism(
        name="AdditiveAttention",
        covers=AdditiveAttention,
        make=additive,
        reads=(
            Input("queries", "queries", "d_in"),
            Input("keys", "keys", "d_context"),
            Input("values", "keys", "d_value"),
        ),
        wiring=additive_wiring,
        score=additive_score,
        weights=lambda f, q, k, v, mask=None: f.attention_weights(q, k, mask),
    ),
    Mechanism(
        name="SelfAttention", covers=SelfAttention, make=self_attention, **ONE_HEAD
    ),
    Mechanism(
        name="CausalAttention",
        covers=CausalAttention,
        make=causal_attention,
        causal=True,
        **ONE_HEAD,
    ),
    Mechanism(
        name="StackedHeads",
        covers=StackedHeads,
        make=with_dropout(StackedHeads),
        reads=X,
        wiring=lambda f, x: [
            torch.stack(t, dim=-3)
            for t in zip(*(wired.one_head(head, x) for head in f.heads), strict=True)
        ],
        after=wired.side_by_side,
        heads=True,
        heads_share_mask=True,
        causal=True,
        **MODULE,
    ),
    Mechanism(
        name="MultiHeadAttention",
        covers=MultiHeadAttention,
        make=with_dropout(MultiHeadAttention),
        reads=X,
        causal=True,
        **HEADS,
    ),
    Mechanism(name="Attention", make=with_slots(), **LAYER),
    Mechanism(name="Attention grouped", make=grouped, fits=in_twos, **LAYER),
    Mechanism(
        name="Attention by position",
        make=with_slots(process_heads=turned, masks=(window(3),)),
        window=3,
        excused={"protocol": TABLES},
        **LAYER,
    ),
    Mechanism(
        name="Attention rotary",
        make=rotary,
        fits=lambda sizes: replace(sizes, head_dim=sizes.head_dim + 1),
        **LAYER,
    ),
    Mechanism(
        name="Attention biased",
        make=with_slots(bias=by_distance),
        score=biased_heads,
        excused={"protocol": BIASED, "shown": BIASED},
        **LAYER | {"peer": by_call_biased},
    ),
    Mechanism(name="LatentAttention", make=latent, **LATENT),
    Mechanism(
        name="LatentAttention absorbed",
        make=partial(latent, absorb=True, query_latent_dim=4),
        excused=dict.fromkeys(("protocol", "shown", "wrapped"), ABSORBED),
        **LATENT,
    ),
    Mechanism(
        name="CrossAttention",
        covers=CrossAttention,
        make=cross_attention,
        reads=X_AND_CONTEXT,
        **HEADS,
    ),
]
