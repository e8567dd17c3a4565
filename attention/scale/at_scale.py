"""Attention at scale

How long a layer of attention takes on many machines, and why: a model on paper,
from a few numbers of a machine, compared with runs that others have published.

Written by `book/scale/at_scale.ipynb`: read and change it there.
"""

import math
from typing import NamedTuple

from attention.scale.context_parallel import heads_of
from attention.tools.checks import check_sizes, is_number, own_number
from attention.tools.workbench import expected

__all__ = [
    "A100",
    "H100",
    "H800",
    "AttentionSizes",
    "AttentionTimes",
    "Machine",
    "attention_times",
    "ring_step",
]


class Machine(NamedTuple):
    """What a rank can do, and what joins it to others: rates that are reached.

    The rates of a data sheet are upper bounds; fit them, or take a part of them.
    """

    operations: float  # a second, in blocks that the diagonal cuts
    link: float  # bytes a second that a rank sends to others of its node
    network: float | None = None  # the same, to ranks of other nodes; None: like `link`
    node: int = 8  # how many ranks a node has
    latency: float = 0.0  # seconds until a message begins to arrive
    memory: float = math.inf  # bytes a second, from and to a rank's own memory
    merging: float = 10.0  # bytes of memory for each number that is merged
    whole: float = 1.0  # how many times as fast blocks without a mask are


class AttentionSizes(NamedTuple):
    """A text and a layer; `itemsize` is the bytes of each number that is sent."""

    length: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    itemsize: int = 2
    batch: int = 1


class AttentionTimes(NamedTuple):
    """Seconds of the busiest rank in one layer of attention, and bytes that it sends.

    `hidden` is the part of `send` that passes while the rank computes or merges.
    `ideal` is the time if ranks shared the work evenly, and did nothing else.
    """

    compute: float = 0
    merge: float = 0
    send: float = 0
    hidden: float = 0
    sent: float = 0  # bytes
    ideal: float = 0

    @property
    def seconds(self) -> float:
        """From the beginning to the end."""
        return self.compute + self.merge + self.send - self.hidden

    @property
    def share(self) -> float:
        """Share of the ideal: parallel efficiency."""
        return self.ideal / self.seconds


def _carry(machine: Machine, near: float | int, far: float | int) -> float:
    """Seconds to send `near` bytes within the node, and `far` bytes to other nodes."""
    network = machine.link if machine.network is None else machine.network
    longest = max(near / machine.link, far / network)
    return machine.latency + longest if near or far else 0.0


def _to_all(machine: Machine, size: float | int, ranks: int) -> AttentionTimes:
    """`size` bytes from each rank to each other rank, different ones to each."""
    near = min(ranks, machine.node) - 1
    far = ranks - 1 - near
    send = _carry(machine, near * size, far * size)
    return AttentionTimes(send=send, sent=(ranks - 1) * size)


def _pass_on(machine: Machine, size: float | int, ranks: int) -> AttentionTimes:
    """`size` bytes from each rank to all, passed on in circles through all nodes."""
    sent = (ranks - 1) * size
    far = sent / machine.node if ranks > machine.node else 0
    return AttentionTimes(send=_carry(machine, sent - far, far), sent=sent)


_RINGS = ("contiguous", "striped", "zigzag")


def ring_step(tokens: float | int, order: str, own: bool) -> tuple[float | int, ...]:
    """The busiest rank's scores on the diagonal, in whole blocks, and rows merged.

    With `tokens` on each rank, for one head; `own`: the first step, with a rank's own
    keys. In zigzag order an odd number of tokens is counted as a mean. ValueError for
    another order, or no tokens.
    """
    if order not in _RINGS or not is_number(tokens) or tokens <= 0:
        must = f"tokens, in {' or '.join(_RINGS)} order"
        raise expected("tokens and order", must, f"{tokens} and {order!r}")
    triangle, quarter = tokens * (tokens + 1) / 2, tokens**2 / 4
    if order == "zigzag" and own:
        return triangle - quarter, quarter, 1.5 * tokens
    if order == "zigzag":
        return 0.0, 2 * quarter, tokens
    if own or order == "striped":
        return triangle, 0.0, tokens
    return 0.0, 4 * quarter, tokens


def _compute(sizes, machine, scores, back) -> float:
    """Seconds for this many scores of each head."""
    each = (10 if back else 4) * sizes.head_dim
    return each * sizes.batch * sizes.num_heads * scores / machine.operations


def _ring(sizes, machine, ranks, order, back, far) -> AttentionTimes:
    """One pass of the ring; `far`: whether it goes from node to node somewhere."""
    tokens, work = sizes.length / ranks, []
    vector = sizes.head_dim * sizes.batch
    pair = 2 * tokens * sizes.num_kv_heads * vector
    for own in (True, False):
        causal, whole, rows = ring_step(tokens, order, own)
        numbers = rows * sizes.num_heads * vector + (pair if back else 0)
        seconds = _compute(sizes, machine, causal + whole / machine.whole, back)
        work.append((seconds, numbers * machine.merging / machine.memory))
    first, other = work
    later = ranks - 1
    sums = 4 * pair if back else 0
    size = pair * sizes.itemsize + sums
    each, home = (_carry(machine, s, far * s) for s in (size, sums))
    return AttentionTimes(
        *(a + later * b for a, b in zip(first, other, strict=True)),
        send=later * each + home,
        hidden=min(each, sum(first)) + (later - 1) * min(each, sum(other)),
        sent=later * size + sums,
    )


def attention_times(
    sizes: AttentionSizes,
    machine: Machine,
    ranks: int,
    scheme: str = "zigzag",
    *,
    ulysses: int = 1,
    backward: bool = False,
) -> AttentionTimes:
    """What causal attention costs the busiest of `ranks` ranks, in one layer.

    `scheme` is a ring in "contiguous", "striped" or "zigzag" order, or "ulysses",
    "all-gather" or "tensor" (heads over ranks, and their outputs added up). A ring may
    run between groups of `ulysses` ranks that exchange heads. With `backward`, both
    passes are counted. Lengths need not divide: shares are then means. ValueError for
    what does not fit.
    """
    _check_plan(sizes, machine, ranks, scheme, ulysses)
    ranks, ulysses = own_number(ranks), own_number(ulysses)
    sizes = AttentionSizes(*map(own_number, sizes))
    length, heads, kv_heads, width, itemsize, batch = sizes
    groups = ranks if scheme in ("ulysses", "tensor") else ulysses
    kept = len(range(kv_heads)[heads_of(0, groups, heads, kv_heads)])
    inside = sizes._replace(num_heads=heads // groups, num_kv_heads=kept)
    head, far = length / ranks * width * batch, ranks > machine.node
    parts, ideal = [], 0.0
    for back in (False, True)[: 1 + backward]:
        alone = _compute(sizes, machine, length * (length + 1) / 2 / ranks, back)
        if scheme == "tensor":
            parts.append(_pass_on(machine, 2 * heads * head * itemsize, ranks))
        elif scheme == "all-gather":
            pair = 2 * kv_heads * head * (4 if back else itemsize)
            parts.append(_pass_on(machine, pair, ranks))
        else:
            size = 2 * (heads // groups + kept) * head * itemsize
            parts.append(_to_all(machine, size, groups))
        if scheme in _RINGS and ranks > groups:
            parts.append(_ring(inside, machine, ranks // groups, scheme, back, far))
        else:
            parts.append(AttentionTimes(alone))
        ideal += alone
    return AttentionTimes(*map(sum, zip(*parts, strict=True)))._replace(ideal=ideal)


_SCHEMES = (*_RINGS, "ulysses", "all-gather", "tensor")


def _check_plan(sizes, machine, ranks, scheme, ulysses) -> None:
    kinds = {"sizes": (sizes, AttentionSizes), "machine": (machine, Machine)}
    for name, (given, kind) in kinds.items():
        if not isinstance(given, kind):
            raise expected(name, f"{kind.__name__}(…)", type(given).__name__)
    check_sizes(ranks=ranks, ulysses=ulysses, node=machine.node, **sizes._asdict())
    for name, rate in machine._asdict().items():
        allowed = ("latency", 0), ("network", None)
        number = is_number(rate) or rate == math.inf
        if (name, rate) not in allowed and not (number and rate > 0):
            must = "a number above 0 (the latency may be 0)"
            raise expected(f"machine.{name}", must, rate)
    if scheme not in _SCHEMES:
        raise expected("scheme", " or ".join(map(repr, _SCHEMES)), repr(scheme))
    length, heads, kv_heads, *_ = sizes
    if heads % kv_heads:
        raise expected("num_kv_heads", f"a divisor of num_heads={heads}", kv_heads)
    if length < 2 * ranks:
        raise expected("length", f"at least {2 * ranks}, for {ranks=}", length)
    if ranks % ulysses or (ulysses > 1 and scheme not in _RINGS):
        must = f"a divisor of {ranks=} with a ring, and 1 without"
        raise expected("ulysses", must, ulysses)


# operations of a forward pass
H800 = Machine(325e12, 200e9, memory=3.35e12, merging=48.0, whole=1.16)
A100 = Machine(205e12, 300e9, memory=2.039e12, merging=48.0, whole=1.16)
H100 = Machine(559e12, 450e9, network=26e9, memory=2.4e12, merging=48.0)
