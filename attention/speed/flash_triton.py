"""Flash attention in Triton

Flash attention as kernels for a GPU, forward and backward: each program makes, uses
and forgets its tiles next to where they are multiplied.

Written by `book/speed/flash_triton.ipynb`: read and change it there.
"""

from __future__ import annotations  # Triton reads tl.constexpr as a word

import inspect
import math
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from attention.core.scaled_dot_product import check_fit

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
    start, step = matrix
    return start + rows[:, None].to(tl.int64) * step + tl.arange(0, DIM)[None, :]


@_kernel
def _load(matrix, rows, length, DIM: tl.constexpr):
    """These rows of a matrix; zeros for those beyond its end."""
    return tl.load(_places(matrix, rows, DIM), mask=rows[:, None] < length, other=0.0)


@_kernel
def _store(tile, matrix, rows, length, DIM: tl.constexpr):
    """Write a tile to these rows of a matrix, and nothing beyond its end."""
    tile = tile.to(matrix[0].dtype.element_ty)
    tl.store(_places(matrix, rows, DIM), tile, mask=rows[:, None] < length)


@_kernel
def _head(matrices, head, sizes, shared):
    """The matrix of a head: where it starts, and how far it is from row to row."""
    start, of_batch, of_head, of_row = matrices
    batch, head = head // sizes[0], head % sizes[0] // shared
    return start + batch.to(tl.int64) * of_batch + head.to(tl.int64) * of_head, of_row


@_kernel
def _dot(left, right):
    """The product of two tiles, summed in float32."""
    return tl.dot(left, right, input_precision="ieee")


@_kernel
def _hide(scores, rows, columns, sizes, CAUSAL: tl.constexpr):
    """Minus infinity for keys that are in the future, or not there at all."""
    _, _, num_queries, num_keys = sizes
    seen = columns < num_keys
    if CAUSAL:
        seen = seen & (columns <= rows + num_keys - num_queries)
    return tl.where(seen, scores, float("-inf"))


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
def _band(sizes, HEIGHT: tl.constexpr, CAUSAL: tl.constexpr):
    """Which band of queries is this program's, and of which head."""
    bands = tl.cdiv(sizes[2], HEIGHT)
    band, head = tl.program_id(0) % bands, tl.program_id(0) // bands
    if CAUSAL:
        band = bands - 1 - band
    return band, head


@_kernel
def _columns(
    band, sizes, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, CAUSAL: tl.constexpr
):
    """Where the whole tiles of a band of queries end, and where all of them do."""
    _, _, num_queries, num_keys = sizes
    seen, end = num_keys, num_keys  # by the first query, and by the last
    if CAUSAL:
        seen = band * HEIGHT + num_keys - num_queries + 1
        end = tl.minimum(seen + HEIGHT - 1, num_keys)
    return seen // WIDTH * WIDTH, end


@_kernel
def _forward_kernel(
    queries, keys, values, context, logsumexp,
    sizes, scales, CAUSAL: tl.constexpr, DIM: tl.constexpr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    _, shared, num_queries, num_keys = sizes
    band, head = _band(sizes, HEIGHT, CAUSAL)
    queries, context = _head(queries, head, sizes, 1), _head(context, head, sizes, 1)
    keys, values = _head(keys, head, sizes, shared), _head(values, head, sizes, shared)
    rows = band * HEIGHT + tl.arange(0, HEIGHT)
    q = _load(queries, rows, num_queries, DIM)
    largest = tl.full([HEIGHT], float("-inf"), tl.float32)
    total = tl.full([HEIGHT], 0.0, tl.float32)
    summed = tl.full([HEIGHT, DIM], 0.0, tl.float32)

    whole, end = _columns(band, sizes, HEIGHT, WIDTH, CAUSAL)
    for edge in tl.static_range(2):
        for start in tl.range(whole if edge else 0, end if edge else whole, WIDTH):
            columns = start + tl.arange(0, WIDTH)
            k = _load(keys, columns, num_keys, DIM)
            v = _load(values, columns, num_keys, DIM)
            scores = _dot(q, tl.trans(k)) * scales[1]
            if edge:
                scores = _hide(scores, rows[:, None], columns[None, :], sizes, CAUSAL)
            largest, total, summed = _absorb(scores, v, largest, total, summed)

    total = tl.where(total == 0.0, 1.0, total)
    _store(summed / total[:, None], context, rows, num_queries, DIM)
    places = logsumexp + head.to(tl.int64) * num_queries + rows
    tl.store(places, largest + tl.log2(total), mask=rows < num_queries)


@_kernel
def _numbers(vector, head, rows, length):
    """What was kept for these rows, one number for each."""
    places = vector + head.to(tl.int64) * length + rows
    return tl.load(places, mask=rows < length, other=0.0)


@_kernel
def _rows(band, sizes, HEIGHT: tl.constexpr, WIDTH: tl.constexpr, CAUSAL: tl.constexpr):
    """Where the tiles of a band of keys start, and where its whole ones do."""
    _, _, num_queries, num_keys = sizes
    top, whole = 0, 0
    if CAUSAL:
        diagonal = band * WIDTH - (num_keys - num_queries)
        top = tl.maximum(diagonal, 0) // HEIGHT * HEIGHT
        whole = tl.cdiv(tl.maximum(diagonal + WIDTH - 1, 0), HEIGHT) * HEIGHT
    return top, tl.minimum(whole, num_queries)


@_kernel
def _keys_kernel(
    queries, keys, values, arrived, logsumexp, row_sums, for_keys, for_values,
    sizes, scales, CAUSAL: tl.constexpr, DIM: tl.constexpr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    _, shared, num_queries, num_keys = sizes
    bands = tl.cdiv(num_keys, WIDTH)
    band, first = tl.program_id(0) % bands, tl.program_id(0) // bands * shared
    columns = band * WIDTH + tl.arange(0, WIDTH)
    keys, values = (
        _head(keys, first, sizes, shared),
        _head(values, first, sizes, shared),
    )
    k, v = _load(keys, columns, num_keys, DIM), _load(values, columns, num_keys, DIM)
    dk = tl.full([WIDTH, DIM], 0.0, tl.float32)
    dv = tl.full([WIDTH, DIM], 0.0, tl.float32)

    top, whole = _rows(band, sizes, HEIGHT, WIDTH, CAUSAL)
    for member in tl.range(shared):
        head = first + member
        q_head, do_head = _head(queries, head, sizes, 1), _head(arrived, head, sizes, 1)
        for edge in tl.static_range(2):
            ends = (top, whole) if edge else (whole, num_queries)
            for start in tl.range(ends[0], ends[1], HEIGHT):
                rows = start + tl.arange(0, HEIGHT)
                q = _load(q_head, rows, num_queries, DIM)
                do = _load(do_head, rows, num_queries, DIM)
                scores = _dot(k, tl.trans(q)) * scales[1]
                if edge:
                    at = rows[None, :], columns[:, None]
                    scores = _hide(scores, at[0], at[1], sizes, CAUSAL)
                kept = _numbers(logsumexp, head, rows, num_queries)
                weights = tl.exp2(scores - kept[None, :])
                dv += _dot(weights.to(do.dtype), do)
                row_sum = _numbers(row_sums, head, rows, num_queries)
                slopes = weights * (_dot(v, tl.trans(do)) - row_sum[None, :])
                dk += _dot(slopes.to(q.dtype), q)

    for_keys = _head(for_keys, first, sizes, shared)
    for_values = _head(for_values, first, sizes, shared)
    _store(dk * scales[0], for_keys, columns, num_keys, DIM)
    _store(dv, for_values, columns, num_keys, DIM)


@_kernel
def _queries_kernel(
    queries, keys, values, arrived, logsumexp, row_sums, for_queries,
    sizes, scales, CAUSAL: tl.constexpr, DIM: tl.constexpr,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    _, shared, num_queries, num_keys = sizes
    band, head = _band(sizes, HEIGHT, CAUSAL)
    queries, arrived = _head(queries, head, sizes, 1), _head(arrived, head, sizes, 1)
    keys, values = _head(keys, head, sizes, shared), _head(values, head, sizes, shared)
    rows = band * HEIGHT + tl.arange(0, HEIGHT)
    q = _load(queries, rows, num_queries, DIM)
    do = _load(arrived, rows, num_queries, DIM)
    kept = _numbers(logsumexp, head, rows, num_queries)
    row_sum = _numbers(row_sums, head, rows, num_queries)
    dq = tl.full([HEIGHT, DIM], 0.0, tl.float32)

    whole, end = _columns(band, sizes, HEIGHT, WIDTH, CAUSAL)
    for edge in tl.static_range(2):
        for start in tl.range(whole if edge else 0, end if edge else whole, WIDTH):
            columns = start + tl.arange(0, WIDTH)
            k = _load(keys, columns, num_keys, DIM)
            v = _load(values, columns, num_keys, DIM)
            scores = _dot(q, tl.trans(k)) * scales[1]
            if edge:
                scores = _hide(scores, rows[:, None], columns[None, :], sizes, CAUSAL)
            weights = tl.exp2(scores - kept[:, None])
            slopes = weights * (_dot(do, tl.trans(v)) - row_sum[:, None])
            dq += _dot(slopes.to(k.dtype), k)

    for_queries = _head(for_queries, head, sizes, 1)
    _store(dq * scales[0], for_queries, rows, num_queries, DIM)


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


def _launch(kernel, heads, axis, tensors, sizes, settings):
    """Start a program for each of the heads and each of its bands along `axis`."""
    scale, causal, tile = settings
    dim, dtype, device = tensors[0].shape[-1], tensors[0].dtype, tensors[0].device
    constants = {"CAUSAL": causal, "DIM": dim}
    if tile or _interpreted():
        constants["HEIGHT"], constants["WIDTH"] = tile or (32, 32)
    else:
        longest = triton.next_power_of_2(max(sizes[2:]))
        kernel = _tuned(kernel, dim, dtype, device, causal, longest)

    def programs(constants):
        length = {"HEIGHT": sizes[2], "WIDTH": sizes[3]}[axis]
        return (heads * triton.cdiv(length, constants[axis]),)

    packed = [(t, *t.stride()[:3]) if t.ndim == 4 else t for t in tensors]
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[programs](
            *packed, sizes, (scale, scale * math.log2(math.e)), **constants
        )


def _readable(tensor: Tensor) -> Tensor:
    """The same as a kernel can read it: the numbers of a row side by side."""
    if _interpreted() and tensor.dtype == torch.bfloat16:
        tensor = tensor.float()
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _sizes(queries: Tensor, keys: Tensor) -> tuple[int, int, int, int]:
    """What kernels are told: heads, how many of them share keys, and two lengths."""
    (_, heads, num_queries, _), (_, groups, num_keys, _) = queries.shape, keys.shape
    return heads, heads // groups, num_queries, num_keys


def _backward(queries, keys, values, context, logsumexp, arrived, settings):
    """Gradients of queries, keys and values."""
    sizes, row_sums = _sizes(queries, keys), (arrived.float() * context).sum(dim=-1)
    four = [_readable(tensor) for tensor in (queries, keys, values, arrived)]
    dq, dk, dv = (tensor.new_empty(tensor.shape) for tensor in four[:3])
    kept, heads = (*four, logsumexp, row_sums), queries.shape[:2].numel()
    _launch(_queries_kernel, heads, "HEIGHT", (*kept, dq), sizes, settings)
    groups = keys.shape[:2].numel()
    _launch(_keys_kernel, groups, "WIDTH", (*kept, dk, dv), sizes, settings)
    return (gradient.to(queries.dtype) for gradient in (dq, dk, dv))


class _Flash(torch.autograd.Function):
    """Both passes; tensors are (batch, heads, length, width), the logsumexp base 2."""

    @staticmethod
    def forward(queries, keys, values, settings):
        sizes, heads = _sizes(queries, keys), queries.shape[:2].numel()
        three = [_readable(tensor) for tensor in (queries, keys, values)]
        context = three[0].new_empty(queries.shape)
        logsumexp = queries.new_empty(queries.shape[:-1], dtype=torch.float32)
        tensors = (*three, context, logsumexp)
        _launch(_forward_kernel, heads, "HEIGHT", tensors, sizes, settings)
        return context.to(queries.dtype), logsumexp

    @staticmethod
    def setup_context(ctx, inputs, output):
        *three, ctx.settings = inputs
        ctx.save_for_backward(*three, *output)
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx, arrived, _):
        if torch.is_grad_enabled():
            what = "the second derivative of triton_attend is not implemented"
            raise RuntimeError(f"{what}: create_graph must be False, came True")
        return *_backward(*ctx.saved_tensors, arrived, ctx.settings), None


_WIDTHS = (16, 32, 64, 128)
_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def _check_support(queries, values, mask, dropout_p, tile):
    """ValueError for what the kernels cannot do."""

    def need(holds, what, came):
        if not holds:
            raise ValueError(f"triton_attend supports {what}, came {came}")

    shape = None if mask is None else tuple(mask.shape)
    need(mask is None, "no mask but causal=True", f"a mask of {shape}")
    need(dropout_p == 0, "dropout_p=0 alone", f"{dropout_p=}")
    dtypes = ", ".join(map(str, _DTYPES))
    need(queries.dtype in _DTYPES, dtypes, queries.dtype)
    widths, one = {queries.shape[-1], values.shape[-1]}, f"one width among {_WIDTHS}"
    need(len(widths) == 1 and widths <= set(_WIDTHS), one, sorted(widths))
    sides = (16, 32, 64, 128, 256)
    fits = tile is None or (len(tile) == 2 and set(tile) <= set(sides))
    need(fits, f"two of {sides} for a tile", f"{tile=}")
    kind, where = queries.device.type, "CUDA, and the CPU if TRITON_INTERPRET=1 is set"
    need(kind == "cuda" or (kind == "cpu" and _interpreted()), where, queries.device)


def _shape(queries, keys, values, causal):
    """The shape of the scores; keys and values may have fewer heads than queries."""
    heads, groups = (t.shape[-3] if t.ndim > 2 else 1 for t in (queries, keys))
    if not (values.ndim > 2 and 1 < groups < heads and heads % groups == 0):
        return check_fit(queries, keys, values, causal=causal)
    queries = queries.unflatten(-3, (groups, -1))
    shape = check_fit(queries, keys.unsqueeze(-3), values.unsqueeze(-3), causal=causal)
    return *shape[:-4], heads, *shape[-2:]


def _attend(queries, keys, values, mask, causal, dropout_p, scale, tile):
    """Context and logsumexp, base e, as `merge` takes them."""
    shape = _shape(queries, keys, values, causal)
    _import_triton()
    _check_support(queries, values, mask, dropout_p, tile)
    batch, heads = shape[:-3], shape[-3] if len(shape) > 2 else 1
    groups = max(t.shape[-3] if t.ndim > 2 else 1 for t in (keys, values))

    def four_axes(tensor, heads):
        tensor = tensor.expand(*batch, heads, -1, -1)
        return tensor.reshape(math.prod(batch), heads, *tensor.shape[-2:])

    scale = queries.shape[-1] ** -0.5 if scale is None else scale
    three = queries, keys, values
    counts = heads, groups, groups
    three = (four_axes(*each) for each in zip(three, counts, strict=True))
    context, logsumexp = _Flash.apply(*three, (scale, causal, tile))
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
    tile: tuple[int, int] | None = None,
) -> Float[Tensor, "*batch num_queries head_dim"]:
    """Context vectors by kernels in Triton, for CUDA; equals `attend`.

    float16, bfloat16 or float32; widths 16, 32, 64 and 128, of values too. Memory grows
    linearly with length, forward and backward. Axis -3 counts heads: keys and values
    may have fewer, each then serving as many query heads in a row as needed. `tile` is
    how many queries and keys are taken at once; by default the fastest of a few, timed
    at the first call. On a CPU Triton's interpreter runs it, slowly, if
    TRITON_INTERPRET=1 is set before Triton is imported. ValueError for a misfit and for
    what is not supported (a mask, dropout), ModuleNotFoundError without Triton.
    Dao et al. 2022; Dao 2023; Tillet et al. 2019.
    """
    options = mask, causal, dropout_p, scale, tile
    return _attend(queries, keys, values, *options)[0]
