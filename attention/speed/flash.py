"""Flash attention

Scores are made, used and forgotten one tile at a time, forward and backward, so
that memory grows with the length of the text and not with its square.

Written by `book/speed/flash.ipynb`: read and change it there.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attention.core.scaled_dot_product import check_window, clear_unseen, visible
from attention.tools.checks import (
    as_given,
    check_bias,
    check_fit,
    check_no_dropout,
    check_sizes,
    declare_operator,
    precise,
    repeat_kv,
    scale_queries,
    second_derivative,
    traced,
    unified,
    wants_gradient,
)
from attention.tools.workbench import expected

__all__ = [
    "TwoPasses",
    "attend_tile",
    "flash_attend",
    "flash_gradients",
    "flash_state",
    "tiles",
]


_TILE = (128, 8192)  # BLOCK_M queries, BLOCK_N keys; few and large, for a CPU


def tiles(
    num_queries: int,
    num_keys: int,
    *,
    causal: bool = False,
    window: int | None = None,
    tile: tuple[int, int] = _TILE,
) -> Iterator[tuple[slice, list[slice]]]:
    """Bands of rows from top to bottom, each with its columns from left to right.

    With causal=True the queries are the last of the keys, and `window`, if given, is
    how many keys a query sees, its own included. `tile` is (BLOCK_M, BLOCK_N).
    """
    (BLOCK_M, BLOCK_N), earlier = tile, num_keys - num_queries
    for start in range(0, num_queries, BLOCK_M):
        stop = min(start + BLOCK_M, num_queries)
        first = 0 if window is None else max(earlier + start + 1 - window, 0)
        end = earlier + stop if causal else num_keys
        columns = [slice(j, min(j + BLOCK_N, end)) for j in range(first, end, BLOCK_N)]
        yield slice(start, stop), columns


def _share(scores: Tensor, values: Tensor) -> Tensor:
    """Context of one tile, whose scores become its weights."""
    weights = torch.softmax(scores, dim=-1, out=scores)
    return torch.bmm(weights.to(values.dtype), values)


def _exact(tensor: Tensor) -> torch.dtype:
    """What logsumexps are kept in: 64 bits, but on Apple's GPUs, which have none."""
    return torch.float32 if tensor.device.type == "mps" else torch.float64


def attend_tile(
    scores: Float[Tensor, "heads i j"], values: Float[Tensor, "heads j e"]
) -> tuple[Float[Tensor, "heads i e"], Float[Tensor, "heads i"]]:
    """Context, and logsumexp in 64 bits, of one tile, whose scores are used up."""
    m_i = scores.amax(dim=-1)
    blind = m_i.isneginf()
    scores[..., 0].masked_fill_(blind, 0)  # so that their weights are numbers
    context = _share(scores, values).to(scores.dtype)
    largest = scores.amax(dim=-1).to(_exact(scores))  # they are weights by now
    lse = m_i - largest.log()
    context.masked_fill_(blind[..., None], 0)
    return context, lse.masked_fill_(blind, -torch.inf)


class _Heads:
    """Some heads side by side, and the scores of any tile of them."""

    def __init__(self, queries, keys, values, bias, mask, form, workspace):
        self.queries, self.keys, self.values = queries, keys, values
        self.bias, self.mask = bias, mask
        self.form, self.workspace = form, workspace
        self.precise_keys = keys.to(workspace.dtype)

    def tiles(self):
        sizes, form = (self.queries.shape[1], self.keys.shape[1]), self.form
        options = {"causal": form.causal, "window": form.window, "tile": form.tile}
        return tiles(*sizes, **options)

    def scores(self, rows: slice, columns: slice) -> Float[Tensor, "heads i j"]:
        """They are written over those of the tile before."""
        queries = self.queries[:, rows].to(self.workspace.dtype) * self.form.scale
        keys = self.precise_keys[:, columns]
        shape = (*queries.shape[:2], keys.shape[1])
        scores = self.workspace[: math.prod(shape)].view(shape)
        torch.bmm(queries, keys.mT, out=scores)
        if self.bias is not None:
            scores.add_(self.bias[:, rows, columns])
        if self.mask is not None:
            scores.masked_fill_(~self.mask[:, rows, columns], -torch.inf)
        if self.form.causal:
            earlier = self.keys.shape[1] - self.queries.shape[1]  # than query 0
            seen = rows.start + earlier + 1 - columns.start
            _hide_future(scores, seen)
            if self.form.window is not None:
                _hide_past(scores, seen - self.form.window)
        return scores


def _hide_future(scores: Tensor, seen: int) -> None:
    """Let row 0 see `seen` columns, and each row one more than the row above."""
    edge, start = scores[..., max(seen, 0) :], min(seen, 0)
    hidden = edge.new_full(edge.shape[1:], -torch.inf).triu(start)
    edge.tril_(start - 1).add_(hidden)


def _hide_past(scores: Tensor, gone: int) -> None:
    """Hide `gone` columns from row 0, and from each row one more."""
    edge = scores[..., : max(gone + scores.shape[-2] - 1, 0)]
    hidden = edge.new_full(edge.shape[1:], -torch.inf).tril(gone - 1)
    edge.triu_(gone).add_(hidden)


_Strip = list[tuple[slice, slice]]  # for each band: its rows, the columns of one tile
_FEW, _ENOUGH = 64, 1e-5  # keys, and what the heaviest of them must weigh


def _attend_quickly(heads: _Heads, strip: _Strip, context: Tensor, lse: Tensor) -> bool:
    """Fill in the strip's rows; False if the first keys of one weigh too little."""
    m_i, largest = (torch.empty_like(lse, dtype=context.dtype) for _ in range(2))
    for rows, columns in reversed(strip):
        scores, values = heads.scores(rows, columns), heads.values[:, columns]
        few = scores[..., :_FEW]
        m_i[:, rows] = few.amax(dim=-1)
        torch.softmax(scores, dim=-1, out=scores)
        heaviest = few.amax(dim=-1)  # they are weights by now
        if not heaviest.min().item() > _ENOUGH:  # nan too
            return False
        largest[:, rows] = heaviest
        context[:, rows] = torch.bmm(scores.to(values.dtype), values)
    rows = _rows(strip)
    lse[:, rows] = m_i[:, rows] - largest[:, rows].to(lse.dtype).log()
    return True


def _attend_carefully(heads: _Heads, strip: _Strip, context: Tensor, lse: Tensor):
    """Fill in the strip's rows, whatever the keys weigh."""
    for rows, columns in strip:
        part = attend_tile(heads.scores(rows, columns), heads.values[:, columns])
        context[:, rows], lse[:, rows] = part


def _rows(strip: _Strip) -> slice:
    return slice(strip[0][0].start, strip[-1][0].stop)


def _count_in(context: Tensor, lse: Tensor, part: Tensor, part_lse: Tensor) -> None:
    """Merge a part into the context and logsumexp of some rows, in their place."""
    total = torch.logaddexp(lse, part_lse)
    finite = total.clamp(min=torch.finfo(total.dtype).min)  # for blind rows
    before, now = (
        (some - finite).exp().to(context.dtype)[..., None] for some in (lse, part_lse)
    )
    context.mul_(before).addcmul_(part, now)
    lse.copy_(total)


def _strips(bands: Iterable[tuple[slice, list[slice]]]) -> Iterator[_Strip]:
    """The first tile of each band, then the second of those with two, and so on."""
    bands = list(bands)
    for turn in range(max((len(columns) for _, columns in bands), default=0)):
        yield [(rows, some[turn]) for rows, some in bands if turn < len(some)]


def _forward(heads: _Heads, context: Tensor, lse: Tensor, empty: bool) -> None:
    """Let all keys count in the context and logsumexp of some heads, strip by strip.

    `empty`: nothing has been counted so far.
    """
    quick = context.device.type == "cpu"  # elsewhere it would have to wait
    here = context, lse
    for strip in _strips(heads.tiles()):
        part = here if empty else tuple(map(torch.empty_like, here))
        quick = quick and _attend_quickly(heads, strip, *part)
        if not quick:
            _attend_carefully(heads, strip, *part)
        if not empty:
            rows = _rows(strip)
            _count_in(*(t[:, rows] for t in here), *(t[:, rows] for t in part))
        empty = False


def _forward_in_bands(heads: _Heads, context: Tensor) -> None:
    """Fill in the context where each band is one tile and no row is blind."""
    for rows, (columns,) in heads.tiles():
        scores = heads.scores(rows, columns)
        context[:, rows] = _share(scores, heads.values[:, columns])


_LOG2_E = math.log2(math.e)


def _weights_again(scores: Tensor, lse: Tensor) -> Tensor:
    """The final weights of a tile, in the place of its scores."""
    finite = lse.clamp(min=torch.finfo(scores.dtype).min)  # for blind rows
    return scores.sub_(finite[..., None]).mul_(_LOG2_E).exp2_()


def _backward(
    heads: _Heads, context: Tensor, lse: Tensor, do: Tensor, dlse: Tensor, sums, db
) -> None:
    """Add to `sums` the gradients of queries, keys and values; fill a bias's in."""
    low, dtype = heads.values.dtype, heads.workspace.dtype
    rounded = lse.to(dtype)
    rest = (rounded - lse).nan_to_num(0).exp().to(dtype)  # blind rows: -inf less -inf
    precise_do, values = do.to(dtype), heads.values.to(dtype)
    delta = ((precise_do * context).sum(dim=-1) - dlse.to(dtype)) * rest
    (dq, dk, dv), scale = sums, heads.form.scale
    for rows, columns in heads.tiles():
        do_rows = precise_do[:, rows] * rest[:, rows, None]
        for some in columns:
            weights = _weights_again(heads.scores(rows, some), rounded[:, rows])
            dv[:, some].add_(torch.bmm(weights.to(low).mT, do_rows.to(low)))
            ds = torch.bmm(do_rows, values[:, some].mT)
            ds.sub_(delta[:, rows, None]).mul_(weights)
            if db is not None:
                db[:, rows, some] = ds
            ds = ds.to(low)
            dq[:, rows].add_(torch.bmm(ds, heads.keys[:, some]), alpha=scale)
            dk[:, some].add_(torch.bmm(ds.mT, heads.queries[:, rows]), alpha=scale)


_AT_ONCE = 2**19  # scores, for each of at most two threads


def _groups(tensors, form) -> Iterator[tuple[tuple, _Heads]]:
    """The heads whose tiles are made at once, and where they are; more if short."""
    queries, keys, *_ = tensors
    *batch, heads, num_keys, _ = keys.shape
    BLOCK_M = min(form.tile[0], queries.shape[-2])
    BLOCK_N = min(form.tile[1], form.band(num_keys))
    at_once = _AT_ONCE * min(torch.get_num_threads(), 2)
    count = max(at_once // max(BLOCK_M * BLOCK_N, 1), 1)
    scores = min(count, heads) * BLOCK_M * BLOCK_N
    workspace = keys.new_empty(scores, dtype=precise(keys))
    parts = [slice(start, start + count) for start in range(0, heads, count)]
    for here in itertools.product(*map(range, batch), parts):
        some = (tensor if tensor is None else tensor[here] for tensor in tensors)
        yield here, _Heads(*some, form, workspace)


class _Pass(torch.autograd.Function):
    """One pass over tensors with equal leading axes, or None; then one setting."""

    @classmethod
    def vmap(cls, info, in_dims, *inputs):
        """What is mapped becomes one more leading axis."""
        *tensors, setting = inputs
        mapped = [
            tensor if tensor is None else _in_front(tensor, dim, info.batch_size)
            for tensor, dim in zip(tensors, in_dims, strict=False)
        ]
        return cls.apply(*mapped, setting), 0

    @staticmethod
    def jvp(ctx, *_):
        raise second_derivative(ctx.form.name)


def _in_front(tensor: Tensor, dim: int | None, size: int) -> Tensor:
    """`tensor` with its axis `dim` in front, or spread along a new one."""
    if dim is None:
        return tensor.expand(size, *tensor.shape)
    return tensor.movedim(dim, 0)


class TwoPasses(_Pass):
    """A form of attention as autograd and `torch.func` want it.

    The last input is the form: its `forward` gives the context and its logsumexp for
    all other inputs, and its `backward` the gradients of the first of them.
    """

    @classmethod
    def run(cls, form, queries, keys, values, bias=None, mask=None):
        """Context and logsumexp; in a graph the form is one operator."""
        tensors = queries, keys, values, bias, mask
        if traced():
            return getattr(torch.ops.attention, form.name)(*tensors, *form)
        return cls.apply(*tensors, form)

    @staticmethod
    def forward(*inputs):
        *tensors, form = inputs
        return form.forward(*tensors)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.form = inputs
        ctx.save_for_backward(*output, *tensors)
        ctx.set_materialize_grads(False)  # zeros take room

    @staticmethod
    def backward(ctx, do, dlse):
        needed, saved = ctx.needs_input_grad, ctx.saved_tensors
        arrived = [
            like.new_zeros(1).expand(like.shape) if gradient is None else gradient
            for gradient, like in zip((do, dlse), saved, strict=False)
        ]
        gradients = _SecondPass.apply(*arrived, *saved, (ctx.form, needed))
        return *gradients, *[None] * (len(needed) - len(gradients))


class _SecondPass(_Pass):
    """The gradients of `TwoPasses`, which have none themselves."""

    @staticmethod
    def forward(*inputs):
        *tensors, (form, needed) = inputs
        return tuple(form.backward(*tensors, needed=needed))

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.form, _ = inputs[-1]

    @staticmethod
    def backward(ctx, *_):
        raise second_derivative(ctx.form.name)


class _Flash(NamedTuple):
    """Attention in tiles: its settings, and both passes over all heads."""

    scale: float
    causal: bool
    window: int | None
    tile: tuple[int, int]
    keep: bool  # the logsumexp
    name = "flash_attend"

    def nothing(self, queries, keys, values):
        """What `forward` gives for queries that have seen no key."""
        return _nothing(queries, values, queries.dtype)

    def band(self, num_keys: int) -> int:
        """How many keys a band of queries has at most."""
        return min(num_keys, (self.window or num_keys) + self.tile[0] - 1)

    def forward(self, queries, keys, values, bias, mask):
        tensors, num_keys = (queries, keys, values, bias, mask), keys.shape[-2]
        one_tile = 0 < self.band(num_keys) <= self.tile[1]
        if one_tile and bias is None and mask is None and not self.keep:
            context, lse = self.nothing(queries, keys, values)
            with as_given(keys):
                for here, heads in _groups(tensors, self):
                    _forward_in_bands(heads, context[here])
            return context, lse
        context, lse = self.count_in(*_nothing(queries, values), *tensors)
        return context.to(queries.dtype), lse

    def count_in(self, context, lse, *tensors, empty=True):
        """Context and logsumexp, overwritten: these keys added to those so far."""
        with as_given(context):
            for here, heads in _groups(tensors, self):
                _forward(heads, context[here], lse[here], empty)
        return context, lse

    def backward(self, do, dlse, context, lse, *tensors, needed):
        if not self.keep:  # `vmap` hid that a gradient would be wanted
            context, lse = self._replace(keep=True).forward(*tensors)
        *three, bias, _ = tensors
        db = bias.new_zeros(bias.shape) if needed[3] else None
        sums = self.add_gradients(_zeros(three), db, do, dlse, context, lse, *tensors)
        gradients = [s.to(tensor.dtype) for s, tensor in zip(sums, three, strict=True)]
        return gradients if db is None else [*gradients, db]

    def add_gradients(self, sums, db, do, dlse, context, lse, *tensors):
        """The sums, with the gradients of queries, keys and values added."""
        with as_given(context):
            for here, heads in _groups(tensors, self):
                given = context[here], lse[here], do[here], dlse[here]
                here_sums = [total[here] for total in sums]
                _backward(heads, *given, here_sums, None if db is None else db[here])
        return sums


_FIELDS = "float scale, bool causal, int? window, int[] tile, bool keep"
declare_operator(_Flash, _FIELDS)


def _nothing(queries, values, dtype=None) -> tuple[Tensor, Tensor]:
    """Context, in 32 bits or more, and logsumexp of queries that have seen no key."""
    shape, dtype = queries.shape[:-1], dtype or precise(queries)
    context = queries.new_zeros(*shape, values.shape[-1], dtype=dtype)
    return context, queries.new_full(shape, -torch.inf, dtype=_exact(queries))


def _zeros(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Room for sums in 32 bits or more."""
    return [tensor.new_zeros(tensor.shape, dtype=precise(tensor)) for tensor in tensors]


def flash_attend(
    queries: Float[Tensor, "*queries_batch num_queries head_dim"],
    keys: Float[Tensor, "*keys_batch num_keys head_dim"],
    values: Float[Tensor, "*values_batch num_keys value_dim"],
    mask: Bool[Tensor, "..."] | None = None,
    *,
    causal: bool = False,
    dropout_p: float = 0.0,
    scale: float | Tensor | None = None,
    bias: Float[Tensor, "..."] | None = None,
    window: int | None = None,
    tile: tuple[int, int] = _TILE,
    return_lse: bool = False,
) -> (
    Float[Tensor, "*batch num_queries value_dim"]
    | tuple[
        Float[Tensor, "*batch num_queries value_dim"],
        Float[Tensor, "*batch num_queries"],
    ]
):
    """Context vectors, computed one tile after the other; equals `attend`.

    Memory grows linearly with length, forward and backward, but for a mask or bias.
    Axis -3 counts heads: keys and values may have fewer, each then serving as many
    query heads in a row as needed. `mask` is True where a query may see a key; a query
    that sees none gets zeros. causal=True is lower-right: the queries are the last of
    the keys; `scaled_dot_product_attention(is_causal=True)` and JAX align upper-left:
    pass `mask=torch.ones(i, j, dtype=torch.bool).tril()` for that. `window` is how
    many keys a causal query sees, its own included; the work falls with it. `tile` is
    (BLOCK_M, BLOCK_N). Scores are in float32 for inputs of 16 bits, and a bias in
    float32 is added there. A `scale` that is a tensor may be learned. A value that is
    not finite may make other contexts nan, unless `mask` hides it from all queries.

    With return_lse=True the logsumexp of each query's scores comes along, base e, as
    `merge_states` takes it; it is -inf, and the context zeros, where nothing is seen.
    ValueError for a misfit, and for a `dropout_p` that is not 0; RuntimeError for a
    second derivative, or one in forward mode. Dao et al. 2022.
    """
    check_no_dropout("flash_attend", dropout_p)
    if not isinstance(tile, Sequence) or len(tile) != 2:
        raise expected("tile", "(BLOCK_M, BLOCK_N)", tile)
    tile = tuple(check_sizes(BLOCK_M=tile[0], BLOCK_N=tile[1]))
    window = check_window(window, causal)
    queries, keys, values = unified(queries, keys, values)
    shape = check_fit(queries, keys, values, causal=causal)
    mask = visible(shape, mask, False, queries.device)
    bias = bias if bias is None else check_bias(bias, shape, queries)
    queries, scale = scale_queries(queries, scale)
    queries = queries.expand(*(shape[:-2] or (1,)), *queries.shape[-2:])
    tensors = _spread_out(queries, keys, values, bias, mask)
    keep = return_lse or wants_gradient(*tensors)
    context, lse = TwoPasses.run(_Flash(scale, causal, window, tile, keep), *tensors)
    context = context.view(*shape[:-1], values.shape[-1])
    lse = lse.view(shape[:-1]).to(precise(queries))
    return (context, lse) if return_lse else context


def _spread_out(queries, keys, values, bias, mask) -> list[Tensor | None]:
    """With the axes of the queries in front of the last two."""
    keys, values = repeat_kv(keys, queries), repeat_kv(values, queries)
    shape = (*queries.shape[:-1], keys.shape[-2])
    keys, values = clear_unseen(keys, values, mask, shape)
    tensors = queries, keys, values, bias, mask
    return [t if t is None else t.expand(*shape[:-2], *t.shape[-2:]) for t in tensors]


def flash_state(
    queries: Float[Tensor, "*batch num_queries head_dim"],
    keys: Float[Tensor, "*keys_batch num_keys head_dim"],
    values: Float[Tensor, "*values_batch num_keys value_dim"],
    mask: Bool[Tensor, "..."] | None = None,
    *,
    scale: float,
    causal: bool = False,
    bias: Float[Tensor, "..."] | None = None,
    window: int | None = None,
    tile: tuple[int, int] = _TILE,
    state: tuple[Tensor, Tensor] | None = None,
) -> tuple[
    Float[Tensor, "*batch num_queries value_dim"], Float[Tensor, "*batch num_queries"]
]:
    """Context in 32 bits or more, and logsumexp in 64, for a part of all keys.

    With `state`, what other keys gave, it goes on from there and writes over it. Axes
    before the last two are those of the queries, but for fewer heads of keys and
    values. Nothing is checked, and there is no gradient: see `flash_gradients`.
    """
    form = _Flash(scale, causal, window, tile, keep=True)
    tensors, empty = _spread_out(queries, keys, values, bias, mask), state is None
    state = _nothing(queries, values) if empty else state
    return form.count_in(*state, *tensors, empty=empty)


def flash_gradients(
    do: Float[Tensor, "*batch num_queries value_dim"],
    context: Float[Tensor, "*batch num_queries value_dim"],
    lse: Float[Tensor, "*batch num_queries"],
    queries: Float[Tensor, "*batch num_queries head_dim"],
    keys: Float[Tensor, "*keys_batch num_keys head_dim"],
    values: Float[Tensor, "*values_batch num_keys value_dim"],
    mask: Bool[Tensor, "..."] | None = None,
    *,
    scale: float,
    causal: bool = False,
    bias: Float[Tensor, "..."] | None = None,
    window: int | None = None,
    tile: tuple[int, int] = _TILE,
    dlse: Float[Tensor, "*batch num_queries"] | None = None,
    sums: Sequence[Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Gradients of queries, keys, values and bias, for keys that are a part of all.

    `context` and `lse` belong to all keys; `do`, and `dlse` if it is not zero, are the
    gradients that arrive at them. Axes before the last two are those of the queries,
    but for fewer heads of keys and values. The bias's is not summed over axes
    along which the bias was spread; the others are in 32 bits or more, and are added to
    `sums`, if given. Dao et al. 2022, appendix B.
    """
    *three, bias, mask = _spread_out(queries, keys, values, bias, mask)
    form = _Flash(scale, causal, window, tile, keep=True)
    dlse = torch.zeros_like(lse) if dlse is None else dlse
    db = None if bias is None else bias.new_zeros(bias.shape)
    sums = _zeros((queries, keys, values)) if sums is None else sums
    found = [
        total if total.shape == tensor.shape else _zeros([tensor])[0]
        for total, tensor in zip(sums, three, strict=True)
    ]
    form.add_gradients(found, db, do, dlse, context, lse, *three, bias, mask)
    for total, part in zip(sums, found, strict=True):
        if part is not total:  # several heads of queries share one of keys
            total += part.unflatten(-3, (total.shape[-3], -1)).sum(dim=-3)
    return *sums, db
