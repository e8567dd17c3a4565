"""Attention over several machines

Each machine holds a part of the text; keys and values go around, the results for
the parts are merged, and the order in which tokens are dealt shares the work
evenly.

Written by `book/scale/context_parallel.ipynb`: read and change it there.
"""

import itertools
import math
import operator
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor

from attention.core.masks import and_masks
from attention.core.scaled_dot_product import check_window, visible
from attention.speed.flash import TwoPasses, flash_attend, flash_gradients, flash_state
from attention.tools.checks import (
    check_fit,
    check_no_dropout,
    check_sizes,
    own_number,
    precise,
    wants_gradient,
)
from attention.tools.ranks import (
    agree,
    check_documents,
    exchange,
    fit_call,
    from_all,
    place_in,
    post,
)
from attention.tools.workbench import check_tensor, expected

__all__ = [
    "KeyBlock",
    "block_of",
    "blocks",
    "heads_of",
    "order_positions",
    "order_ranges",
    "ring_attend",
    "ring_work",
    "scores_in",
    "shard",
    "ulysses_attend",
    "unshard",
]


def order_ranges(length: int, ranks: int, order: str = "zigzag") -> list[list[range]]:
    """The positions that each rank holds, in ranges that grow along the rank.

    Shares differ by a token or two if the length does not divide evenly. ValueError for
    another order, or fewer tokens than pieces. Brandon et al. 2023; Zhu 2024.
    """
    length, ranks, pieces = _check_order(length, ranks, order)
    if order == "striped":
        return [[range(rank, length, ranks)] for rank in range(ranks)]
    edges = [length * cut // pieces for cut in range(pieces + 1)]
    chunks = [range(*edge) for edge in itertools.pairwise(edges)]
    if pieces == ranks:
        return [[chunk] for chunk in chunks]
    return [[chunks[rank], chunks[-1 - rank]] for rank in range(ranks)]


_ORDERS = ("contiguous", "striped", "zigzag")


def _check_order(length: int, ranks: int, order: str) -> tuple[int, int, int]:
    """Both, as Python's, and the number of pieces; ValueError if one would be empty."""
    (ranks,) = check_sizes(ranks=ranks)
    _known(order)
    pieces = 2 * ranks if order == "zigzag" and ranks > 1 else ranks
    try:
        whole = 0 if isinstance(length, bool) else operator.index(length)
    except TypeError:
        whole = 0
    if whole < pieces:
        must = f"a whole number of at least {pieces} tokens, for {order} order on"
        raise expected("length", f"{must} {ranks} ranks", length)
    return whole, ranks, pieces


def _known(order: str) -> None:
    if order not in _ORDERS:
        raise expected("order", " or ".join(map(repr, _ORDERS)), repr(order))


def _size(ranges: list[range]) -> int:
    return sum(map(len, ranges))


def _positions(ranges: list[range], device: torch.device | str | None = None) -> Tensor:
    return torch.cat([torch.arange(r.start, r.stop, r.step) for r in ranges]).to(device)


def order_positions(
    length: int,
    *,
    group: dist.ProcessGroup | None = None,
    order: str = "zigzag",
    device: torch.device | str | None = None,
) -> Int[Tensor, " part"]:
    """Where this rank's tokens stand in a text of this length, as `shard` cuts it.

    For the `positions` of a layer, so that heads are rotated by their place in the
    whole text. ValueError for a misfit.
    """
    rank, ranks = place_in(group)
    return _positions(order_ranges(length, ranks, order)[rank], device)


def shard(
    tensor: Tensor,
    dim: int = -2,
    *,
    group: dist.ProcessGroup | None = None,
    order: str = "zigzag",
) -> Tensor:
    """This rank's part of a tensor that every rank holds, cut along `dim`.

    Nothing is sent. ValueError for a misfit.
    """
    _check_dim(tensor, dim)
    where = {"group": group, "order": order, "device": tensor.device}
    return tensor.index_select(dim, order_positions(tensor.shape[dim], **where))


def unshard(
    tensor: Tensor,
    dim: int = -2,
    *,
    group: dist.ProcessGroup | None = None,
    order: str = "zigzag",
) -> Tensor:
    """The whole, on every rank, of what `shard` cut; every rank must call it.

    The gradient of a part comes from this rank's own loss: let all ranks compute the
    same loss from the whole. ValueError for a misfit, on every rank.
    """
    if place_in(group)[1] == 1:
        return shard(tensor, dim, group=group, order=order)  # all of it

    def facts():
        _known(order)
        _check_dim(tensor, dim)
        sizes = list(tensor.shape)
        kind = {"call": "unshard", "order": order, "dtype": str(tensor.dtype)}
        return kind | {"_length": sizes.pop(dim), "dim": dim, "other sizes": sizes}

    told = agree(facts, group)
    lengths = [each["_length"] for each in told]
    ranges = _ranges(lengths, order, "tensor")
    return _joined(from_all(tensor, dim, lengths, group), ranges, dim)


def _joined(parts: Sequence[Tensor], ranges: list[list[range]], dim: int) -> Tensor:
    """The parts of all ranks as one tensor, in the order of the text."""
    sizes = list(parts[0].shape)
    sizes[dim] = sum(map(_size, ranges))
    whole = parts[0].new_empty(sizes)
    by_place = whole.movedim(dim, 0)
    for part, some in zip(parts, ranges, strict=True):
        for piece, r in zip(part.split([*map(len, some)], dim), some, strict=True):
            by_place[r.start : r.stop : r.step] = piece.movedim(dim, 0)
    return whole


def _ranges(lengths: list[int], order: str, name: str) -> list[list[range]]:
    """The order's ranges; ValueError unless the ranks' lengths are those of `shard`."""
    ranges = order_ranges(sum(lengths), len(lengths), order)
    wanted = [_size(part) for part in ranges]
    if wanted != lengths:
        must = f"{wanted} tokens on the ranks, as shard cuts them in {order} order"
        raise expected(name, must, lengths)
    return ranges


def _check_dim(tensor: Tensor, dim: int) -> None:
    check_tensor(tensor=tensor)
    if type(own_number(dim)) is not int or not -tensor.ndim <= dim < tensor.ndim:
        must = f"an axis of the tensor, which has {tensor.ndim}"
        raise expected("dim", must, repr(dim))


class KeyBlock(NamedTuple):
    """Positions of queries and of keys that some of them see, and what is hidden.

    With causal=True both end together, and `window` counts steps of the ranges;
    otherwise all see all, except for a window, which counts positions.
    """

    queries: range
    keys: range
    causal: bool = False
    window: int | None = None


def block_of(
    queries: range, keys: range, *, causal: bool = True, window: int | None = None
) -> KeyBlock | None:
    """What must be computed for these queries and keys; None if no key is seen.

    The ranges are apart, or equal, or interleaved with one step.
    """
    if not causal:
        return KeyBlock(queries, keys)
    if keys[0] > queries[-1] or (window and queries[0] - keys[-1] >= window):
        return None
    if keys[-1] <= queries[0]:
        far = window is not None and queries[-1] - keys[0] >= window
        return KeyBlock(queries, keys, window=window if far else None)
    shift, rest = divmod(queries.start - keys.start, keys.step)
    queries, keys = queries[max(-shift, 0) :], keys[: len(queries) + shift]
    if window is not None:
        window = -(-(window - rest) // keys.step)
    nothing = not queries or not keys or window == 0
    return None if nothing else KeyBlock(queries, keys, True, window)


def blocks(
    queries: list[range],
    keys: list[range],
    *,
    causal: bool = True,
    window: int | None = None,
) -> Iterator[KeyBlock]:
    """All that must be computed for the queries of one rank and the keys of another."""
    for some, others in itertools.product(queries, keys):
        block = block_of(some, others, causal=causal, window=window)
        if block is not None:
            yield block


def scores_in(block: KeyBlock) -> int:
    """How many scores of a block are not hidden."""
    queries, keys, causal, window = block
    if causal:
        return sum(min(seen, window or seen) for seen in range(1, len(queries) + 1))
    if window is None:
        return len(queries) * len(keys)
    return sum(i - j < window for i in queries for j in keys)


def ring_work(
    length: int,
    ranks: int,
    order: str = "zigzag",
    *,
    causal: bool = True,
    window: int | None = None,
) -> list[list[int]]:
    """How many scores each rank makes, in each step of the ring: counts[rank][step].

    ValueError for a misfit.
    """
    check_window(window, causal)
    ranges, seen = order_ranges(length, ranks, order), {"causal": causal}
    return [
        [
            sum(map(scores_in, blocks(own, ranges[rank - turn], **seen, window=window)))
            for turn in range(ranks)
        ]
        for rank, own in enumerate(ranges)
    ]


def _pass_on(
    tensors: Sequence[Tensor], length: int, group: dist.ProcessGroup | None
) -> Callable[[], list[Tensor]]:
    """Send tensors to the next rank; the result waits for those of the rank before."""
    rank, ranks = place_in(group)
    leaving = [tensor.contiguous() for tensor in tensors]
    coming = [t.new_empty(*t.shape[:-2], length, t.shape[-1]) for t in tensors]
    following, before = (rank + 1) % ranks, (rank - 1) % ranks
    arrive = post({following: leaving}, {before: coming}, group)

    def received() -> list[Tensor]:
        arrive()
        return coming

    return received


def _circulate(
    tensors: Sequence[Tensor], lengths: list[int], group: dist.ProcessGroup | None
) -> Iterator[tuple[int, Sequence[Tensor]]]:
    """Each rank and its part, this one's own first, while the next is under way."""
    rank, ranks = place_in(group)
    for turn in range(ranks):
        source, more = (rank - turn) % ranks, turn < ranks - 1
        if more:
            received = _pass_on(tensors, lengths[source - 1], group)
        yield source, tensors
        if more:
            tensors = received()


_AT_ONCE = 2**20  # numbers of keys that are sent at once, unless one head has more


def _few_heads(keys: Tensor, values: Tensor, length: int) -> Iterator[Callable]:
    """Functions that take a few heads of a tensor: the first, the next, up to the last.

    They cut all tensors of a call alike, so queries stay with the keys that they use.
    """
    *batch, heads, _, width = keys.shape
    shares = math.gcd(heads, values.shape[-3])
    numbers = math.prod(batch) * heads // shares * length * width
    count = max(_AT_ONCE // max(numbers, 1), 1)
    for start in range(0, shares, count):
        yield partial(_take, start, min(count, shares - start), shares)


def _take(start: int, count: int, shares: int, tensor: Tensor | None, dim: int = -3):
    """`count` of the shares of a tensor's heads; a single head serves all."""
    if tensor is None or tensor.shape[dim] == 1:
        return tensor
    each = tensor.shape[dim] // shares
    return tensor.narrow(dim, start * each, count * each)


def _all_heads(tensor: Tensor | None, dim: int = -3) -> Tensor | None:
    return tensor


def _around(ring: "_Ring", queries, keys, values, bias, mask) -> tuple[Tensor, Tensor]:
    """Context and logsumexp of this rank's queries, for the keys of all ranks."""
    nothing = keys[..., :0, :], values[..., :0, :]
    context, lse = flash_state(queries, *nothing, scale=1.0)  # zeros and -inf
    for source, (keys_there, values_there) in ring.circulate(keys, values):
        for rows, some, _, options in ring.parts(source, bias, mask, queries.device):
            three = queries[rows], keys_there[some], values_there[some]
            flash_state(*three, **options, state=(context[rows], lse[rows[:2]]))
    return context.to(queries.dtype), lse


def _around_back(ring: "_Ring", given, tensors, wants_bias: bool) -> list[Tensor]:
    """Gradients of queries, keys and values, and of the bias; sums in 32 bits."""
    (do, dlse, context, lse), (queries, *both, bias, mask) = given, tensors
    exact, arrived = precise(queries), tuple
    dq = torch.zeros_like(queries, dtype=exact)
    db = torch.zeros_like(bias) if wants_bias else None
    for source, there in ring.circulate(*both):
        sums = [torch.zeros_like(tensor, dtype=exact) for tensor in there]
        for rows, some, table, options in ring.parts(source, bias, mask, lse.device):
            of_rows = do[rows], context[rows], lse[rows[:2]], queries[rows]
            options["dlse"] = dlse[rows[:2]]
            options["sums"] = dq[rows], *(total[some] for total in sums)
            *_, part = flash_gradients(*of_rows, *(t[some] for t in there), **options)
            if wants_bias:
                db[table] += part.sum_to_size(db[table].shape)
        for total, before in zip(sums, arrived(), strict=False):
            total += before
        arrived = _pass_on(sums, ring.length_of(source - 1), ring.group)
    found = [g.to(t.dtype) for g, t in zip((dq, *arrived()), tensors, strict=False)]
    return [*found, db] if wants_bias else found


class _Ring(NamedTuple):
    """Attention by passing keys and values around: its settings, and both passes."""

    group: dist.ProcessGroup | None
    queries: list[range]  # of this rank
    keys: list[list[range]]  # of all ranks
    causal: bool
    window: int | None
    scale: float
    documents: Tensor | None  # of the whole text
    name = "ring_attend"

    def length_of(self, source: int) -> int:
        return _size(self.keys[source])

    def circulate(self, *tensors):
        lengths = [_size(ranges) for ranges in self.keys]
        return _circulate(list(tensors), lengths, self.group)

    def parts(self, source, bias, mask, device):
        """For each block with a source: where it lies in three tables, and options."""
        theirs, tables = self.keys[source], (bias, mask, self.documents)
        found = blocks(self.queries, theirs, causal=self.causal, window=self.window)
        plain = self.window is None and all(table is None for table in tables)
        for some in _side_by_side(found) if plain else ([block] for block in found):
            queries, keys, causal, window = some[-1]
            rows, columns = _slice(queries, self.queries), _slice(keys, theirs)
            columns = slice(_slice(some[0].keys, theirs).start, columns.stop)
            table = (..., rows, slice(keys.start, keys.stop, keys.step))
            masks = [None if mask is None else mask[table]]
            if self.documents is not None:
                masks.append(_same(self.documents, queries, keys))
            if window is not None and not causal:
                i, j = _positions([queries], device), _positions([keys], device)
                masks.append(i[:, None] < j + window)
                window = None
            options = {"causal": causal, "window": window, "scale": self.scale}
            options["bias"] = None if bias is None else bias[table]
            options["mask"] = and_masks(*masks)
            yield (..., rows, slice(None)), (..., columns, slice(None)), table, options

    def forward(self, *tensors):
        queries, _, values, *_ = tensors
        context = queries.new_empty(*queries.shape[:-1], values.shape[-1])
        lse = []
        for few in self.few_heads(tensors):
            part, of_part = _around(self, *map(few, tensors))
            few(context).copy_(part)
            lse.append(of_part)
        return context, torch.cat(lse, dim=-2)

    def backward(self, do, dlse, context, lse, *tensors, needed):
        learned = tensors[: 4 if needed[3] else 3]
        found = [tensor.new_zeros(tensor.shape) for tensor in learned]
        for few in self.few_heads(tensors):
            given = few(do), few(dlse, -2), few(context), few(lse, -2)
            parts = _around_back(self, given, [*map(few, tensors)], needed[3])
            for total, part in zip(found, parts, strict=True):
                few(total).add_(part)
        return found

    def few_heads(self, tensors):
        longest = max(map(_size, self.keys))  # so that all ranks choose alike
        return _few_heads(*tensors[1:3], longest)


def _side_by_side(found: Iterator[KeyBlock]) -> Iterator[list[KeyBlock]]:
    """Blocks of the same queries, whose keys lie one after another on their rank.

    Only the last can be causal, and it ends with its queries: so together they are one.
    """
    for _, some in itertools.groupby(found, key=lambda block: block.queries):
        yield [*some]


def _slice(some: range, ranges: list[range]) -> slice:
    """Where these positions lie in a tensor of all that a rank holds."""
    before, *whole = 0, *ranges
    while some[0] not in whole[0]:
        before += len(whole.pop(0))
    start = before + whole[0].index(some[0])
    return slice(start, start + len(some))


def _same(documents: Tensor, queries: range, keys: range) -> Tensor:
    """True where the query and key at these positions are of the same document."""
    i, j = (documents[..., r.start : r.stop : r.step] for r in (queries, keys))
    return (i[..., :, None] == j[..., None, :]).unsqueeze(-3)


def _prepare(name, queries, keys, values, mask, group, order, dropout_p, options):
    """The tensors of a call that fits, and the ranges of queries and of keys."""
    fitted = []

    def facts():
        _check_call(name, order, dropout_p)
        check_window(options["window"], options["causal"])
        found, call = fit_call(queries, keys, values, mask, **options)
        fitted.append(call)
        return {"call": name, "order": order} | found

    told = agree(facts, group)
    lengths = [[each[side] for each in told] for side in ("_queries", "_keys")]
    if options["causal"] and sum(lengths[0]) != sum(lengths[1]):
        got = f"{sum(lengths[0])} and {sum(lengths[1])}"
        raise expected("causal=True", "as many queries as keys, on all ranks", got)
    names = zip(lengths, ("queries", "keys"), strict=True)
    sides = [_ranges(some, order, side) for some, side in names]
    (call,), count = fitted, sum(lengths[1])
    for table in ("mask", "bias"):
        for rank, each in enumerate(told):
            if (columns := each.get(f"_{table}", 1)) not in (1, count):
                must = f"a last axis of {count}, for the keys of all ranks"
                raise expected(f"{table} on rank {rank}", must, columns)
        if (given := getattr(call, table)) is not None:
            wide = given.expand(*given.shape[:-1], count)
            call = call._replace(**{table: wide})
    if call.documents is not None:
        parts = from_all(call.documents, -1, lengths[1], group)
        call = call._replace(documents=_joined(parts, sides[1], -1))
    return call, *sides


def _check_call(name: str, order: str, dropout_p: float) -> None:
    _known(order)
    check_no_dropout(name, dropout_p)


def _alone(name, queries, keys, values, mask, order, dropout_p, options) -> Tensor:
    """Attention in a group of one."""
    _check_call(name, order, dropout_p)
    documents = options.pop("documents")
    if documents is not None:
        check_tensor(queries=queries, keys=keys, values=values)
        shape = check_fit(queries, keys, values)
        places = range(shape[-1])
        same = _same(check_documents(documents, shape), places, places)
        same = same if len(shape) > 2 else same.squeeze(-3)
        mask = and_masks(visible(shape, mask, False, queries.device), same)
    return flash_attend(queries, keys, values, mask, **options)


def _weights(form, queries, keys, mask=None, *, group=None, **options) -> Tensor:
    """Those of a group of one; ValueError where other ranks hold some of the keys."""
    if place_in(group)[1] > 1:
        must = "a form whose context is weights @ values, to show its weights"
        got = f"{form.__name__}, where other ranks hold some of the keys"
        raise expected("attend", must, got)
    check_tensor(queries=queries, keys=keys)
    identity = torch.eye(keys.shape[-2]).to(keys).expand(*keys.shape[:-2], -1, -1)
    return form(queries, keys, identity, mask, group=group, **options)


def ring_attend(
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
    documents: Integer[Tensor, "..."] | None = None,
    group: dist.ProcessGroup | None = None,
    order: str = "zigzag",
) -> Float[Tensor, "*batch num_queries value_dim"]:
    """Context vectors of this rank's queries, which attend to the keys of all ranks.

    Each rank of `group` (None: all ranks) calls it with its part of a text, as
    `shard` cuts it in this order, and gets its part of what `attend` gives for the
    whole. Keys and values go around from rank to rank. `mask` (True: may see) and
    `bias` have a row for each of this rank's queries, and a column for each key of the
    text, in the text's order. `documents` has a whole number for each of this rank's
    tokens: a query sees keys of its own number alone. The other options are those of
    `flash_attend`, which this is in a group of one. Gradients go around as well, so all
    ranks must call `backward`.

    ValueError, on every rank, for what does not fit on one or between two; for dropout,
    and for causal attention with fewer queries than keys. RuntimeError where a rank
    does not answer, and for a second derivative. Liu et al. 2023, section 3.
    """
    options = {"causal": causal, "scale": scale, "bias": bias, "window": window}
    options["documents"] = documents
    call = "ring_attend", queries, keys, values, mask
    rank, ranks = place_in(group)
    if ranks == 1:
        return _alone(*call, order, dropout_p, options)
    fitted, own, theirs = _prepare(*call, group, order, dropout_p, options)
    settings = causal, window, fitted.scale, fitted.documents
    ring = _Ring(group, own[rank], theirs, *settings)
    context, _ = TwoPasses.apply(*fitted[:5], ring)
    return context.reshape(*fitted.shape, values.shape[-1])


ring_attend.attention_weights = partial(_weights, ring_attend)


def heads_of(rank: int, ranks: int, num_heads: int, heads: int) -> slice:
    """Which of a tensor's `heads` a rank needs for its share of `num_heads`.

    ValueError unless the ranks can share both evenly.
    """
    if num_heads % ranks:
        raise expected("queries", f"heads that {ranks} ranks can share", num_heads)
    if heads % ranks and ranks % heads:
        must = f"a number of heads that {ranks} ranks divide, or that divides them"
        raise expected("keys and values", must, heads)
    start = rank * heads // ranks
    return slice(start, start + max(heads // ranks, 1))


def _by_heads(tensors, sides, few, heads: int, group) -> Callable[[], list[Tensor]]:
    """Post other ranks' heads; what is returned waits for our heads, of all tokens."""
    rank, ranks = place_in(group)
    shares = [
        [few(t[..., heads_of(peer, ranks, heads, t.shape[-3]), :, :]) for t in tensors]
        for peer in range(ranks)
    ]
    shapes = [
        [
            (*share.shape[:-2], _size(ranges[peer]), share.shape[-1])
            for share, ranges in zip(shares[rank], sides, strict=True)
        ]
        for peer in range(ranks)
    ]
    arrive = exchange(shares, shapes, group)

    def received() -> list[Tensor]:
        both = zip(zip(*arrive(), strict=True), sides, strict=True)
        return [_joined(parts, ranges, -2) for parts, ranges in both]

    return received


def _by_tokens(tensors, totals, sides, few, heads: int, group) -> Callable[[], None]:
    """Post the way back; what is returned waits for ours, and adds it to totals."""
    rank, ranks = place_in(group)
    shares = [
        [
            tensor.index_select(-2, _positions(ranges[peer], tensor.device))
            for tensor, ranges in zip(tensors, sides, strict=True)
        ]
        for peer in range(ranks)
    ]
    shapes = [[share.shape for share in shares[rank]]] * ranks
    arrive = exchange(shares, shapes, group)

    def received() -> None:
        for peer, parts in enumerate(arrive()):  # several may have a head of keys
            for total, part in zip(totals, parts, strict=True):
                theirs = heads_of(peer, ranks, heads, total.shape[-3])
                few(total[..., theirs, :, :]).add_(part)

    return received


class _Ulysses(NamedTuple):
    """Attention by exchanging tokens for heads: its settings, and both passes."""

    group: dist.ProcessGroup | None
    heads: int  # of queries
    queries: list[list[range]]  # of all ranks
    keys: list[list[range]]
    causal: bool
    window: int | None
    scale: float
    documents: Tensor | None  # of the whole text
    keep: bool  # the logsumexps
    name = "ulysses_attend"

    def forward(self, *tensors):
        queries, _, values, *_ = tensors
        context, lse = queries.new_zeros(*queries.shape[:-1], values.shape[-1]), []
        home = tuple  # nothing is on its way yet
        for few, arrived in self.few_ahead(tensors):
            part, of_part = self.attend(*arrived())
            home()
            home = self.bring_home(few, [part], [context])
            lse.append(of_part)
        home()
        return context, torch.cat(lse, dim=-2)

    def attend(self, queries, keys, values, options):
        three = queries, keys, values
        if self.keep:
            return flash_state(*three, **options)
        return flash_attend(*three, **options), queries.new_zeros(1, 1)

    def backward(self, do, dlse, context, lse, *tensors, needed):
        found = [t.new_zeros(t.shape) for t in tensors[: 4 if needed[3] else 3]]
        home = tuple
        for few, arrived in self.few_ahead(tensors, do, context):
            parts = self.gradients(few(lse, -2), few(dlse, -2), *arrived())
            home()
            home = self.bring_home(few, parts[: len(found)], found)
        home()
        return found

    def gradients(self, lse, dlse, queries, keys, values, do, context, options):
        given = do, context, lse, queries, keys, values
        *parts, db = flash_gradients(*given, **options, dlse=dlse)
        return [*parts, db if db is None else db.sum_to_size(options["bias"].shape)]

    def few_ahead(self, tensors, *more):
        """A few heads and what waits for them, while the next are on their way."""
        waiting = []
        for few in self.few_heads(*tensors):
            waiting.append((few, self.of_all_tokens(few, *tensors, *more)))
            if len(waiting) > 1:
                yield waiting.pop(0)
        yield from waiting

    def few_heads(self, _, keys, values, *tables):
        if any(table is not None for table in (*tables, self.documents)):
            return [_all_heads]  # a table is larger than the rest
        ranks, length = len(self.keys), sum(map(_size, self.keys))
        own = (heads_of(0, ranks, self.heads, t.shape[-3]) for t in (keys, values))
        both = zip((keys, values), own, strict=True)
        # Twice the length, since two lots are held: one in use, one on its way.
        return _few_heads(*(t[..., some, :, :] for t, some in both), 2 * length)

    def of_all_tokens(self, few, queries, keys, values, bias, mask, *more):
        """Post; the result waits for this rank's few heads, and adds options."""
        tables = {"bias": bias, "mask": mask}
        tables = {name: table for name, table in tables.items() if table is not None}
        tensors = [queries, keys, values, *more, *tables.values()]
        sides = [self.queries, self.keys, self.keys]
        sides += [self.queries] * (len(tensors) - 3)
        arrive = _by_heads(tensors, sides, few, self.heads, self.group)

        def received():
            found = arrive()
            rest = [found.pop() for _ in tables][::-1]
            return *found, self.options(dict(zip(tables, rest, strict=True)), found[1])

        return received

    def options(self, tables, keys):
        options = {"causal": self.causal, "window": self.window, "scale": self.scale}
        if self.documents is not None:
            places = range(keys.shape[-2])
            same = _same(self.documents, places, places)
            tables["mask"] = and_masks(tables.get("mask"), same)
        return options | tables

    def bring_home(self, few, parts, totals):
        """Post what was found for all tokens; the result waits, and adds it up."""
        sides = [self.queries, self.keys, self.keys, self.queries][: len(totals)]
        both = zip(parts, totals, strict=True)
        parts = [part.to(total.dtype) for part, total in both]
        return _by_tokens(parts, totals, sides, few, self.heads, self.group)


def ulysses_attend(
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
    documents: Integer[Tensor, "..."] | None = None,
    group: dist.ProcessGroup | None = None,
    order: str = "zigzag",
) -> Float[Tensor, "*batch num_queries value_dim"]:
    """What `ring_attend` gives, where each rank attends to all tokens for some heads.

    Arguments are the same. Ranks exchange queries, keys and values, so that each gets
    its share of the heads, and exchange the contexts back. The number of ranks must
    divide that of query heads; if there are fewer key heads than ranks, each goes to
    several. ValueError, on every rank, for what does not fit. Jacobs et al. 2023,
    section 3.
    """
    options = {"causal": causal, "scale": scale, "bias": bias, "window": window}
    options["documents"] = documents
    call = "ulysses_attend", queries, keys, values, mask
    _rank, ranks = place_in(group)
    if ranks == 1:
        return _alone(*call, order, dropout_p, options)
    fitted, own, theirs = _prepare(*call, group, order, dropout_p, options)
    settings = fitted.queries.shape[-3], own, theirs, causal, window
    given = fitted[:5]
    settings += fitted.scale, fitted.documents, wants_gradient(*given)
    context, _ = TwoPasses.apply(*given, _Ulysses(group, *settings))
    return context.reshape(*fitted.shape, values.shape[-1])


ulysses_attend.attention_weights = partial(_weights, ulysses_attend)
