"""Flash attention in Triton

Flash attention as kernels for a GPU, forward and backward: each program makes, uses
and forgets its tiles next to where they are multiplied.

Written by `book/speed/flash_triton.ipynb`: read and change it there.
"""

from __future__ import annotations  # Triton reads tl.constexpr as a word

import inspect
import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from attention.core.scaled_dot_product import check_window
from attention.speed.flash import TwoPasses
from attention.tools.checks import (
    broadcast_heads,
    check_fit,
    check_no_dropout,
    declare_operator,
    is_size,
    own_number,
    scale_queries,
    traced,
    unified,
)
from attention.tools.workbench import expected

__all__ = ["triton_attend"]


_WAITING = []


def _kernel(function: Callable) -> Callable:
    """Mark what Triton is to compile; it waits until Triton is needed."""
    _WAITING.append(function)
    return function


def _import_triton() -> None:
    """Import Triton, and replace each waiting function by its compiled kernel."""
    global tl, triton
    try:
        import triton
        import triton.language as tl
    except ModuleNotFoundError as error:
        how = "pip install 'building-attention[triton]'"
        raise ModuleNotFoundError(f"triton_attend needs Triton: {how}") from error
    if not hasattr(triton, "knobs"):  # as in Triton 3.2, which comes with torch 2.6
        raise ModuleNotFoundError(
            "triton_attend needs Triton 3.7 or newer: a newer torch"
        )
    if triton.knobs.runtime.interpret == isinstance(tl.cdiv, triton.JITFunction):
        must = "TRITON_INTERPRET must not change after Triton is imported"
        raise RuntimeError(f"{must}: set it before, or start anew")
    while _WAITING:
        function = inspect.unwrap(_WAITING.pop())
        globals()[function.__name__] = triton.jit(function)


@_kernel
def _places(matrix, rows, HEAD_DIM: tl.constexpr):
    """Where in memory these rows of a matrix lie."""
    start, step, _ = matrix
    return start + rows[:, None].to(tl.int64) * step + tl.arange(0, HEAD_DIM)[None, :]


@_kernel
def _load(matrix, rows, HEAD_DIM: tl.constexpr):
    """These rows of a matrix; zeros for those beyond its end."""
    there = rows[:, None] < matrix[2]
    return tl.load(_places(matrix, rows, HEAD_DIM), mask=there, other=0.0)


@_kernel
def _store(tile, matrix, rows, HEAD_DIM: tl.constexpr):
    """Write a tile to these rows of a matrix, and nothing beyond its end."""
    tile = tile.to(matrix[0].dtype.element_ty)
    tl.store(_places(matrix, rows, HEAD_DIM), tile, mask=rows[:, None] < matrix[2])


@_kernel
def _head(tensor, head):
    """The matrix of a head: where it starts, its step from row to row, its length."""
    start, of_batch, of_head, of_row, heads, length = tensor
    start += (head // heads).to(tl.int64) * of_batch
    return start + (head % heads).to(tl.int64) * of_head, of_row, length


@_kernel
def _band(length, BLOCK: tl.constexpr, LAST_FIRST: tl.constexpr):
    """Which band of rows, each `BLOCK` high, is this program's, and of which head."""
    bands = tl.cdiv(length, BLOCK)
    band, head = tl.program_id(0) % bands, tl.program_id(0) // bands
    if LAST_FIRST:
        band = bands - 1 - band
    return band, head


@_kernel
def _dot(left, right):
    """The product of two tiles, summed in float32."""
    return tl.dot(left, right, input_precision="ieee")


@_kernel
def _scores(
    left, right, at, sizes, scales,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, EDGE: tl.constexpr,
):  # fmt: skip
    """Scores of a tile; at the edge, minus infinity where a key is not to be seen."""
    scores = _dot(left, tl.trans(right)) * scales[1]
    if EDGE:
        rows, columns = at
        num_queries, num_keys, _ = sizes
        seen = columns < num_keys
        if CAUSAL:
            seen = seen & (columns <= rows + num_keys - num_queries)
        if WINDOW:
            seen = seen & (columns > rows + num_keys - num_queries - WINDOW)
        scores = tl.where(seen, scores, float("-inf"))
    return scores


@_kernel
def _absorb(scores, v, m_i, l_i, acc):
    """Add a tile to the largest score, the sum of weights, and the weighted values."""
    m_ij = tl.maximum(m_i, tl.max(scores, 1))
    alpha = tl.exp2(m_i - m_ij)
    weights = tl.exp2(scores - m_ij[:, None])
    l_i = l_i * alpha + tl.sum(weights, 1)
    acc = acc * alpha[:, None] + _dot(weights.to(v.dtype), v)
    return m_ij, l_i, acc


@_kernel
def _columns(
    band, sizes, CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Stops of a band of queries: at the edge, through whole tiles, at the edge."""
    num_queries, num_keys, _ = sizes
    seen, end = num_keys, num_keys  # by the first query, and by the last
    if CAUSAL:
        seen = band * BLOCK_M + num_keys - num_queries + 1
        end = tl.minimum(seen + BLOCK_M - 1, num_keys)
    first, whole = 0, 0
    if WINDOW:
        first = tl.maximum(seen - WINDOW, 0) // BLOCK_N * BLOCK_N
        whole = tl.cdiv(tl.maximum(seen + BLOCK_M - 1 - WINDOW, 0), BLOCK_N) * BLOCK_N
        whole = tl.minimum(whole, end)
    return first, whole, tl.maximum(whole, seen // BLOCK_N * BLOCK_N), end


@_kernel
def _tile(
    q, keys, values, rows, start, sizes, scales,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, EDGE: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The keys and values from `start` on, and the scores of some queries with them."""
    columns = start + tl.arange(0, BLOCK_N)
    k, v = _load(keys, columns, HEAD_DIM), _load(values, columns, HEAD_DIM)
    at = rows[:, None], columns[None, :]
    return k, v, _scores(q, k, at, sizes, scales, CAUSAL, WINDOW, EDGE)


@_kernel
def _forward_kernel(
    queries, keys, values, context, lse,
    sizes, scales, CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    num_queries, _, shared = sizes
    band, head = _band(num_queries, BLOCK_M, CAUSAL)
    rows = band * BLOCK_M + tl.arange(0, BLOCK_M)
    q = _load(_head(queries, head), rows, HEAD_DIM)
    keys, values = _head(keys, head // shared), _head(values, head // shared)
    m_i = tl.full([BLOCK_M], -1e38 if WINDOW else float("-inf"), tl.float32)
    l_i = tl.full([BLOCK_M], 0.0, tl.float32)
    acc = tl.full([BLOCK_M, HEAD_DIM], 0.0, tl.float32)

    stops = _columns(band, sizes, CAUSAL, WINDOW, BLOCK_M, BLOCK_N)
    for part in tl.static_range(3):
        for start in tl.range(stops[part], stops[part + 1], BLOCK_N):
            _k, v, scores = _tile(
                q, keys, values, rows, start, sizes, scales,
                CAUSAL, WINDOW, part != 1, HEAD_DIM, BLOCK_N,
            )  # fmt: skip
            m_i, l_i, acc = _absorb(scores, v, m_i, l_i, acc)

    l_i = tl.where(l_i == 0.0, 1.0, l_i)
    _store(acc / l_i[:, None], _head(context, head), rows, HEAD_DIM)
    places = lse + head.to(tl.int64) * num_queries + rows
    tl.store(places, m_i + tl.log2(l_i), mask=rows < num_queries)


@_kernel
def _numbers(vector, head, rows, length):
    """The numbers kept for these rows, one for each."""
    places = vector + head.to(tl.int64) * length + rows
    return tl.load(places, mask=rows < length, other=0.0)


@_kernel
def _rows(
    band, sizes, CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """Stops of a band of keys: at the edge, through whole tiles, at the edge."""
    num_queries, num_keys, _ = sizes
    top, last, end = 0, num_queries, num_queries
    whole = tl.where((band + 1) * BLOCK_N > num_keys, num_queries, 0)
    if CAUSAL:
        diagonal = band * BLOCK_N - (num_keys - num_queries)
        top = tl.maximum(diagonal, 0) // BLOCK_M * BLOCK_M
        whole = tl.cdiv(tl.maximum(diagonal + BLOCK_N - 1, 0), BLOCK_M) * BLOCK_M
        whole = tl.minimum(whole, num_queries)
    if WINDOW:
        end = tl.minimum(diagonal + BLOCK_N + WINDOW - 1, num_queries)
        last = tl.minimum(tl.maximum(diagonal + WINDOW, 0) // BLOCK_M * BLOCK_M, end)
    return top, whole, tl.maximum(whole, last), end


@_kernel
def _keys_kernel(
    queries, keys, values, do, lse, delta, dk, dv,
    sizes, scales, CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    num_queries, num_keys, shared = sizes
    band, group = _band(num_keys, BLOCK_N, False)
    columns = band * BLOCK_N + tl.arange(0, BLOCK_N)
    k = _load(_head(keys, group), columns, HEAD_DIM)
    v = _load(_head(values, group), columns, HEAD_DIM)
    dk_acc = tl.full([BLOCK_N, HEAD_DIM], 0.0, tl.float32)
    dv_acc = tl.full([BLOCK_N, HEAD_DIM], 0.0, tl.float32)

    stops = _rows(band, sizes, CAUSAL, WINDOW, BLOCK_M, BLOCK_N)
    for member in tl.range(shared):
        head = group * shared + member
        q_head, do_head = _head(queries, head), _head(do, head)
        for part in tl.static_range(3):
            for start in tl.range(stops[part], stops[part + 1], BLOCK_M):
                rows = start + tl.arange(0, BLOCK_M)
                q = _load(q_head, rows, HEAD_DIM)
                do_i = _load(do_head, rows, HEAD_DIM)
                at = rows[None, :], columns[:, None]
                scores = _scores(k, q, at, sizes, scales, CAUSAL, WINDOW, part != 1)
                lse_i = _numbers(lse, head, rows, num_queries)
                weights = tl.exp2(scores - lse_i[None, :])
                dv_acc += _dot(weights.to(do_i.dtype), do_i)
                delta_i = _numbers(delta, head, rows, num_queries)
                ds = weights * (_dot(v, tl.trans(do_i)) - delta_i[None, :])
                dk_acc += _dot(ds.to(q.dtype), q)

    _store(dk_acc * scales[0], _head(dk, group), columns, HEAD_DIM)
    _store(dv_acc, _head(dv, group), columns, HEAD_DIM)


@_kernel
def _queries_kernel(
    queries, keys, values, do, lse, delta, dq,
    sizes, scales, CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    num_queries, _, shared = sizes
    band, head = _band(num_queries, BLOCK_M, CAUSAL)
    rows = band * BLOCK_M + tl.arange(0, BLOCK_M)
    q = _load(_head(queries, head), rows, HEAD_DIM)
    do_i = _load(_head(do, head), rows, HEAD_DIM)
    keys, values = _head(keys, head // shared), _head(values, head // shared)
    lse_i = _numbers(lse, head, rows, num_queries)
    delta_i = _numbers(delta, head, rows, num_queries)
    dq_acc = tl.full([BLOCK_M, HEAD_DIM], 0.0, tl.float32)

    stops = _columns(band, sizes, CAUSAL, WINDOW, BLOCK_M, BLOCK_N)
    for part in tl.static_range(3):
        for start in tl.range(stops[part], stops[part + 1], BLOCK_N):
            k, v, scores = _tile(
                q, keys, values, rows, start, sizes, scales,
                CAUSAL, WINDOW, part != 1, HEAD_DIM, BLOCK_N,
            )  # fmt: skip
            weights = tl.exp2(scores - lse_i[:, None])
            ds = weights * (_dot(do_i, tl.trans(v)) - delta_i[:, None])
            dq_acc += _dot(ds.to(k.dtype), k)

    _store(dq_acc * scales[0], _head(dq, head), rows, HEAD_DIM)


@cache
def _tuned(kernel, *_):
    """The kernel, which times some tiles at its first launch and keeps the fastest."""
    tiles = [(128, 128, 8, 3), (128, 64, 8, 3), (128, 64, 4, 3), (64, 128, 8, 2)]
    tiles += [(64, 64, 4, 3), (64, 64, 8, 2), (32, 64, 4, 3), (32, 32, 4, 2)]
    configs = [
        triton.Config({"BLOCK_M": m, "BLOCK_N": n}, num_warps=warps, num_stages=stages)
        for m, n, warps, stages in tiles
    ]
    return triton.autotune(configs, key=[])(kernel)


def _interpreted() -> bool:
    """Whether Triton runs its programs one after the other, in Python."""
    return not isinstance(_forward_kernel, triton.JITFunction)


def _launch(kernel, axis, inputs, outputs, form):
    """Start a program for each band of each head of the outputs."""
    (queries, keys, *_), (scale, causal, window, tile) = inputs, form
    (_, heads, num_queries, dim), (_, groups, num_keys, _) = queries.shape, keys.shape
    constants = {"CAUSAL": causal, "WINDOW": window or 0, "HEAD_DIM": dim}
    if tile or _interpreted():
        constants["BLOCK_M"], constants["BLOCK_N"] = tile or (32, 32)
    else:
        longest = triton.next_power_of_2(max(num_queries, num_keys))
        where = queries.dtype, queries.device
        kernel = _tuned(kernel, dim, *where, causal, window, longest)

    def programs(constants):
        batch, heads, length = outputs[0].shape[:3]
        return (batch * heads * triton.cdiv(length, constants[axis]),)

    packed = (
        (t, *t.stride()[:3], *t.shape[1:3]) if t.ndim == 4 else t
        for t in (*inputs, *outputs)
    )
    sizes = num_queries, num_keys, heads // max(groups, 1)
    scales = scale, scale * math.log2(math.e)
    with torch.cuda.device_of(queries):
        kernel[programs](*packed, sizes, scales, **constants)


def _readable(tensor: Tensor) -> Tensor:
    """The same, in a form that a kernel can read: each row's numbers side by side."""
    if _interpreted() and tensor.dtype == torch.bfloat16:
        tensor = tensor.float()
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _backward(do, dlse, context, lse, queries, keys, values, form):
    """Gradients of queries, keys and values; the logsumexp is to base 2."""
    delta = (do.float() * context).sum(dim=-1) - dlse * math.log2(math.e)
    four = [_readable(tensor) for tensor in (queries, keys, values, do)]
    dq, dk, dv = (tensor.new_empty(tensor.shape) for tensor in four[:3])
    given = *four, lse.contiguous(), delta.contiguous()
    _launch(_queries_kernel, "BLOCK_M", given, [dq], form)
    _launch(_keys_kernel, "BLOCK_N", given, [dk, dv], form)
    return [gradient.to(queries.dtype) for gradient in (dq, dk, dv)]


class _Kernels(NamedTuple):
    """Both passes, for tensors (..., heads, length, head_dim)."""

    scale: float
    causal: bool
    window: int | None
    tile: tuple[int, int] | None
    name = "triton_attend"

    def nothing(self, queries, keys, values):
        """What `forward` gives, still empty."""
        lse = queries.new_empty(queries.shape[:-1], dtype=torch.float32)
        return queries.new_empty(queries.shape), lse

    def forward(self, queries, keys, values, *_):
        _import_triton()  # a graph may be the first to ask
        three = [_readable(t.flatten(0, -4)) for t in (queries, keys, values)]
        context = three[0].new_empty(three[0].shape)
        lse = context.new_empty(context.shape[:-1], dtype=torch.float32)
        _launch(_forward_kernel, "BLOCK_M", three, [context, lse], self)
        context, shape = context.to(queries.dtype), queries.shape
        return context.view(shape), lse.view(shape[:-1])

    def backward(self, do, dlse, context, lse, queries, keys, values, *_, needed):
        many = do, context, queries, keys, values
        do, context, *three = (tensor.flatten(0, -4) for tensor in many)
        dlse, lse = dlse.flatten(0, -3), lse.flatten(0, -3)
        gradients = _backward(do, dlse, context, lse, *three, self)
        shapes = queries.shape, keys.shape, values.shape
        return [g.view(shape) for g, shape in zip(gradients, shapes, strict=True)]


_FIELDS = "float scale, bool causal, int? window, int[]? tile"
declare_operator(_Kernels, _FIELDS)

_HEAD_DIMS, _BLOCKS = (16, 32, 64, 128), (16, 32, 64, 128, 256)
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def _check_support(queries, values, mask, dropout_p, tile):
    """ValueError for what the kernels cannot do."""

    def need(name, holds, must, got):
        if not holds:
            raise expected(name, must, got)

    need("mask", mask is None, "none, for triton_attend has causal and window", mask)
    check_no_dropout("triton_attend", dropout_p)
    dtypes = " or ".join(map(str, _DTYPES))
    need("queries, keys and values", queries.dtype in _DTYPES, dtypes, queries.dtype)
    one, widths = f"one width among {_HEAD_DIMS}", (queries.shape[-1], values.shape[-1])
    fits = widths[0] == widths[1] and widths[0] in _HEAD_DIMS
    need("queries, keys and values", fits, one, f"{widths[0]} and {widths[1]}")
    if tile is not None:
        pair = isinstance(tile, Sequence) and len(tile) == 2
        fits = pair and all(is_size(n) and n in _BLOCKS for n in tile)
        need("tile", fits, f"(BLOCK_M, BLOCK_N), two of {_BLOCKS}", tile)


def _check_device(queries):
    kind = queries.device.type
    if not (kind == "cuda" or (kind == "cpu" and _interpreted())):
        must = "CUDA, or the CPU if TRITON_INTERPRET=1 is set"
        raise expected("device", must, queries.device)


def triton_attend(
    queries: Float[Tensor, "*queries_batch num_queries head_dim"],
    keys: Float[Tensor, "*keys_batch num_keys head_dim"],
    values: Float[Tensor, "*values_batch num_keys head_dim"],
    mask: Tensor | None = None,
    *,
    causal: bool = False,
    dropout_p: float = 0.0,
    scale: float | Tensor | None = None,
    window: int | None = None,
    tile: tuple[int, int] | None = None,
    return_lse: bool = False,
) -> (
    Float[Tensor, "*batch num_queries head_dim"]
    | tuple[
        Float[Tensor, "*batch num_queries head_dim"],
        Float[Tensor, "*batch num_queries"],
    ]
):
    """Context vectors by kernels in Triton, for CUDA; equals `attend`.

    float16, bfloat16 or float32; widths 16, 32, 64 and 128, of values too. Memory grows
    linearly with length, forward and backward. Axis -3 counts heads: keys and values
    may have fewer, each then serving as many query heads in a row as needed, and are
    read where they lie. causal=True is lower-right: the queries are the last of the
    keys; `scaled_dot_product_attention(is_causal=True)` and JAX align upper-left:
    `attend` and `flash_attend` take `mask=torch.ones(i, j, dtype=torch.bool).tril()`
    for that. `window` is how many keys a causal query sees, its own included. `tile` is
    (BLOCK_M, BLOCK_N), how many queries and keys are taken at once; by default the
    fastest of a few, timed at the first call. A `scale` that is a tensor may be
    learned. With return_lse=True the logsumexp of each query's scores comes along, base
    e, in float32, as `merge_states` takes it.

    On a CPU Triton's interpreter runs it, slowly, if TRITON_INTERPRET=1 is set before
    Triton is imported. ValueError for a misfit and for what is not supported (a mask,
    dropout), RuntimeError for a second derivative, or one in forward mode,
    ModuleNotFoundError without Triton. Dao et al. 2022; Dao 2024; Tillet et al. 2019.
    """
    window = check_window(window, causal)
    queries, keys, values = unified(queries, keys, values)
    shape = check_fit(queries, keys, values, causal=causal)
    _check_support(queries, values, mask, dropout_p, tile)
    if not traced():  # tracers cannot look into Triton
        _import_triton()
        _check_device(queries)
    tile = None if tile is None else tuple(map(own_number, tile))
    queries, scale = scale_queries(queries, scale)
    three = broadcast_heads(queries, keys, values, shape)
    context, lse = TwoPasses.run(_Kernels(scale, causal, window, tile), *three)
    context = context.view(*shape[:-1], queries.shape[-1])
    return (context, lse.view(shape[:-1]) * math.log(2)) if return_lse else context
