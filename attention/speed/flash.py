"""Flash attention

Scores are made, used and forgotten one tile at a time, forward and backward, so
that memory grows with the length of the text and not with its square.

Written by `book/speed/flash.ipynb`: read and change it there.
"""

import itertools
import math
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import cache, reduce
from threading import Barrier

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attention.core.scaled_dot_product import (
    check_bias,
    check_fit,
    check_sizes,
    visible,
)
from attention.speed.online_softmax import merge

__all__ = ["attend_tile", "flash_attend", "tiles"]


_TILE = (128, 4096)  # queries and keys; few and large, for a CPU


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


_LOG2_E = math.log2(math.e)


def attend_tile(
    scores: Float[Tensor, "heads i j"], values: Float[Tensor, "heads j e"]
) -> tuple[Float[Tensor, "heads i e"], Float[Tensor, "heads i"]]:
    """Context and logsumexp of one tile, whose scores, in base 2, are used up."""
    largest = scores.amax(dim=-1, keepdim=True)
    lowest = torch.finfo(scores.dtype).min
    weights = scores.sub_(largest.clamp(min=lowest)).exp2_()
    total = weights.sum(dim=-1, keepdim=True).clamp(min=1)
    context = torch.bmm(weights.div_(total).to(values.dtype), values)
    return context.to(scores.dtype), (largest + total.log2()).squeeze(-1) / _LOG2_E


class _Heads:
    """Some heads side by side, and the scores of any tile of them, in base 2."""

    def __init__(self, here, queries, keys, values, mask, bias, scale, causal):
        tensors = (queries, keys, values, mask, bias)
        parts = (tensor if tensor is None else _own(tensor, here) for tensor in tensors)
        self.queries, self.keys, self.values, self.mask, self.bias = parts
        self.scale, self.causal = scale, causal
        self.precise = _precise(queries)
        self.scaled = self.queries.to(self.precise) * (scale * _LOG2_E)
        self.precise_keys = self.keys.to(self.precise)

    def tiles(self, tile):
        sizes = self.queries.shape[1], self.keys.shape[1]
        return tiles(*sizes, causal=self.causal, tile=tile)

    def scores(self, rows: slice, columns: slice) -> Float[Tensor, "heads i j"]:
        keys = self.precise_keys[:, columns]
        scores = torch.bmm(self.scaled[:, rows], keys.mT)
        if self.bias is not None:
            bias = self.bias[:, rows, columns].to(self.precise)
            scores.add_(bias, alpha=_LOG2_E)
        if self.mask is not None:
            scores.masked_fill_(~self.mask[:, rows, columns], -torch.inf)
        if self.causal:
            self._hide_future(scores, rows, columns)
        return scores

    def _hide_future(self, scores, rows, columns):
        earlier = self.keys.shape[1] - self.queries.shape[1]  # keys before query 0
        unseen = rows.start + earlier + 1 - columns.start  # by the first row
        if unseen < scores.shape[-1]:
            edge = scores[..., max(unseen, 0) :]
            future = torch.ones(edge.shape[1:], dtype=torch.bool, device=edge.device)
            edge.masked_fill_(future.triu(min(unseen, 0)), -torch.inf)


def _precise(tensor: Tensor) -> torch.dtype:
    """What scores and sums are computed in: float32, or float64 for float64."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _groups(axes: tuple[int, ...], keys: Tensor) -> list[tuple]:
    """Where the heads are that one thread computes at once: more of short ones."""
    count = max(1, 1024 // max(1, keys.shape[-2])) if keys.device.type == "cpu" else 64
    starts = range(0, axes[-1], count)
    last = [slice(start, min(start + count, axes[-1])) for start in starts]
    return list(itertools.product(*map(range, axes[:-1]), last))


def _each(work: Callable, groups: list[tuple], device: torch.device) -> Iterator:
    """What `work` gives for each of the groups, in order, on as many threads as cores.

    In the calling thread alone if somebody watches there, as a ledger does.
    """
    count = torch.get_num_threads()
    watched = torch._C._len_torch_dispatch_stack() > 0
    if device.type != "cpu" or watched or min(count, len(groups)) < 2:
        return map(work, groups)
    inference = torch.is_inference_mode_enabled()

    def without_gradient(here):
        with torch.inference_mode(inference), torch.no_grad():
            return work(here)

    return _threads(count, os.getpid()).map(without_gradient, groups)


@cache
def _threads(count: int, process: int) -> ThreadPoolExecutor:
    """Threads in which every operation keeps to one core; a fork gets its own."""
    threads, all_there = ThreadPoolExecutor(count), Barrier(count + 1)

    def start():
        torch.set_num_threads(1)  # for this thread, but also for those to come
        all_there.wait()

    for _ in range(count):
        threads.submit(start)
    all_there.wait()
    torch.set_num_threads(count)  # for those to come, as before
    return threads


def _place(tensor: Tensor, here: tuple) -> Tensor:
    """A view of the matrices of `tensor` for the heads `here`; one if all share it."""
    axes = tensor.shape[:-2]
    *outer, last = here[len(here) - len(axes) :]
    outer = (at % size for at, size in zip(outer, axes[:-1], strict=True))
    return tensor[(*outer, slice(None) if axes[-1] == 1 else last)]


def _own(tensor: Tensor, here: tuple) -> Tensor:
    """The same with one matrix for each head, without a copy."""
    count = here[-1].stop - here[-1].start
    return _place(tensor, here).expand(count, -1, -1)


def _forward(heads: _Heads, tile: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Context and logsumexp of some heads."""
    shape = heads.queries.shape[:2]
    context = heads.values.new_zeros(*shape, heads.values.shape[-1])
    logsumexp = heads.scaled.new_full(shape, -torch.inf)
    for rows, columns in heads.tiles(tile):
        parts = [
            attend_tile(heads.scores(rows, some), heads.values[:, some])
            for some in columns
        ]
        if parts:
            merged = reduce(lambda left, right: merge(*left, *right), parts)
            context[:, rows], logsumexp[:, rows] = merged
    return context, logsumexp


def _backward(
    heads: _Heads, context: Tensor, logsumexp: Tensor, arrived: Tensor, tile, for_bias
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values; `for_bias` takes that of each tile."""
    low, precise = heads.values.dtype, heads.precise
    arrived_precise, values = arrived.to(precise), heads.values.to(precise)
    row_sums = (arrived_precise * context).sum(dim=-1, keepdim=True)
    lowest = torch.finfo(precise).min
    logsumexp = (logsumexp * _LOG2_E).clamp(min=lowest)[..., None]
    dq, dk, dv = map(torch.zeros_like, (heads.scaled, heads.precise_keys, values))
    for rows, columns in heads.tiles(tile):
        for some in columns:
            weights = heads.scores(rows, some).sub_(logsumexp[:, rows]).exp2_()
            dv[:, some].add_(torch.bmm(weights.to(low).mT, arrived[:, rows]))
            slopes = torch.bmm(arrived_precise[:, rows], values[:, some].mT)
            slopes.sub_(row_sums[:, rows]).mul_(weights)
            for_bias(slopes, rows, some)
            slopes = slopes.to(low)
            dq[:, rows].add_(torch.bmm(slopes, heads.keys[:, some]))
            dk[:, some].add_(torch.bmm(slopes.mT, heads.queries[:, rows]))
    return dq.mul_(heads.scale), dk.mul_(heads.scale), dv


class _Flash(torch.autograd.Function):
    """Both passes, as PyTorch wants them; `settings` are scale, causal and tile."""

    @staticmethod
    def forward(queries, keys, values, mask, bias, settings):
        scale, causal, tile = settings
        three = (queries, keys, values)
        axes = torch.broadcast_shapes(*(tensor.shape[:-2] for tensor in three))
        shape = (*axes, queries.shape[-2])
        context = queries.new_empty(*shape, values.shape[-1])
        logsumexp = queries.new_empty(shape, dtype=_precise(queries))

        def work(here):
            heads = _Heads(here, *three, mask, bias, scale, causal)
            context[here], logsumexp[here] = _forward(heads, tile)

        with _as_asked(queries.device):
            list(_each(work, _groups(axes, keys), queries.device))
        return context, logsumexp

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.settings = inputs
        ctx.save_for_backward(*tensors, *output)
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx, arrived, _):
        if torch.is_grad_enabled():
            what = "the second derivative of flash_attend is not implemented"
            raise RuntimeError(f"{what}: create_graph must be False, came True")
        queries, keys, values, mask, bias, context, logsumexp = ctx.saved_tensors
        scale, causal, tile = ctx.settings
        three, axes = (queries, keys, values), context.shape[:-2]
        sums = [_room(tensor, axes) for tensor in three]
        bias_sum = _room(bias, axes) if ctx.needs_input_grad[4] else None

        def work(here):
            def for_bias(slopes, rows, columns):
                if bias_sum is not None:
                    _add(slopes, _place(bias_sum, here)[:, rows, columns])

            heads = _Heads(here, *three, mask, bias, scale, causal)
            kept = context[here], logsumexp[here], arrived[here]
            return _backward(heads, *kept, tile, for_bias)

        with _as_asked(queries.device):
            groups = _groups(axes, keys)
            # Threads could add to one bias at once, so it is left to one of them.
            one_by_one = bias_sum is not None
            parts = (
                map(work, groups) if one_by_one else _each(work, groups, keys.device)
            )
            for here, gradients in zip(groups, parts, strict=True):
                for part, total in zip(gradients, sums, strict=True):
                    _add(part, _place(total, here))
        gradients = (s.to(t.dtype) for s, t in zip(sums, three, strict=True))
        return *gradients, None, None if bias_sum is None else bias_sum.to(bias), None


def _as_asked(device: torch.device) -> AbstractContextManager:
    """Autocast, if it is on, has chosen the dtype already and must not do so again."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def _room(tensor: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Zeros for a gradient, precise if several heads will add to it."""
    alone = tensor.shape[:-2] == axes
    return torch.zeros_like(tensor, dtype=None if alone else _precise(tensor))


def _add(parts: Tensor, total: Tensor) -> None:
    """Add the gradient of each head to its own, or to the one that all share."""
    shared = len(total) == 1
    total.add_(parts.sum(dim=0, keepdim=True) if shared else parts)


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

    Memory grows linearly with length, forward and backward. Axis -3 counts heads: keys
    and values may have fewer, each then serving as many query heads in a row as needed.
    On a CPU heads are computed in threads, one on each core.
    `mask` is True where a query may see a key; a query that sees none gets zeros.
    ValueError for a misfit, and for `dropout_p` other than 0. Dao et al. 2022.
    """
    if dropout_p != 0:
        raise ValueError(f"flash_attend supports dropout_p=0 alone, came {dropout_p=}")
    check_sizes(tile_height=tile[0], tile_width=tile[1])
    heads, shared = (t.shape[-3] if t.ndim > 2 else 1 for t in (queries, keys))
    grouped = values.ndim > 2 and 1 < shared < heads and heads % shared == 0
    if grouped:
        queries = queries.unflatten(-3, (shared, heads // shared))
        keys, values = keys.unsqueeze(-3), values.unsqueeze(-3)
    shape = check_fit(queries, keys, values, causal=causal)
    shape = (*shape[:-4], heads, *shape[-2:]) if grouped else shape
    mask = visible(shape, mask, False, queries.device)
    bias = bias if bias is None else check_bias(bias, shape, queries)
    if grouped:
        mask, bias = (_regroup(table, shared) for table in (mask, bias))
    scale = queries.shape[-1] ** -0.5 if scale is None else scale
    settings = (scale, causal, tile)
    tensors = (_with_heads(t) for t in (queries, keys, values, mask, bias))
    apply = _Flash.apply
    if torch.compiler.is_compiling():  # the number of tiles depends on the length
        apply = torch.compiler.disable(apply)
    context, _ = apply(*tensors, settings)
    context = context.flatten(-4, -3) if grouped else context
    return context.view(*shape[:-1], values.shape[-1])


def _with_heads(table: Tensor | None) -> Tensor | None:
    """The same with at least one axis before the last two."""
    return table[None] if table is not None and table.ndim < 3 else table


def _regroup(table: Tensor | None, shared: int) -> Tensor | None:
    """A mask or bias whose axis of heads, if it has one, is cut into groups."""
    if table is None or table.ndim < 3:
        return table
    return table.unflatten(-3, (1, 1) if table.shape[-3] == 1 else (shared, -1))
