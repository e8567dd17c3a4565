"""A cache of keys and values

The keys and values of tokens that were read are kept, so that a new token needs
only its own; a text in pieces gives the same as the whole text, and the last tokens
can be taken back.

Written by `book/memory/kv_cache.ipynb`: read and change it there.
"""

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor

from attention.tools.checks import (
    check_positions,
    check_sizes,
    is_whole,
    own_number,
    readable,
)
from attention.tools.workbench import check_tensor, expected

__all__ = [
    "TOKEN_AXES",
    "KVCache",
    "check_piece",
    "check_rollback",
    "check_room",
    "frozen",
    "joined_positions",
]


def check_piece(
    keys: Tensor,
    values: Tensor,
    positions: Tensor,
    *,
    like: tuple[Tensor, Tensor] | None = None,
    last: Tensor | None = None,
) -> Tensor:
    """Positions in 64 bits; ValueError unless a cache may take these three.

    Keys and values are (*batch, num_kv_heads, new, width), each with a width of its
    own; positions are (new,) or (*batch, new). `like` are the keys and values that are
    held, of which there may be none: dtype, device, batch, heads and width must match
    theirs. `last` is the last position held, (1,) or (*batch, 1). Positions never go
    back (where they are `readable`): if all texts share one row, it starts after
    `last`; if each has its own, a position may also stay the same, as in padding.
    """
    check_tensor(keys=keys, values=values, positions=positions)
    for name, tensor in {"keys": keys, "values": values}.items():
        if tensor.ndim < 3 or not tensor.is_floating_point():
            raise expected(name, "floats (*batch, num_kv_heads, new, width)", tensor)
    if (values.shape[:-1], values.device) != (keys.shape[:-1], keys.device):
        must = f"shape {(*keys.shape[:-1], 'width')} on {keys.device}, like the keys"
        raise expected("values", must, values)
    one_head = keys.new_empty((*keys.shape[:-3], keys.shape[-2], 0))
    positions = check_positions(positions, one_head)
    if like is not None:
        _check_like("keys", keys, like[0])
        _check_like("values", values, like[1])
    if positions.numel() and readable(positions):
        _check_onward(positions, last)
    return positions


def _kind(tensor: Tensor) -> tuple:
    """What all keys, or values, of a cache have in common."""
    return tensor.dtype, tensor.device, tensor.shape[:-2], tensor.shape[-1]


def _check_like(name: str, tensor: Tensor, held: Tensor) -> None:
    if _kind(tensor) != _kind(held):
        shape = (*held.shape[:-2], "new", held.shape[-1])
        must = f"{held.dtype} {shape} on {held.device}, like those in the cache"
        raise expected(name, must, tensor)


def _check_onward(positions: Tensor, last: Tensor | None) -> None:
    if positions.shape[-1] > 1 and (positions.diff() < 0).any():
        must = "no position to be less than the one before"
        raise expected("positions", must, positions.tolist())
    if last is None:
        return
    first, ragged = positions[..., :1], max(positions.ndim, last.ndim) > 1
    if (first < last if ragged else first <= last).any():
        must = f"to go on after {last.squeeze(-1).tolist()}, the last in the cache"
        raise expected("positions", must, first.squeeze(-1).tolist())


def check_room(capacity: int | None, held: int, new: int) -> None:
    """ValueError if a cache for `capacity` tokens (None: any number) has no room."""
    if capacity is not None and held + new > capacity:
        must = f"at most {capacity=} tokens, those in the cache included"
        raise expected("keys", must, f"{new} beside {held}")


def check_rollback(length: int, held: int, oldest: int = 0) -> int:
    """The length, as Python's; ValueError unless a cache of `held` tokens can go back.

    `oldest` is the smallest length whose tokens are all still there.
    """
    if not is_whole(length) or not oldest <= length <= held:
        must = f"a whole number from {oldest} to {held}, those still held"
        raise expected("length", must, repr(length))
    return own_number(length)


class KVCache:
    """Keys and values of all tokens so far, in memory that is allocated ahead.

    With a `capacity` it is allocated once, for that many tokens, and a longer text is
    refused. Without one it grows by `block` tokens at a time. `extend` takes and gives
    what `Cache` promises; keys and values may differ in width. What it gives are views:
    after `truncate`, new tokens are written over those that were forgotten. While
    gradients are recorded, nothing is written in place: they are right, but each call
    copies everything: write texts within torch.no_grad() or torch.inference_mode().
    copy.copy gives a cache that goes its own way. An empty cache takes any kind of
    floats. ValueError for what does not fit (`check_piece`); the cache is then as it
    was.
    """

    def __init__(self, capacity: int | None = None, *, block: int = 256) -> None:
        (block,) = check_sizes(block=block)
        if capacity is not None:
            (capacity,) = check_sizes(capacity=capacity)
        self.capacity, self.block, self.length = capacity, block, 0
        self._memory: tuple[Tensor, ...] = ()  # for keys, values and positions
        self._room = 0  # how many tokens may be written to it in place

    @property
    def positions(self) -> Int[Tensor, "*rows length"]:
        """The positions of the tokens that are held."""
        if not self._memory:
            return torch.empty(0, dtype=torch.long)
        return self._memory[2].narrow(-1, 0, self.length)

    def extend(
        self,
        keys: Float[Tensor, "*batch num_kv_heads new key_dim"],
        values: Float[Tensor, "*batch num_kv_heads new value_dim"],
        positions: Integer[Tensor, "*rows new"],
    ) -> tuple[
        Float[Tensor, "*batch num_kv_heads held key_dim"],
        Float[Tensor, "*batch num_kv_heads held value_dim"],
        Int[Tensor, "*held_rows held"],
    ]:
        """Keys, values and positions of all tokens so far, these included."""
        like = last = None
        if self.length > 0:
            like, last = self._memory[:2], self.positions[..., -1:]
        positions = check_piece(keys, values, positions, like=like, last=last)
        check_room(self.capacity, self.length, keys.shape[-2])
        self._write((keys, values, positions))
        self.length += keys.shape[-2]
        return self._held()

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens; the memory stays."""
        length = check_rollback(length, self.length)
        self.length = length

    def _held(self) -> tuple[Tensor, ...]:
        """Keys, values and positions of the tokens so far, as views."""
        pairs = zip(self._memory, TOKEN_AXES, strict=True)
        return tuple(memory.narrow(axis, 0, self.length) for memory, axis in pairs)

    def _write(self, new: tuple[Tensor, ...]) -> None:
        end = self.length + new[0].shape[-2]
        if not torch.is_grad_enabled() and self._takes(new, end):
            for memory, piece, axis in zip(self._memory, new, TOKEN_AXES, strict=True):
                memory.narrow(axis, self.length, end - self.length).copy_(piece)
            return
        held = self._held() if self.length > 0 else ()
        if torch.is_grad_enabled():
            self._memory, self._room = _joined(held, new), 0
        else:
            room = self.capacity or max(1, -(-end // self.block)) * self.block
            self._memory = _with_room(_joined(held, new) if held else new, room)
            self._room = room

    def _takes(self, new: tuple[Tensor, ...], end: int) -> bool:
        """Whether tokens up to `end`, of this kind, can be written in place."""
        if not self._memory or end > self._room:
            return False
        if frozen(self._memory[0]):
            return False
        rows, own = self._memory[2].shape[:-1], new[2].shape[:-1]
        if self.length > 0:  # the kind was checked, but rows may have come
            return rows == own or torch.broadcast_shapes(rows, own) == rows
        pairs = zip(self._memory[:2], new[:2], strict=True)
        return rows == own and all(_kind(a) == _kind(b) for a, b in pairs)

    def __copy__(self) -> "KVCache":
        self._room = 0  # whoever writes next writes elsewhere
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        return twin

    def __deepcopy__(self, memo: dict) -> "KVCache":
        return self.__copy__()


TOKEN_AXES = (-2, -2, -1)  # the axis of tokens in keys, values and positions


def frozen(memory: Tensor) -> bool:
    """Whether it comes from inference mode, and must not be written to outside it.

    False while the step is traced into a graph, which cannot check.
    """
    if torch.compiler.is_compiling():
        return False
    return memory.is_inference() and not torch.is_inference_mode_enabled()


def joined_positions(*pieces: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
    """Positions (*rows, length), one after the other, in as many rows as any has."""
    rows = torch.broadcast_shapes(*(piece.shape[:-1] for piece in pieces))
    return torch.cat([piece.expand(*rows, -1) for piece in pieces], dim=-1)


def _joined(held: tuple[Tensor, ...], new: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """A copy of both, one after the other."""
    if not held:
        return tuple(piece.clone() for piece in new)
    keys, values = (torch.cat(pair, -2) for pair in zip(held[:2], new[:2], strict=True))
    return keys, values, joined_positions(held[2], new[2])


def _with_room(held: tuple[Tensor, ...], room: int) -> tuple[Tensor, ...]:
    """New memory for `room` tokens that begins with these."""
    memory = []
    for tensor, axis in zip(held, TOKEN_AXES, strict=True):
        shape = list(tensor.shape)
        shape[axis] = room
        memory.append(tensor.new_empty(shape))
        memory[-1].narrow(axis, 0, tensor.shape[axis]).copy_(tensor)
    return tuple(memory)
