"""Flash attention

Scores are made, used and forgotten one tile at a time, forward and backward, so
that memory grows with the length of the text and not with its square.

Written by `book/speed/flash.ipynb`: read and change it there.
"""

import itertools
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import reduce

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attention.core.scaled_dot_product import (
    check_bias,
    check_fit,
    check_sizes,
    visible,
)
from attention.speed.online_softmax import merge_states

__all__ = ["TwoPasses", "attend_tile", "flash_attend", "tiles"]


_TILE = (128, 8192)  # queries and keys; few and large, for a CPU


def tiles(
    num_queries: int,
    num_keys: int,
    *,
    causal: bool = False,
    tile: tuple[int, int] = _TILE,
) -> Iterator[tuple[slice, list[slice]]]:
    """Bands of rows from top to bottom, each with its columns from left to right."""
    height, width = tile
    for start in range(0, num_queries, height):
        stop = min(start + height, num_queries)
        seen = num_keys - num_queries + stop if causal else num_keys
        columns = [slice(j, min(j + width, seen)) for j in range(0, seen, width)]
        yield slice(start, stop), columns


def _share(scores: Tensor, values: Tensor) -> Tensor:
    """Context of one tile, whose scores become its weights."""
    weights = torch.softmax(scores, dim=-1, out=scores)
    return torch.bmm(weights.to(values.dtype), values)


def attend_tile(
    scores: Float[Tensor, "heads i j"], values: Float[Tensor, "heads j e"]
) -> tuple[Float[Tensor, "heads i e"], Float[Tensor, "heads i"]]:
    """Context and logsumexp of one tile, whose scores are used up."""
    largest = scores.amax(dim=-1)
    context = _share(scores, values).to(scores.dtype)
    logsumexp = largest - scores.amax(dim=-1).log()  # they are weights by now
    blind = largest.isneginf()
    context.masked_fill_(blind[..., None], 0)
    return context, logsumexp.masked_fill_(blind, -torch.inf)


class _Heads:
    """Some heads side by side, and the scores of any tile of them."""

    def __init__(self, queries, keys, values, mask, bias, scale, causal, room):
        self.queries, self.keys, self.values = queries, keys, values
        self.mask, self.bias = mask, bias
        self.scale, self.causal, self.room = scale, causal, room
        self.precise_keys = keys.to(room.dtype)

    def tiles(self, tile):
        sizes = self.queries.shape[1], self.keys.shape[1]
        return tiles(*sizes, causal=self.causal, tile=tile)

    def scores(self, rows: slice, columns: slice) -> Float[Tensor, "heads i j"]:
        """They are written over those of the tile before."""
        queries = self.queries[:, rows].to(self.room.dtype) * self.scale
        keys = self.precise_keys[:, columns]
        shape = (*queries.shape[:2], keys.shape[1])
        scores = self.room[: math.prod(shape)].view(shape)
        torch.bmm(queries, keys.mT, out=scores)
        if self.bias is not None:
            scores.add_(self.bias[:, rows, columns])
        if self.mask is not None:
            scores.masked_fill_(~self.mask[:, rows, columns], -torch.inf)
        if self.causal:
            earlier = self.keys.shape[1] - self.queries.shape[1]  # than query 0
            _hide_future(scores, rows.start + earlier + 1 - columns.start)
        return scores


def _precise(tensor: Tensor) -> torch.dtype:
    """What scores and sums are computed in: float32, or float64 for float64."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _hide_future(scores: Tensor, seen: int) -> None:
    """Let row 0 see `seen` columns, and each row one more than the row above."""
    edge = scores[..., max(seen, 0) :]
    future = edge.new_full(edge.shape[1:], -torch.inf)
    edge.add_(future.triu(min(seen, 0)))


def _forward(heads: _Heads, tile, context: Tensor, logsumexp: Tensor) -> None:
    """Fill in the context and logsumexp of some heads, band by band."""
    for rows, columns in heads.tiles(tile):
        parts = [
            attend_tile(heads.scores(rows, some), heads.values[:, some])
            for some in columns
        ]
        if parts:
            merged = reduce(lambda left, right: merge_states(*left, *right), parts)
            context[:, rows], logsumexp[:, rows] = merged


def _forward_in_bands(heads: _Heads, tile, context: Tensor) -> None:
    """Fill in the context where each band is one tile and no row is blind."""
    for rows, (columns,) in heads.tiles(tile):
        scores = heads.scores(rows, columns)
        context[:, rows] = _share(scores, heads.values[:, columns])


_LOG2_E = math.log2(math.e)


def _weights_again(scores: Tensor, logsumexp: Tensor) -> Tensor:
    """The final weights of a tile, in the place of its scores."""
    finite = logsumexp.clamp(min=torch.finfo(scores.dtype).min)  # for blind rows
    return scores.sub_(finite[..., None]).mul_(_LOG2_E).exp2_()


def _backward(
    heads: _Heads, tile, context: Tensor, logsumexp: Tensor, arrived: Tensor, db
) -> list[Tensor]:
    """Gradients of queries, keys and values; that of a bias is filled into `db`."""
    low, precise = heads.values.dtype, logsumexp.dtype
    arrived_precise, values = arrived.to(precise), heads.values.to(precise)
    row_sums = (arrived_precise * context).sum(dim=-1, keepdim=True)
    three = (heads.queries, heads.keys, heads.values)
    dq, dk, dv = (torch.zeros_like(tensor, dtype=precise) for tensor in three)
    for rows, columns in heads.tiles(tile):
        for some in columns:
            weights = _weights_again(heads.scores(rows, some), logsumexp[:, rows])
            dv[:, some].add_(torch.bmm(weights.to(low).mT, arrived[:, rows]))
            slopes = torch.bmm(arrived_precise[:, rows], values[:, some].mT)
            slopes.sub_(row_sums[:, rows]).mul_(weights)
            if db is not None:
                db[:, rows, some] = slopes
            slopes = slopes.to(low)
            dq[:, rows].add_(torch.bmm(slopes, heads.keys[:, some]))
            dk[:, some].add_(torch.bmm(slopes.mT, heads.queries[:, rows]))
    return [dq.mul_(heads.scale), dk.mul_(heads.scale), dv]


_AT_ONCE = 2**20  # scores


def _groups(tensors, scale, causal, tile) -> Iterator[tuple[tuple, _Heads]]:
    """The heads whose tiles are made at once, and where they are; more if short."""
    queries, keys, *_ = tensors
    *batch, heads, length, _ = keys.shape
    height, width = min(tile[0], queries.shape[-2]), min(tile[1], length)
    count = max(_AT_ONCE // max(height * width, 1), 1)
    scores = min(count, heads) * height * width
    room = keys.new_empty(scores, dtype=_precise(keys))
    parts = [slice(start, start + count) for start in range(0, heads, count)]
    for here in itertools.product(*map(range, batch), parts):
        some = (tensor if tensor is None else tensor[here] for tensor in tensors)
        yield here, _Heads(*some, scale, causal, room)


def _as_asked(tensor: Tensor) -> AbstractContextManager:
    """Autocast, if it is on, has chosen the dtype already and must not do so again."""
    kind = tensor.device.type
    if torch.amp.is_autocast_available(kind):
        return torch.autocast(kind, enabled=False)
    return nullcontext()


class TwoPasses(torch.autograd.Function):
    """Attention that gives the context and its logsumexp, and keeps both.

    The last input holds the settings; all others are tensors or None.
    """

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.settings = inputs
        ctx.save_for_backward(*tensors, *output)
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def refuse_second(name: str) -> None:
        """RuntimeError, in a backward pass, if its gradient is wanted as well."""
        if torch.is_grad_enabled():
            what = f"the second derivative of {name} is not implemented"
            raise RuntimeError(f"{what}: create_graph must be False, came True")


class _Flash(TwoPasses):
    """Both passes in tiles; the settings are scale, causal, tile and keep."""

    @staticmethod
    def forward(queries, keys, values, mask, bias, settings):
        *options, tile, keep = settings
        tensors = (queries, keys, values, mask, bias)
        plain = mask is None and bias is None and 0 < keys.shape[-2] <= tile[1]
        shape = queries.shape[:-1]
        context = queries.new_zeros(*shape, values.shape[-1])
        logsumexp = queries.new_empty(shape, dtype=_precise(queries))
        with _as_asked(keys):
            for here, heads in _groups(tensors, *options, tile):
                if plain and not keep:
                    _forward_in_bands(heads, tile, context[here])
                else:
                    _forward(heads, tile, context[here], logsumexp[here])
        return context, logsumexp

    @staticmethod
    def backward(ctx, arrived, _):
        TwoPasses.refuse_second("flash_attend")
        *inputs, context, logsumexp = ctx.saved_tensors
        *three, _, bias = inputs
        *options, tile, _ = ctx.settings
        gradients = [tensor.new_zeros(tensor.shape) for tensor in three]
        db = torch.zeros(bias.shape).to(bias) if ctx.needs_input_grad[4] else None
        with _as_asked(context):
            for here, heads in _groups(inputs, *options, tile):
                kept = context[here], logsumexp[here], arrived[here]
                db_here = None if db is None else db[here]
                parts = _backward(heads, tile, *kept, db_here)
                for gradient, part in zip(gradients, parts, strict=True):
                    gradient[here] = part
        return *gradients, None, db, None


def flash_attend(
    queries: Float[Tensor, "*queries_batch num_queries head_dim"],
    keys: Float[Tensor, "*keys_batch num_keys head_dim"],
    values: Float[Tensor, "*values_batch num_keys value_dim"],
    mask: Bool[Tensor, "..."] | None = None,
    *,
    causal: bool = False,
    dropout_p: float = 0.0,
    scale: float | None = None,
    bias: Float[Tensor, "..."] | None = None,
    tile: tuple[int, int] = _TILE,
) -> Float[Tensor, "*batch num_queries value_dim"]:
    """Context vectors, in tiles of so many queries and keys; equals `attend`.

    Memory grows linearly with length, forward and backward, but for a mask or bias.
    Axis -3 counts heads: keys and values may have fewer, each then serving as many
    query heads in a row as needed. `mask` is True where a query may see a key; a query
    that sees none gets zeros. ValueError for a misfit, and for a `dropout_p` that is
    not 0. Dao et al. 2022.
    """
    if dropout_p != 0:
        raise ValueError(f"flash_attend supports dropout_p=0 alone, came {dropout_p=}")
    check_sizes(tile_height=tile[0], tile_width=tile[1])
    keys, values = (_for_each_head(tensor, queries) for tensor in (keys, values))
    shape = check_fit(queries, keys, values, causal=causal)
    mask = visible(shape, mask, False, queries.device)
    bias = bias if bias is None else check_bias(bias, shape, queries)
    scale = queries.shape[-1] ** -0.5 if scale is None else scale
    axes = shape[:-2] or (1,)
    tensors = [
        tensor if tensor is None else tensor.expand(*axes, *tensor.shape[-2:])
        for tensor in (queries, keys, values, mask, bias)
    ]
    apply = _Flash.apply
    if torch.compiler.is_compiling():  # the number of tiles depends on the length
        apply = torch.compiler.disable(apply)
    keep = torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in tensors
    )
    context, _ = apply(*tensors, (scale, causal, tile, keep))
    return context.view(*shape[:-1], values.shape[-1])


def _for_each_head(tensor: Tensor, queries: Tensor) -> Tensor:
    """Keys or values of fewer heads, repeated for each head of the queries."""
    heads, shared = (t.shape[-3] if t.ndim > 2 else 1 for t in (queries, tensor))
    if 1 < shared < heads and heads % shared == 0:
        return tensor.repeat_interleave(heads // shared, dim=-3)
    return tensor
