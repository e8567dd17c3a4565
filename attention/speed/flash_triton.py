"""Flash attention in Triton

Flash attention as kernels for a GPU, forward and backward: each program makes, uses
and forgets its tiles next to where they are multiplied.

Written by `book/speed/flash_triton.ipynb`: read and change it there.
"""

from __future__ import annotations  # Triton reads tl.constexpr as a word

import inspect
import math
from collections.abc import Callable
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from attention.core.scaled_dot_product import check_fit
from attention.speed.flash import TwoPasses

__all__ = ["triton_attend"]


_WAITING = []


def _kernel(function: Callable) -> Callable:
    """Mark what Triton shall compile; it waits until somebody needs it."""
    _WAITING.append(function)
    return function


def _import_triton() -> None:
    """Import Triton, and put what it compiles in the place of what waits for it."""
    global tl, triton
    try:
        import triton
        import triton.language as tl
    except ModuleNotFoundError as error:
        how = "pip install 'building-attention[triton]'"
        raise ModuleNotFoundError(f"triton_attend needs Triton: {how}") from error
    if triton.knobs.runtime.interpret == isinstance(tl.cdiv, triton.JITFunction):
        must = "TRITON_INTERPRET must not change after Triton is imported"
        raise RuntimeError(f"{must}: set it before, or start anew")
    while _WAITING:
        function = inspect.unwrap(_WAITING.pop())
        globals()[function.__name__] = triton.jit(function)


@_kernel
def _places(matrix, rows, DIM: tl.constexpr):
    """Where in memory these rows of a matrix lie."""
    start, step, _ = matrix
    return start + rows[:, None].to(tl.int64) * step + tl.arange(0, DIM)[None, :]


@_kernel
def _load(matrix, rows, DIM: tl.constexpr):
    """These rows of a matrix; zeros for those beyond its end."""
    there = rows[:, None] < matrix[2]
    return tl.load(_places(matrix, rows, DIM), mask=there, other=0.0)


@_kernel
def _store(tile, matrix, rows, DIM: tl.constexpr):
    """Write a tile to these rows of a matrix, and nothing beyond its end."""
    tile = tile.to(matrix[0].dtype.element_ty)
    tl.store(_places(matrix, rows, DIM), tile, mask=rows[:, None] < matrix[2])


@_kernel
def _head(tensor, head):
    """The matrix of a head: where it starts, its step from row to row, its length."""
    start, of_batch, of_head, of_row, heads, length = tensor
    start += (head // heads).to(tl.int64) * of_batch
    return start + (head % heads).to(tl.int64) * of_head, of_row, length


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
def _absorb(scores, v, largest, total, summed):
    """Take a tile into the largest score, the sum of weights, the weighted values."""
    larger = tl.maximum(largest, tl.max(scores, 1))
    shrink = tl.exp2(largest - larger)
    weights = tl.exp2(scores - larger[:, None])
    total = total * shrink + tl.sum(weights, 1)
    summed = summed * shrink[:, None] + _dot(weights.to(v.dtype), v)
    return larger, total, summed


@_kernel
def _band(length, SIDE: tl.constexpr, LAST_FIRST: tl.constexpr):
    """Which band of rows, each `SIDE` high, is this program's, and of which head."""
    bands = tl.cdiv(length, SIDE)
    band, head = tl.program_id(0) % bands, tl.program_id(0) // bands
    if LAST_FIRST:
        band = bands - 1 - band
    return band, head


@_kernel
def _columns(
    band, sizes, CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Stops of a band of queries: at the edge, through whole tiles, at the edge."""
    num_queries, num_keys, _ = sizes
    seen, end = num_keys, num_keys  # by the first query, and by the last
    if CAUSAL:
        seen = band * HEIGHT + num_keys - num_queries + 1
        end = tl.minimum(seen + HEIGHT - 1, num_keys)
    first, whole = 0, 0
    if WINDOW:
        first = tl.maximum(seen - WINDOW, 0) // WIDTH * WIDTH
        whole = tl.cdiv(tl.maximum(seen + HEIGHT - 1 - WINDOW, 0), WIDTH) * WIDTH
        whole = tl.minimum(whole, end)
    return first, whole, tl.maximum(whole, seen // WIDTH * WIDTH), end


@_kernel
def _tile(
    q, keys, values, rows, start, sizes, scales,
    CAUSAL: tl.constexpr, WINDOW: tl.constexpr, EDGE: tl.constexpr,
    DIM: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The keys and values from `start` on, and the scores of some queries with them."""
    columns = start + tl.arange(0, WIDTH)
    k, v = _load(keys, columns, DIM), _load(values, columns, DIM)
    at = rows[:, None], columns[None, :]
    return k, v, _scores(q, k, at, sizes, scales, CAUSAL, WINDOW, EDGE)


@_kernel
def _forward_kernel(
    queries, keys, values, context, logsumexp,
    sizes, scales, CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
    DIM: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    num_queries, _, shared = sizes
    band, head = _band(num_queries, HEIGHT, CAUSAL)
    rows = band * HEIGHT + tl.arange(0, HEIGHT)
    q = _load(_head(queries, head), rows, DIM)
    keys, values = _head(keys, head // shared), _head(values, head // shared)
    largest = tl.full([HEIGHT], -1e38 if WINDOW else float("-inf"), tl.float32)
    total = tl.full([HEIGHT], 0.0, tl.float32)
    summed = tl.full([HEIGHT, DIM], 0.0, tl.float32)

    stops = _columns(band, sizes, CAUSAL, WINDOW, HEIGHT, WIDTH)
    for part in tl.static_range(3):
        for start in tl.range(stops[part], stops[part + 1], WIDTH):
            _k, v, scores = _tile(
                q, keys, values, rows, start, sizes, scales,
                CAUSAL, WINDOW, part != 1, DIM, WIDTH,
            )  # fmt: skip
            largest, total, summed = _absorb(scores, v, largest, total, summed)

    total = tl.where(total == 0.0, 1.0, total)
    _store(summed / total[:, None], _head(context, head), rows, DIM)
    places = logsumexp + head.to(tl.int64) * num_queries + rows
    tl.store(places, largest + tl.log2(total), mask=rows < num_queries)


@_kernel
def _numbers(vector, head, rows, length):
    """What was kept for these rows, one number for each."""
    places = vector + head.to(tl.int64) * length + rows
    return tl.load(places, mask=rows < length, other=0.0)


@_kernel
def _rows(
    band, sizes, CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Stops of a band of keys: at the edge, through whole tiles, at the edge."""
    num_queries, num_keys, _ = sizes
    top, whole, last, end = 0, 0, num_queries, num_queries
    if CAUSAL:
        diagonal = band * WIDTH - (num_keys - num_queries)
        top = tl.maximum(diagonal, 0) // HEIGHT * HEIGHT
        whole = tl.cdiv(tl.maximum(diagonal + WIDTH - 1, 0), HEIGHT) * HEIGHT
        whole = tl.minimum(whole, num_queries)
    if WINDOW:
        end = tl.minimum(diagonal + WIDTH + WINDOW - 1, num_queries)
        last = tl.minimum(tl.maximum(diagonal + WINDOW, 0) // HEIGHT * HEIGHT, end)
    return top, whole, tl.maximum(whole, last), end


@_kernel
def _keys_kernel(
    queries, keys, values, arrived, logsumexp, row_sums, for_keys, for_values,
    sizes, scales, CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
    DIM: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    num_queries, num_keys, shared = sizes
    band, group = _band(num_keys, WIDTH, False)
    columns = band * WIDTH + tl.arange(0, WIDTH)
    k = _load(_head(keys, group), columns, DIM)
    v = _load(_head(values, group), columns, DIM)
    dk = tl.full([WIDTH, DIM], 0.0, tl.float32)
    dv = tl.full([WIDTH, DIM], 0.0, tl.float32)

    stops = _rows(band, sizes, CAUSAL, WINDOW, HEIGHT, WIDTH)
    for member in tl.range(shared):
        head = group * shared + member
        q_head, do_head = _head(queries, head), _head(arrived, head)
        for part in tl.static_range(3):
            for start in tl.range(stops[part], stops[part + 1], HEIGHT):
                rows = start + tl.arange(0, HEIGHT)
                q, do = _load(q_head, rows, DIM), _load(do_head, rows, DIM)
                at = rows[None, :], columns[:, None]
                scores = _scores(k, q, at, sizes, scales, CAUSAL, WINDOW, part != 1)
                kept = _numbers(logsumexp, head, rows, num_queries)
                weights = tl.exp2(scores - kept[None, :])
                dv += _dot(weights.to(do.dtype), do)
                row_sum = _numbers(row_sums, head, rows, num_queries)
                slopes = weights * (_dot(v, tl.trans(do)) - row_sum[None, :])
                dk += _dot(slopes.to(q.dtype), q)

    _store(dk * scales[0], _head(for_keys, group), columns, DIM)
    _store(dv, _head(for_values, group), columns, DIM)


@_kernel
def _queries_kernel(
    queries, keys, values, arrived, logsumexp, row_sums, for_queries,
    sizes, scales, CAUSAL: tl.constexpr, WINDOW: tl.constexpr,
    DIM: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    num_queries, _, shared = sizes
    band, head = _band(num_queries, HEIGHT, CAUSAL)
    rows = band * HEIGHT + tl.arange(0, HEIGHT)
    q = _load(_head(queries, head), rows, DIM)
    do = _load(_head(arrived, head), rows, DIM)
    keys, values = _head(keys, head // shared), _head(values, head // shared)
    kept = _numbers(logsumexp, head, rows, num_queries)
    row_sum = _numbers(row_sums, head, rows, num_queries)
    dq = tl.full([HEIGHT, DIM], 0.0, tl.float32)

    stops = _columns(band, sizes, CAUSAL, WINDOW, HEIGHT, WIDTH)
    for part in tl.static_range(3):
        for start in tl.range(stops[part], stops[part + 1], WIDTH):
            k, v, scores = _tile(
                q, keys, values, rows, start, sizes, scales,
                CAUSAL, WINDOW, part != 1, DIM, WIDTH,
            )  # fmt: skip
            weights = tl.exp2(scores - kept[:, None])
            slopes = weights * (_dot(do, tl.trans(v)) - row_sum[:, None])
            dq += _dot(slopes.to(k.dtype), k)

    _store(dq * scales[0], _head(for_queries, head), rows, DIM)


@cache
def _tuned(kernel, *_):
    """The kernel, which times some tiles at its first launch and keeps the fastest."""
    tiles = [(128, 128, 8, 3), (128, 64, 8, 3), (128, 64, 4, 3), (64, 128, 8, 2)]
    tiles += [(64, 64, 4, 3), (64, 64, 8, 2), (32, 64, 4, 3), (32, 32, 4, 2)]
    configs = [
        triton.Config({"HEIGHT": h, "WIDTH": w}, num_warps=warps, num_stages=stages)
        for h, w, warps, stages in tiles
    ]
    return triton.autotune(configs, key=[])(kernel)


def _interpreted() -> bool:
    """Does Triton run its programs one after the other, in Python?"""
    return not isinstance(_forward_kernel, triton.JITFunction)


def _launch(kernel, axis, inputs, outputs, settings):
    """Start a program for each head of what is made and each of its bands."""
    (queries, keys, *_), (scale, causal, window, tile) = inputs, settings
    (_, heads, num_queries, dim), (_, groups, num_keys, _) = queries.shape, keys.shape
    constants = {"CAUSAL": causal, "WINDOW": window or 0, "DIM": dim}
    if tile or _interpreted():
        constants["HEIGHT"], constants["WIDTH"] = tile or (32, 32)
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
    sizes = num_queries, num_keys, heads // groups
    scales = scale, scale * math.log2(math.e)
    with torch.cuda.device_of(queries):
        kernel[programs](*packed, sizes, scales, **constants)


def _readable(tensor: Tensor) -> Tensor:
    """The same as a kernel can read it: the numbers of a row side by side."""
    if _interpreted() and tensor.dtype == torch.bfloat16:
        tensor = tensor.float()
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _backward(queries, keys, values, context, logsumexp, arrived, settings):
    """Gradients of queries, keys and values."""
    row_sums = (arrived.float() * context).sum(dim=-1)
    four = [_readable(tensor) for tensor in (queries, keys, values, arrived)]
    dq, dk, dv = (tensor.new_empty(tensor.shape) for tensor in four[:3])
    kept = *four, logsumexp, row_sums
    _launch(_queries_kernel, "HEIGHT", kept, [dq], settings)
    _launch(_keys_kernel, "WIDTH", kept, [dk, dv], settings)
    return (gradient.to(queries.dtype) for gradient in (dq, dk, dv))


class _Flash(TwoPasses):
    """Both passes; tensors are (batch, heads, length, width), the logsumexp base 2."""

    @staticmethod
    def forward(queries, keys, values, settings):
        three = [_readable(tensor) for tensor in (queries, keys, values)]
        context = three[0].new_empty(queries.shape)
        logsumexp = queries.new_empty(queries.shape[:-1], dtype=torch.float32)
        _launch(_forward_kernel, "HEIGHT", three, [context, logsumexp], settings)
        return context.to(queries.dtype), logsumexp

    @staticmethod
    def backward(ctx, arrived, _):
        TwoPasses.refuse_second("triton_attend")
        return *_backward(*ctx.saved_tensors, arrived, ctx.settings), None


_WIDTHS, _SIDES = (16, 32, 64, 128), (16, 32, 64, 128, 256)
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def _check_support(queries, values, mask, causal, dropout_p, window, tile):
    """ValueError for what the kernels cannot do."""

    def need(holds, what, came):
        if not holds:
            raise ValueError(f"triton_attend supports {what}, came {came}")

    shape = None if mask is None else tuple(mask.shape)
    need(mask is None, "no mask but causal=True", f"a mask of {shape}")
    whole = type(window) is int and window >= 1 and causal
    rule = "a whole window of at least 1 with causal=True"
    need(window is None or whole, rule, f"{window=} with {causal=}")
    need(dropout_p == 0, "dropout_p=0 alone", f"{dropout_p=}")
    need(queries.dtype in _DTYPES, ", ".join(map(str, _DTYPES)), queries.dtype)
    widths, one = {queries.shape[-1], values.shape[-1]}, f"one width among {_WIDTHS}"
    need(len(widths) == 1 and widths <= set(_WIDTHS), one, sorted(widths))
    fits = tile is None or (len(tile) == 2 and set(tile) <= set(_SIDES))
    need(fits, f"two of {_SIDES} for a tile", f"{tile=}")
    kind, where = queries.device.type, "CUDA, and the CPU if TRITON_INTERPRET=1 is set"
    need(kind == "cuda" or (kind == "cpu" and _interpreted()), where, queries.device)


def _shape(queries, keys, values, causal):
    """The shape of the scores; keys and values may have fewer heads than queries."""
    heads, groups = (t.shape[-3] if t.ndim > 2 else 1 for t in (queries, keys))
    if not (1 < groups < heads and heads % groups == 0):
        return check_fit(queries, keys, values, causal=causal)
    firsts = queries[..., :: heads // groups, :, :]  # of those that share keys
    *batch, _, num_queries, num_keys = check_fit(firsts, keys, values, causal=causal)
    return *batch, heads, num_queries, num_keys


def _attend(queries, keys, values, mask, causal, dropout_p, scale, window, tile):
    """Context and logsumexp, base e, as `merge_states` takes them."""
    shape = _shape(queries, keys, values, causal)
    _import_triton()
    _check_support(queries, values, mask, causal, dropout_p, window, tile)
    heads = shape[-3] if len(shape) > 2 else 1
    groups = max(t.shape[-3] if t.ndim > 2 else 1 for t in (keys, values))
    three = (
        tensor.expand(1, *shape[:-3], count, -1, -1).flatten(0, -4)
        for tensor, count in ((queries, heads), (keys, groups), (values, groups))
    )
    scale = queries.shape[-1] ** -0.5 if scale is None else scale
    context, logsumexp = _Flash.apply(*three, (scale, causal, window, tile))
    context = context.view(*shape[:-1], queries.shape[-1])
    return context, logsumexp.view(shape[:-1]) * math.log(2)


def triton_attend(
    queries: Float[Tensor, "*queries_batch num_queries head_dim"],
    keys: Float[Tensor, "*keys_batch num_keys head_dim"],
    values: Float[Tensor, "*values_batch num_keys head_dim"],
    mask: Tensor | None = None,
    *,
    causal: bool = False,
    dropout_p: float = 0.0,
    scale: float | None = None,
    window: int | None = None,
    tile: tuple[int, int] | None = None,
) -> Float[Tensor, "*batch num_queries head_dim"]:
    """Context vectors by kernels in Triton, for CUDA; equals `attend`.

    float16, bfloat16 or float32; widths 16, 32, 64 and 128, of values too. Memory grows
    linearly with length, forward and backward. Axis -3 counts heads: keys and values
    may have fewer, each then serving as many query heads in a row as needed. With
    `window`, a causal query sees that many keys, the one at its own place included.
    `tile` is how many queries and keys are taken at once; by default the fastest of a
    few, timed at the first call. On a CPU Triton's interpreter runs it, slowly, if
    TRITON_INTERPRET=1 is set before Triton is imported. ValueError for a misfit and for
    what is not supported (a mask, dropout), ModuleNotFoundError without Triton.
    Dao et al. 2022; Dao 2024; Tillet et al. 2019.
    """
    options = mask, causal, dropout_p, scale, window, tile
    return _attend(queries, keys, values, *options)[0]
