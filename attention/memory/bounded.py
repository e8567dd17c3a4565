"""A memory that does not grow

A cache that keeps only the last tokens, in slots that are written over, along with
the first tokens of the text, where attention rests when it finds nothing.

Written by `book/memory/bounded.ipynb`: read and change it there.
"""

from collections.abc import Callable
from copy import copy
from functools import partial

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

from attention.core.layer import causal, window
from attention.memory.kv_cache import (
    TOKEN_AXES,
    check_piece,
    check_rollback,
    frozen,
    joined_positions,
)
from attention.position.rotary import Rotary, rotate
from attention.tools.checks import check_counts, check_sizes, readable
from attention.tools.workbench import expected

__all__ = ["RollingCache", "check_inside", "window_and_sinks"]


class RollingCache:
    """Keys and values of the last `window` tokens, and of the first `sinks`.

    Each token is written over one that no later token sees: memory does not grow with
    the text. `extend` gives, in the order of the text, what new tokens see under the
    mask window(window), or window_and_sinks(window, sinks): the sinks, the window - 1
    tokens before the new ones, and the new ones.

    With inside=True, positions are counted inside the cache: as tokens are dropped, the
    sinks move on, and stand just before the oldest token that is left, so that their
    mask is window(window + sinks). For a layer that turns keys, hand in its `rotary`,
    which means inside=True, and turns the sinks along. Once a token has been dropped,
    tokens must come one at a time. Xiao et al. 2024, section 3.2.

    `truncate` can go back to where nothing was dropped, and afterwards spare + 1
    tokens (spare, if the window is 1). copy.copy gives a cache that goes its own way.
    Gradients are right; without torch.no_grad() whatever led to them is remembered,
    too. ValueError for what does not fit (`check_piece`); the cache is then as it was.
    """

    def __init__(
        self,
        window: int,
        sinks: int = 0,
        *,
        inside: bool = False,
        rotary: Rotary | None = None,
        spare: int = 0,
    ) -> None:
        (window,) = check_sizes(window=window)
        sinks, spare = check_counts(sinks=sinks, spare=spare)
        check_inside(inside, rotary)
        self.window, self.sinks, self.spare = window, sinks, spare
        self.inside, self.rotary = inside or rotary is not None, rotary
        self.length, self._oldest = 0, sinks  # the oldest in the ring
        self._memory: tuple[Tensor, ...] = ()  # slots of keys, values and positions
        self._last: tuple | None = None  # what the last `extend` changed

    @property
    def positions(self) -> Int[Tensor, "*rows held"]:
        """The positions of the sinks and of the last `window` tokens."""
        if not self.length:
            return torch.empty(0, dtype=torch.int64)
        return self._moved(self._read(self.window))[2]

    def extend(
        self,
        keys: Float[Tensor, "*batch num_kv_heads new key_dim"],
        values: Float[Tensor, "*batch num_kv_heads new value_dim"],
        positions: Integer[Tensor, "*rows new"],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Keys, values and positions of all that these tokens see, and their own."""
        like = self._memory[:2] if self.length else None
        last = self._last_position() if self.length else None
        positions = check_piece(keys, values, positions, like=like, last=last)
        self._check_sinks(positions)
        new = (keys, values, positions)
        seen = self._read(self.window - 1, new)
        self._write(new)
        return self._moved(seen)

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens; ValueError if one is missing."""
        dropped = self._oldest > self.sinks
        least = self._oldest + max(self.window - 1, 1) if dropped else 0
        length = check_rollback(length, self.length, least)
        self.length, self._last = length, None

    def undo(self) -> None:
        """Take back the last `extend`, with what it dropped; ValueError before any."""
        if self._last is None:
            raise expected("undo", "a call of extend that is not yet undone", "none")
        self.length, self._oldest, self._memory, runs, replaced = self._last
        if self._memory and frozen(self._memory[0]):
            self._memory = tuple(memory.clone() for memory in self._memory)
        places = [
            slots.narrow(axis, slot, several)
            for slots, axis in zip(self._memory, TOKEN_AXES, strict=False)
            for _, slot, several in runs
        ]
        for place, old in zip(places, replaced, strict=True):
            place.copy_(old)
        self._last = None

    def seen(self, new: int) -> int:
        """How many keys `extend` will give for `new` tokens, theirs included."""
        start = max(self._oldest, self.length - self.window + 1)
        return min(self.sinks, self.length) + max(0, self.length - start) + new

    def _runs(self, start: int, end: int) -> list[tuple[int, int, int]]:
        """Where tokens from `start` to `end` lie: token, slot, how many in a row."""
        runs, ring = [], self.window + self.spare
        while start < end:
            around = (start - self.sinks) % ring
            slot, room = self.sinks + around, ring - around
            if start < self.sinks:
                slot, room = start, self.sinks - start
            runs.append((start, slot, min(room, end - start)))
            start += runs[-1][2]
        return runs

    def _last_position(self) -> Tensor:
        ((_, slot, several),) = self._runs(self.length - 1, self.length)
        return self._memory[2].narrow(-1, slot, several)

    def _read(self, count: int, new: tuple[Tensor, ...] = ()) -> tuple[Tensor, ...]:
        """The sinks, the last `count` of the other tokens, and the new ones."""
        start = max(self._oldest, self.length - count)
        runs = self._runs(0, min(self.sinks, self.length))
        runs += self._runs(start, self.length)
        held = [
            [memory.narrow(axis, slot, several) for _, slot, several in runs]
            for memory, axis in zip(self._memory, TOKEN_AXES, strict=False)
        ]
        return _joined(held, new)

    def _write(self, new: tuple[Tensor, ...]) -> None:
        """Put new tokens into their slots, except those that would be written over."""
        begin, end = self.length, self.length + new[0].shape[-2]
        oldest = max(self._oldest, end - self.window - self.spare)
        runs = self._runs(begin, min(self.sinks, end))
        runs += self._runs(max(begin, oldest), end)
        most = self.sinks + self.window + self.spare
        memory = _with_room(self._memory if begin else (), new, end, most)
        in_place, replaced = memory is self._memory, []
        for slots, piece, axis in zip(memory, new, TOKEN_AXES, strict=True):
            for token, slot, several in runs:
                place = slots.narrow(axis, slot, several)
                if in_place:
                    replaced.append(place.clone())
                place.copy_(piece.narrow(axis, token - begin, several))
        kept = runs if in_place else []
        self._last = begin, self._oldest, self._memory, kept, replaced
        self._memory, self.length, self._oldest = memory, end, oldest

    def _check_sinks(self, positions: Tensor) -> None:
        """ValueError if sinks are padding, or must move for several tokens at once."""
        begin, new = self.length, positions.shape[-1]
        end = max(begin, min(self.sinks, begin + new))
        first = torch.arange(begin, end, device="cpu")
        given, behind = positions[..., : len(first)], positions[..., len(first) :]
        looked = readable(positions) or positions.is_cuda
        if looked and (given.cpu() != first).any():
            must = f"{first.tolist()} for the first tokens, which are kept as sinks"
            raise expected("positions", must, given.tolist())
        if looked and (behind < self.sinks).any():
            must = f"at least {self.sinks} after the sinks, which are never padding"
            raise expected("positions", must, behind.tolist())
        full = self.sinks + self.window
        if self.inside and self.sinks and new > 1 and begin + new > full:
            must = f"one token at a time beyond {full}, since each moves the sinks"
            raise expected("keys", must, f"{new} beside {begin}")

    def _moved(self, held: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The same, with the sinks just before the oldest of the other tokens."""
        (keys, values, positions), count = held, self.sinks
        if not self.inside or not count or positions.shape[-1] <= count:
            return held
        steps = positions[..., count : count + 1] - count
        sinks, moved = keys[..., :count, :], positions[..., :count] + steps
        if self.rotary is not None:
            angles = self.rotary.angles(steps)
            sinks = rotate(sinks, angles, interleaved=self.rotary.interleaved)
        keys = torch.cat([sinks, keys[..., count:, :]], dim=-2)
        return keys, values, torch.cat([moved, positions[..., count:]], dim=-1)

    def __copy__(self) -> "RollingCache":
        twin = object.__new__(type(self))
        memory = tuple(memory.clone() for memory in self._memory)
        twin.__dict__.update(self.__dict__ | {"_memory": memory, "_last": None})
        return twin

    def __deepcopy__(self, memo: dict) -> "RollingCache":
        return copy(self)


def _joined(
    held: list[list[Tensor]], new: tuple[Tensor, ...] = ()
) -> tuple[Tensor, ...]:
    """Runs of keys, of values and of positions, and the new ones, each in one."""
    held = held or [[], [], []]
    if new:
        held = [[*runs, piece] for runs, piece in zip(held, new, strict=True)]
    keys, values, positions = held
    return torch.cat(keys, -2), torch.cat(values, -2), joined_positions(*positions)


def _with_room(
    memory: tuple[Tensor, ...], new: tuple[Tensor, ...], end: int, most: int
) -> tuple[Tensor, ...]:
    """`memory` with slots for `end` tokens, at most `most`; new ones if it is empty.

    The tensors are the same, to be written in place, or copies if there are too few
    slots or somebody could notice. While there are few slots, they are doubled.
    """
    if not memory:
        pairs = zip(new, TOKEN_AXES, strict=True)
        memory = tuple(tensor.narrow(axis, 0, 0) for tensor, axis in pairs)
    have, rows = memory[2].shape[-1], (memory[2].shape[:-1], new[2].shape[:-1])
    more = min(most, max(end, 2 * have)) - have if end > have else 0
    wide = torch.broadcast_shapes(*rows)
    tracked = torch.is_grad_enabled() or any(tensor.requires_grad for tensor in memory)
    if not (more or tracked or frozen(memory[0])) and wide == rows[0]:
        return memory
    memory = (*memory[:2], memory[2].expand(*wide, -1))
    shapes = [[*t.shape] for t in memory]
    for shape, axis in zip(shapes, TOKEN_AXES, strict=True):
        shape[axis] = more
    pairs = zip(memory, shapes, TOKEN_AXES, strict=True)
    return tuple(torch.cat([t, t.new_zeros(shape)], a) for t, shape, a in pairs)


def check_inside(inside: bool, rotary: Rotary | None) -> None:
    """ValueError unless turning by a steps, and then by b, is turning by a + b."""
    if not isinstance(inside, bool):
        raise expected("inside", "True or False", repr(inside))
    if rotary is None:
        return
    if not isinstance(rotary, Rotary):
        must = "the `Rotary` that turned the keys, or None"
        raise expected("rotary", must, type(rotary).__name__)
    one = torch.ones(1, dtype=torch.int64, device="cpu")
    near, far = rotary.angles(one), rotary.angles(2**20 * one)
    if not torch.allclose(2**20 * near, far):
        raise expected("rotary", "angles that grow evenly with the position", rotary)


def window_and_sinks(size: int, sinks: int) -> Callable[[Tensor, Tensor], Tensor]:
    """A mask: the `size` keys that end at the query, and those at the first positions.

    A query sees its own key, the size - 1 before it, and the keys at positions below
    `sinks` that are not later than it is. ValueError for a size below 1,
    and for sinks below 0.
    """
    (size,) = check_sizes(size=size)
    (sinks,) = check_counts(sinks=sinks)
    return partial(_within_or_first, size=size, sinks=sinks)


def _within_or_first(
    query_positions: Tensor, key_positions: Tensor, *, size: int, sinks: int
) -> Tensor:
    seen = window(size)(query_positions, key_positions)
    first = key_positions.long().unsqueeze(-2) < sinks
    return seen | (first & causal(query_positions, key_positions))
