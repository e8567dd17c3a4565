"""A memory in pages

Keys and values of many texts in one memory: they lie in blocks that a table finds,
so nothing is reserved ahead, equal beginnings are kept once, and texts come and go.

Written by `book/memory/paged.ipynb`: read and change it there.
"""

from __future__ import annotations  # Triton reads tl.constexpr as a word

import functools
import inspect
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice, takewhile
from math import prod
from operator import index

import torch
from einops import rearrange
from jaxtyping import Float, Int, Integer
from torch import Tensor

from attention.core.layer import Cache
from attention.memory.kv_cache import check_piece, check_rollback, joined_positions
from attention.tools.checks import (
    are_whole,
    as_given,
    check_counts,
    check_fit,
    check_sizes,
    is_size,
    precise,
    readable,
    scale_queries,
    wants_gradient,
)
from attention.tools.workbench import check_tensor, expected

__all__ = [
    "BlockPool",
    "PagedCache",
    "Request",
    "Scheduler",
    "block_names",
    "blocks_for",
    "paged_attend",
    "publish_prefix",
    "reuse_prefix",
    "slots_of",
    "stack_tables",
    "triton_paged_attend",
    "wasted_slots",
]


def slots_of(
    table: Integer[Tensor, "*batch columns"],
    places: Integer[Tensor, " length"],
    block_size: int,
) -> Int[Tensor, "*batch length"]:
    """Where in memory the tokens at these places of a text lie.

    `table` holds the numbers of a text's blocks, in order; block n has the slots from
    n · block_size on. Places count from 0. Kwon et al. 2023, section 4.3. ValueError
    for a place that the table does not cover.
    """
    (block_size,) = check_sizes(block_size=block_size)
    table, places = table.long(), places.long()  # slots are many: few bits would wrap
    end = table.shape[-1] * block_size
    if places.numel() and readable(places):
        _check_within("places", places, 0, end - 1)
    return table[..., places // block_size] * block_size + places % block_size


def _check_within(name: str, numbers: Tensor, least: int, most: int) -> None:
    first, last = numbers.min().item(), numbers.max().item()
    if first < least or last > most:
        raise expected(name, f"from {least} to {most}", f"{first} to {last}")


def blocks_for(length: int, block_size: int) -> int:
    """How many blocks a text of this length fills, the last one perhaps in part.

    ValueError for a length below 0, or a block below 1.
    """
    (block_size,) = check_sizes(block_size=block_size)
    (length,) = check_counts(length=length)
    return -(-length // block_size)


def wasted_slots(lengths: Sequence[int], block_size: int) -> int:
    """Empty slots held by texts of these lengths; ValueError as in `blocks_for`."""
    (block_size,) = check_sizes(block_size=block_size)
    return sum(blocks_for(n, block_size) * block_size - index(n) for n in lengths)


def _whole(name: str, numbers: Iterable[int]) -> list[int]:
    """As ints of Python, which can be keys of a dict; a tensor's items cannot."""
    try:
        return [*map(index, numbers)]
    except TypeError:
        raise expected(name, "whole numbers", repr(numbers)) from None


class BlockPool:
    """Memory for the keys and values of many texts, in blocks of `block_size` tokens.

    A pool serves one layer. With `num_blocks` it is allocated once, and a text that
    finds too few free blocks is refused (ValueError); without, it doubles when it is
    full. `users` counts for each block how many texts hold it. A block that nobody
    holds is `free`; what it says stays there until the block is taken again, the
    longest unused first. dtype, device, heads and widths are those of the first tokens.
    Gradients are right while a block has users; when none has any, what was recorded
    is dropped.
    """

    def __init__(self, block_size: int, num_blocks: int | None = None) -> None:
        (block_size,) = check_sizes(block_size=block_size)
        if num_blocks is not None:
            (num_blocks,) = check_sizes(num_blocks=num_blocks)
        self.block_size, self.num_blocks = block_size, num_blocks
        self.keys, self.values = None, None  # (blocks, block_size, num_kv_heads, width)
        self.users, self.free = [], {}  # a dict, since it keeps the order
        self.known, self.names = {}, {}  # block by name, and name by block
        if num_blocks is not None:
            self._add(num_blocks)

    def _add(self, count: int) -> None:
        start = len(self.users)
        self.free |= dict.fromkeys(range(start, start + count))
        self.users += [0] * count
        if self.keys is not None:
            with torch.inference_mode(False), torch.enable_grad():
                both = self.keys, self.values
                more = (t.new_empty(count, *t.shape[1:]) for t in both)
                self.keys, self.values = map(torch.cat, zip(both, more, strict=True))

    def take(self, count: int) -> list[int]:
        """That many free blocks, each for one user; ValueError if there are too few."""
        if not is_size(count):
            raise expected("count", "a whole number of at least 0", repr(count))
        missing = count - len(self.free)
        if missing > 0 and self.num_blocks is not None:
            got = f"{len(self.free)} of {self.num_blocks}"
            raise expected("pool", f"{count} free blocks", got)
        if missing > 0:
            self._add(max(missing, len(self.users)))
        blocks = list(islice(self.free, count))
        for block in blocks:
            self.forget(block)
        self.hold(blocks)
        return blocks

    def hold(self, blocks: Sequence[int]) -> None:
        """Count one more user of each."""
        blocks, known = _whole("blocks", blocks), range(len(self.users))
        if not all(block in known for block in blocks):
            raise expected("blocks", f"blocks from 0 to {len(known) - 1}", blocks)
        for block in blocks:
            self.free.pop(block, None)
            self.users[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """Count one user fewer of each; the last blocks of a text are free first."""
        blocks, known = _whole("blocks", blocks), range(len(self.users))
        times = Counter(blocks)
        if not all(b in known and self.users[b] >= n for b, n in times.items()):
            raise expected("blocks", "blocks in use", blocks)
        for block in reversed(blocks):
            self.users[block] -= 1
            if self.users[block] == 0:
                self.free[block] = None
        if self.keys is not None and len(self.free) == len(self.users):
            with torch.inference_mode(False):  # nobody wants a gradient any more
                self.keys, self.values = self.keys.detach(), self.values.detach()

    def name(self, block: int, name: bytes) -> None:
        """Let a full block be found by what it says; of equal ones, the first is."""
        if name not in self.known:
            self.known[name], self.names[block] = block, name

    def forget(self, block: int) -> None:
        """What the block says will change: let nobody find it."""
        self.known.pop(self.names.pop(block, None), None)

    def write(
        self, rows: list[list[int]], start: int, keys: Tensor, values: Tensor
    ) -> None:
        """Store tokens (rows, num_kv_heads, new, width) at the places from `start`."""
        if not torch.is_grad_enabled():
            keys, values = keys.detach(), values.detach()
        with torch.inference_mode(False), torch.enable_grad():
            if self.keys is None:
                size = len(self.users), self.block_size
                self.keys = keys.new_empty(*size, *keys.shape[-3::2])
                self.values = values.new_empty(*size, *values.shape[-3::2])
            slots = self._slots(rows, start, start + keys.shape[-2])
            self.keys.flatten(0, 1)[slots] = keys.movedim(-3, -2)
            self.values.flatten(0, 1)[slots] = values.movedim(-3, -2)

    def copy(self, old: list[int], new: list[int]) -> None:
        """Let new blocks say what old ones do."""
        with torch.inference_mode(False), torch.enable_grad():
            for memory in (self.keys, self.values):
                memory[new] = memory[old]

    def read(self, rows: list[list[int]], length: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the first `length` tokens of each row of blocks."""
        slots = self._slots(rows, 0, length)
        both = self.keys.flatten(0, 1)[slots], self.values.flatten(0, 1)[slots]
        return both[0].movedim(-3, -2), both[1].movedim(-3, -2)

    def _slots(self, rows: list[list[int]], start: int, end: int) -> Tensor:
        columns, device = blocks_for(end, self.block_size), self.keys.device
        table = torch.tensor(rows, dtype=torch.long, device=device)
        places = torch.arange(start, end, device=device)
        return slots_of(table.view(len(rows), columns), places, self.block_size)

    def __getstate__(self) -> dict:
        """What is stored: numbers, without what their gradients need."""
        both = {"keys": self.keys, "values": self.values}
        numbers = {name: t if t is None else t.detach() for name, t in both.items()}
        return self.__dict__ | numbers

    def __setstate__(self, state: dict) -> None:
        """Memory that can be written to, even if it is loaded in inference mode."""
        self.__dict__ |= state
        if self.keys is not None and self.keys.is_inference():
            with torch.inference_mode(False):
                self.keys, self.values = self.keys.clone(), self.values.clone()


class PagedCache:
    """A cache whose tokens lie in blocks of a pool, wherever one was free.

    Keeps the promise of `Cache`. Without a `pool` it has one of its own, of
    `num_blocks` (any number, if None). `rows` are the block tables of the texts of a
    batch, all of one length; each text may be a fork of another, and share its
    blocks until one of the two writes. `free` gives the blocks back; they also stay
    taken if the cache is merely dropped. ValueError for what does not fit, for a pool
    that is full, and for use after `free`; the cache is then as it was. Gradients are
    right, but the pool then keeps what they need until all its blocks are free: write
    texts within torch.no_grad(), or free all of them before the next step of training.
    Kwon et al. 2023, section 4.
    """

    def __init__(
        self,
        block_size: int,
        num_blocks: int | None = None,
        *,
        pool: BlockPool | None = None,
    ) -> None:
        (block_size,) = check_sizes(block_size=block_size)
        if pool is None:
            pool = BlockPool(block_size, num_blocks)
        elif num_blocks is not None:
            raise expected("num_blocks", "None when a pool is given", num_blocks)
        elif pool.block_size != block_size:
            raise expected("pool", f"blocks of {block_size=}", pool.block_size)
        self.pool, self.block_size = pool, block_size
        self.length, self.positions = 0, torch.empty(0, dtype=torch.long)
        self.batch, self.rows = None, [[]]

    def extend(
        self,
        keys: Float[Tensor, "*batch num_kv_heads new key_dim"],
        values: Float[Tensor, "*batch num_kv_heads new value_dim"],
        positions: Integer[Tensor, "*rows new"],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Keys, values and positions of all tokens so far, these included."""
        self.append(keys, values, positions)
        held = self.pool.read(self.rows, self.length)
        keys, values = (t.view(*self.batch, *t.shape[1:]) for t in held)
        return keys, values, self.positions

    def append(self, keys: Tensor, values: Tensor, positions: Tensor) -> None:
        """Store tokens, as `extend` does, but read nothing."""
        positions = self._check(keys, values, positions)
        new, batch = keys.shape[-2], keys.shape[:-3]
        rows, held = self.rows, self.positions
        if self.length == 0:
            rows, held = [[] for _ in range(prod(batch))], positions.new_empty(0)
        self._make_room(rows, new)
        self.rows = rows
        flat = (t.reshape(len(self.rows), *t.shape[-3:]) for t in (keys, values))
        self.pool.write(self.rows, self.length, *flat)
        self.batch = batch
        self.positions = joined_positions(held, positions)
        self.length += new

    def needs(self, new: int) -> int:
        """How many free blocks it takes to add `new` tokens to each row."""
        self._check_held()
        return self._missing(self.rows, new)

    def _missing(self, rows: list[list[int]], new: int) -> int:
        total = blocks_for(self.length + new, self.block_size)
        return sum(total - self._keeps(row, new) for row in rows)

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens, and give back what that frees."""
        self._check_held()
        length = check_rollback(length, self.length)
        keep = blocks_for(length, self.block_size)
        for row in self.rows:
            self.pool.release(row[keep:])
            del row[keep:]
        self.length, self.positions = length, self.positions[..., :length]
        self.batch = self.batch if length else None

    def fork(self) -> Cache:
        """A second cache that says the same, and shares all blocks for now."""
        self._check_held()
        other = PagedCache(self.block_size, pool=self.pool)
        other.length, other.positions = self.length, self.positions
        other.batch, other.rows = self.batch, [[*row] for row in self.rows]
        for row in self.rows:
            self.pool.hold(row)
        return other

    def free(self) -> None:
        """Give all blocks back; whatever is asked of the cache later is refused."""
        self.truncate(0)
        self.rows = None

    def _keeps(self, row: list[int], new: int) -> int:
        """How many of a row's blocks stay: not a shared one that `new` tokens enter."""
        writes = new and self.length % self.block_size
        shared = writes and self.pool.users[row[-1]] > 1
        return len(row) - bool(shared)

    def _make_room(self, rows: list[list[int]], new: int) -> None:
        """Blocks for `new` more tokens; one that is shared is copied, not written."""
        taken = iter(self.pool.take(self._missing(rows, new)))
        total = blocks_for(self.length + new, self.block_size)
        keeps = [self._keeps(row, new) for row in rows]
        for row, kept in zip(rows, keeps, strict=True):
            shared, row[kept:] = row[kept:], islice(taken, total - kept)
            if shared:
                self.pool.copy(shared, row[kept : kept + 1])
                self.pool.release(shared)
            elif row and self.length % self.block_size:
                self.pool.forget(row[kept - 1])

    def _check_held(self) -> None:
        if self.rows is None:
            raise expected("cache", "one that is in use", "one that was freed")

    def _check(self, keys: Tensor, values: Tensor, positions: Tensor) -> Tensor:
        """Positions in 64 bits; ValueError unless the rows may get these three."""
        self._check_held()
        check_tensor(keys=keys, values=values, positions=positions)
        like, last = None, self.positions[..., -1:] if self.length else None
        if self.pool.keys is not None:
            batch = keys.shape[:-3] if self.batch is None else self.batch
            memory = self.pool.keys, self.pool.values
            like = tuple(t.new_empty(*batch, t.shape[2], 0, t.shape[3]) for t in memory)
        positions = check_piece(keys, values, positions, like=like, last=last)
        if self.length and prod(keys.shape[:-3]) != len(self.rows):
            raise expected("keys", f"{len(self.rows)} texts, as were found", keys)
        return positions

    __copy__ = fork

    def __deepcopy__(self, memo: dict) -> Cache:
        return self.fork()


def block_names(
    tokens: Sequence[int], positions: Sequence[int], block_size: int
) -> list[bytes]:
    """A name for each full block of a text, by what it and all before it say.

    It is a digest of the block's tokens, of their positions and of the name before.
    ValueError for a block_size below 1.
    """
    (block_size,) = check_sizes(block_size=block_size)
    names, before = [], b""
    for start in range(0, len(tokens) - block_size + 1, block_size):
        block = slice(start, start + block_size)
        says = repr((list(tokens[block]), list(positions[block]))).encode()
        before = sha256(before + says).digest()
        names.append(before)
    return names


def _texts(tokens: Tensor) -> list[list[int]]:
    """The rows of a batch, as lists of whole numbers."""
    check_tensor(tokens=tokens)
    if tokens.ndim < 1 or not are_whole(tokens):
        raise expected("tokens", "whole numbers (*batch, length)", tokens)
    *batch, length = tokens.shape
    return tokens.reshape(prod(batch), length).tolist()


def reuse_prefix(cache: PagedCache, tokens: Integer[Tensor, "*batch length"]) -> int:
    """How many of these tokens stand in known blocks; an empty cache begins with them.

    Positions count from 0; `extend` must be given the others, at least the last one.
    ValueError for a cache that holds tokens or was freed, and for no whole numbers.
    """
    cache._check_held()
    if cache.length:
        raise expected("cache", "an empty one", f"{cache.length} tokens")
    pool, known, found = cache.pool, cache.pool.known, []
    for text in _texts(tokens):
        names = block_names(text[:-1], range(len(text)), pool.block_size)
        found.append([known[name] for name in takewhile(known.__contains__, names)])
    count = min((len(row) for row in found), default=0)
    cache.rows = [row[:count] for row in found]
    for row in cache.rows:
        pool.hold(row)
    cache.length = count * pool.block_size
    device = None if pool.keys is None else pool.keys.device
    cache.positions = torch.arange(cache.length, device=device)
    return cache.length


def publish_prefix(cache: PagedCache, tokens: Integer[Tensor, "*batch length"]) -> None:
    """Let others reuse the full blocks; `tokens` are all that the cache holds.

    ValueError for a freed cache, and unless there is a whole number for each token.
    """
    cache._check_held()
    texts = _texts(tokens)
    if (len(texts), tokens.shape[-1]) != (len(cache.rows), cache.length):
        must = f"{cache.length} tokens in each of {len(cache.rows)} rows"
        raise expected("tokens", must, tokens)
    places = _texts(cache.positions.expand(*tokens.shape[:-1], -1))
    for row, text, own in zip(cache.rows, texts, places, strict=True):
        names = block_names(text, own, cache.block_size)
        for block, name in zip(row, names, strict=False):
            cache.pool.name(block, name)


def stack_tables(
    caches: Sequence[PagedCache],
) -> tuple[Int[Tensor, "texts columns"], Int[Tensor, " texts"]]:
    """Block tables of caches of one pool, and lengths; 0 where a row has ended.

    ValueError for no cache, one that holds no token, and two pools.
    """
    pools = {id(cache.pool) for cache in caches}
    if len(pools) != 1 or not all(cache.length for cache in caches):
        must = "caches of one pool, each with at least one token"
        got = f"{len(pools)} pools and lengths {[cache.length for cache in caches]}"
        raise expected("caches", must, got)
    rows = [row for cache in caches for row in cache.rows]
    lengths = [cache.length for cache in caches for _ in cache.rows]
    most, device = max(map(len, rows)), caches[0].pool.keys.device
    table = torch.tensor([row + [0] * (most - len(row)) for row in rows], device=device)
    return table, torch.tensor(lengths, device=device)


def _check_paged(queries, keys, values, table, lengths) -> None:
    """ValueError unless the tables point into this memory, for these queries."""
    names = "queries", "keys", "values", "table", "lengths"
    given = dict(zip(names, (queries, keys, values, table, lengths), strict=True))
    check_tensor(**given)
    axes = tuple(tensor.ndim for tensor in given.values())
    if axes != (3, 4, 4, 2, 1) or len(keys) != len(values):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in given.values())
        must = "3, 4, 4, 2 and 1 axes, and as many blocks of values as of keys"
        raise expected(", ".join(names), must, shapes)
    memory = (t[:1].movedim(-2, -3) for t in (keys, values))
    check_fit(queries.unsqueeze(-2), *memory)
    if queries.shape[1] % keys.shape[2]:
        must = f"a multiple of num_kv_heads={keys.shape[2]}"
        raise expected("heads", must, queries.shape[1])
    for name, tensor in {"table": table, "lengths": lengths}.items():
        whole = tensor.dtype in (torch.int32, torch.int64)
        if not whole or tensor.device != keys.device or len(tensor) != len(queries):
            must = f"int32 or int64 for {len(queries)} texts on {keys.device}"
            raise expected(name, must, tensor)
    if lengths.numel() and readable(lengths):
        _check_within("lengths", lengths, 1, table.shape[1] * keys.shape[1])
        _check_within("table", table, 0, len(keys) - 1)


def paged_attend(
    queries: Float[Tensor, "texts heads head_dim"],
    keys: Float[Tensor, "blocks block_size num_kv_heads head_dim"],
    values: Float[Tensor, "blocks block_size num_kv_heads value_dim"],
    table: Int[Tensor, "texts columns"],
    lengths: Int[Tensor, " texts"],
    *,
    scale: float | Tensor | None = None,
) -> Float[Tensor, "texts heads value_dim"]:
    """Context of one query for each text, whose keys and values lie in blocks.

    Row n of the table names the blocks of text n, in order, and its first lengths[n]
    tokens are seen. Each head of keys serves several neighbouring heads of queries. One
    column of blocks is read at a time. `scale` may be a tensor that broadcasts to
    (texts, heads, 1). Kwon et al. 2023, equation 4. ValueError for what does not fit.
    """
    _check_paged(queries, keys, values, table, lengths)
    queries, scale = scale_queries(queries, scale)
    q = rearrange(queries, "n (g r) d -> n g r d", g=keys.shape[2])
    q = scale * q.to(precise(q))
    m = q.new_full(q.shape[:-1], -torch.inf)
    total, acc = torch.zeros_like(m), q.new_zeros(*q.shape[:-1], values.shape[-1])
    inside = torch.arange(keys.shape[1], device=keys.device)
    for column, blocks in enumerate(table.T):
        seen = column * len(inside) + inside < lengths[:, None]
        hidden = ~seen[:, None, :, None]
        k = rearrange(keys[blocks].to(q), "n b g d -> n g b d")
        v = rearrange(values[blocks].to(q), "n b g e -> n g b e")
        k, v = k.masked_fill(hidden, 0.0), v.masked_fill(hidden, 0.0)
        with as_given(q):
            scores = (q @ k.mT).masked_fill(hidden.mT, -torch.inf)
            new = torch.maximum(m, scores.amax(dim=-1))
            alpha, weights = (m - new).exp(), (scores - new[..., None]).exp()
            total = alpha * total + weights.sum(dim=-1)
            acc, m = alpha[..., None] * acc + weights @ v, new
    context = (acc / total[..., None]).to(queries.dtype)
    return rearrange(context, "n g r e -> n (g r) e")


def _paged_kernel(
    queries, keys, values, context, table, lengths, columns, scale,
    SHARED: tl.constexpr, GROUPS: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    HEAD_DIM: tl.constexpr, VALUE_DIM: tl.constexpr,
    ROWS: tl.constexpr, WIDE: tl.constexpr, VALUES_WIDE: tl.constexpr,
):  # fmt: skip
    text, head = tl.program_id(0), tl.program_id(1)
    length = tl.load(lengths + text)
    inside, wide = tl.arange(0, ROWS), tl.arange(0, WIDE)
    across = tl.arange(0, VALUES_WIDE)
    row = text * SHARED * GROUPS + head
    q = tl.load(queries + row * HEAD_DIM + wide, mask=wide < HEAD_DIM, other=0.0)
    q = q.to(tl.float32) * scale
    m_i, l_i = float("-inf"), 0.0
    acc = tl.zeros([VALUES_WIDE], tl.float32)
    for column in range(0, tl.cdiv(length, BLOCK_SIZE)):
        block = tl.load(table + text * columns + column).to(tl.int64)
        seen = (inside < BLOCK_SIZE) & (column * BLOCK_SIZE + inside < length)
        heads = (block * BLOCK_SIZE + inside) * GROUPS + head // SHARED
        there = seen[:, None] & (wide < HEAD_DIM)[None, :]
        at = heads[:, None] * HEAD_DIM + wide[None, :]
        k = tl.load(keys + at, mask=there, other=0.0).to(tl.float32)
        scores = tl.where(seen, tl.sum(q[None, :] * k, 1), float("-inf"))
        m_ij = tl.maximum(m_i, tl.max(scores, 0))
        alpha, weights = tl.exp(m_i - m_ij), tl.exp(scores - m_ij)
        there = seen[:, None] & (across < VALUE_DIM)[None, :]
        at = heads[:, None] * VALUE_DIM + across[None, :]
        v = tl.load(values + at, mask=there, other=0.0).to(tl.float32)
        l_i = l_i * alpha + tl.sum(weights, 0)
        acc = acc * alpha + tl.sum(weights[:, None] * v, 0)
        m_i = m_ij
    acc = (acc / l_i).to(context.dtype.element_ty)
    tl.store(context + row * VALUE_DIM + across, acc, mask=across < VALUE_DIM)


@functools.cache
def _compiled() -> Callable:
    """The kernel, as Triton compiles it; an error that helps if Triton is missing."""
    global tl, triton
    try:
        import triton
        import triton.language as tl
    except ModuleNotFoundError as error:
        how = "pip install 'building-attention[triton]'"
        raise ModuleNotFoundError(f"triton_paged_attend needs Triton: {how}") from error
    return triton.jit(inspect.unwrap(_paged_kernel))


def triton_paged_attend(
    queries: Float[Tensor, "texts heads head_dim"],
    keys: Float[Tensor, "blocks block_size num_kv_heads head_dim"],
    values: Float[Tensor, "blocks block_size num_kv_heads value_dim"],
    table: Int[Tensor, "texts columns"],
    lengths: Int[Tensor, " texts"],
    *,
    scale: float | Tensor | None = None,
) -> Float[Tensor, "texts heads value_dim"]:
    """The same as `paged_attend` by a kernel in Triton, for CUDA, without gradients.

    On a CPU Triton's interpreter runs it, slowly, if TRITON_INTERPRET=1 is set before
    Triton is imported. ValueError for a misfit, ModuleNotFoundError without Triton.
    """
    _check_paged(queries, keys, values, table, lengths)
    queries, scale = scale_queries(queries, scale)
    given = queries, keys, values
    if wants_gradient(*given):
        must = "tensors that want no gradient, or a call within torch.no_grad()"
        raise expected("queries, keys and values", must, "one that wants its gradient")
    kernel = _compiled()
    if keys.device.type != "cuda" and isinstance(kernel, triton.JITFunction):
        must = "CUDA, or the CPU if TRITON_INTERPRET=1 is set"
        raise expected("device", must, keys.device)
    (texts, heads, _), groups = queries.shape, keys.shape[2]
    context = queries.new_empty(texts, heads, values.shape[-1])
    given = *(t.contiguous() for t in given), context
    widths = keys.shape[1], queries.shape[-1], values.shape[-1]
    constants = heads // groups, groups, *widths, *map(triton.next_power_of_2, widths)
    tables = table.contiguous(), lengths.contiguous(), table.shape[1]
    with torch.cuda.device_of(queries):
        kernel[texts, heads](*given, *tables, scale, *constants)
    return context


@dataclass(eq=False)
class Request:
    """A text to go on with: its tokens so far, and how many are to follow."""

    tokens: list[int]
    to_write: int
    cache: PagedCache | None = None


class Scheduler:
    """Continuous batching: texts come and go at every step, as the blocks allow.

    `read(tokens, cache)` reads tokens into a cache of the pool, and gives the token
    that follows, a whole number. In a `step` each running text, the oldest first,
    writes one token. If blocks run out, the youngest text is put back: its blocks are
    freed, and later it is read again. Otherwise waiting texts are read, in order, while
    there is room. `log` notes for each step what was done with whom. Kwon et al. 2023,
    section 4.5. ValueError if `read` gives anything but a whole number.
    """

    def __init__(
        self, pool: BlockPool, read: Callable[[list[int], PagedCache], int]
    ) -> None:
        self.pool, self.read = pool, read
        self.waiting, self.running, self.log = deque(), [], []

    def add(self, request: Request) -> None:
        """Let it wait; ValueError if not even the whole pool could hold it."""
        request.tokens = _whole("tokens", request.tokens)
        check_sizes(to_write=request.to_write, prompt=len(request.tokens))
        size, num_blocks = self.pool.block_size, self.pool.num_blocks
        most = blocks_for(len(request.tokens) + request.to_write - 1, size)
        if num_blocks is not None and most > num_blocks:
            must = f"one that {num_blocks} blocks of {size} tokens can hold"
            raise expected("request", must, f"one for {most} blocks")
        self.waiting.append(request)

    def step(self) -> None:
        """A token for each running text, then room for those that wait."""
        self.log.append({})
        for request in [*self.running]:
            while request in self.running and not self._fits(request.cache, 1):
                self._put_back(self.running[-1])
            if request in self.running:
                self._read(request, request.tokens[-1:], "write")
        room = "put back" not in self.log[-1].values()
        while room and self.waiting:
            room = self._start(self.waiting[0])

    def _fits(self, cache: PagedCache, new: int) -> bool:
        unlimited = self.pool.num_blocks is None
        return unlimited or cache.needs(new) <= len(self.pool.free)

    def _start(self, request: Request) -> bool:
        """Read the prompt, except for what the pool knows already, if there is room."""
        cache = PagedCache(self.pool.block_size, pool=self.pool)
        known = reuse_prefix(cache, torch.tensor(request.tokens))
        new = request.tokens[known:]
        if not self._fits(cache, len(new)):
            cache.free()
            return False
        request.cache = cache
        self.running.append(self.waiting.popleft())
        self._read(request, new, "prompt")
        return True

    def _read(self, request: Request, tokens: list[int], what: str) -> None:
        self.log[-1][request] = what
        try:
            (following,) = _whole("read", [self.read(tokens, request.cache)])
            said = request.tokens[: request.cache.length]
            publish_prefix(request.cache, torch.tensor(said, dtype=torch.long))
        except BaseException:  # what was read in part is read again
            self._put_back(request)
            raise
        request.tokens.append(following)
        request.to_write -= 1
        if request.to_write == 0:
            self._leave(request)

    def _put_back(self, request: Request) -> None:
        self.log[-1][request] = "put back"
        self._leave(request)
        self.waiting.appendleft(request)

    def _leave(self, request: Request) -> None:
        """Free its blocks; what they say can be found until they are taken again."""
        request.cache.free()
        request.cache = None
        self.running.remove(request)
