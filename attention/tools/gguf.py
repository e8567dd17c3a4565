"""The file of a model

How the weights of a published model lie in a GGUF file, and how they are read out
of it, whatever somebody has put there.

Written by `book/tools/gguf.ipynb`: read and change it there.
"""

import os
import struct
from collections.abc import Callable, Iterator, Mapping
from io import BytesIO
from math import prod
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from attention.tools.workbench import expected

__all__ = ["StoredTensors", "read_gguf"]


_NUMBERS = dict(zip((*range(8), 10, 11, 12), "BbHhIif?Qqd", strict=True))
_TEXT, _LIST = 8, 9
_HEAD_BYTES = 2**24  # 16 MiB: nine times the head of a model with 49,152 pieces


class _Head:
    """Takes numbers and text from the first bytes of a file, and none beyond them."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def need(self, count: int) -> None:
        left = len(self.data) - self.at
        if count > left:
            must = f"{count} more bytes after byte {self.at} of its head"
            raise expected("file", must, left)

    def numbers(self, code: str, count: int) -> list:
        size = count * struct.calcsize(f"<{code}")
        self.need(size)
        self.at += size
        return [*struct.unpack_from(f"<{count}{code}", self.data, self.at - size)]

    def number(self, code: str) -> int | float | bool:
        return self.numbers(code, 1)[0]

    def text(self) -> str:
        count = self.number("Q")
        self.need(count)
        self.at += count
        try:
            return self.data[self.at - count : self.at].decode()
        except UnicodeDecodeError:
            must = f"text in UTF-8 before byte {self.at}"
            raise expected("file", must, "other bytes") from None

    def value(self, kind: int, depth: int = 0):
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        if kind == _TEXT:
            return self.text()
        if kind != _LIST or depth == 3:
            must = f"a kind of value from 0 to 12, lists at most 3 deep, at {self.at}"
            raise expected("file", must, kind)
        kind, count = self.number("I"), self.number("Q")
        if kind in _NUMBERS:
            return self.numbers(_NUMBERS[kind], count)
        self.need(8 * count)  # each has at least its length
        return [self.value(kind, depth + 1) for _ in range(count)]


def _floats(kind: str) -> Callable[[Tensor], Tensor]:
    return lambda rows: rows.view(getattr(torch, kind)).float()


def _q4_1(rows: Tensor) -> Tensor:
    """32 numbers in 20 bytes: a step, the least, and twice 16 codes of 4 bits."""
    step, least = rows[:, :4].view(torch.float16).float().split(1, dim=1)
    codes, numbers = rows[:, 4:], step.new_empty(len(rows), 32)
    numbers[:, :16], numbers[:, 16:] = codes & 15, codes >> 4
    return numbers.mul_(step).add_(least)


def _q8_0(rows: Tensor) -> Tensor:
    """32 numbers in 34 bytes: a step, and codes from -128 to 127."""
    step = rows[:, :2].view(torch.float16).float()
    return rows[:, 2:].view(torch.int8).float().mul_(step)


_KINDS_OF_BLOCKS = {  # numbers and bytes in a block, and what makes it floats
    0: (1, 4, _floats("float32")),
    1: (1, 2, _floats("float16")),
    3: (32, 20, _q4_1),
    8: (32, 34, _q8_0),
}


class StoredTensors(Mapping):
    """Tensors by name, each read from its file, and made floats, when it is asked for.

    `shapes` gives their shapes without reading them. ValueError if the file has become
    shorter since.
    """

    def __init__(self, file: Path | bytes, entries: dict[str, tuple]) -> None:
        self._file, self._entries = file, entries

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: shape for name, (shape, *_) in self._entries.items()}

    def __getitem__(self, name: str) -> Float[Tensor, "..."]:
        shape, kind, start = self._entries[name]
        numbers, size, floats = _KINDS_OF_BLOCKS[kind]
        data = bytearray(prod(shape) // numbers * size)
        with _opened(self._file) as file:
            file.seek(start)
            if file.readinto(data) != len(data):
                raise expected("file", f"all of {name!r}", "an end within it")
        rows = torch.frombuffer(data, dtype=torch.uint8).view(-1, size)
        return floats(rows).reshape(shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def _opened(file: Path | bytes):
    return BytesIO(file) if isinstance(file, bytes) else file.open("rb")


def read_gguf(file: str | Path | bytes) -> tuple[dict, StoredTensors]:
    """Metadata and tensors of a GGUF file, at a path or as bytes.

    Tensors may be F32, F16, Q4_1 or Q8_0, and are read when they are asked for. All
    counts, lengths and places are checked: ValueError for a file that breaks the rules.
    """
    file = file if isinstance(file, bytes) else Path(file)
    with _opened(file) as opened:
        head = _Head(opened.read(_HEAD_BYTES))
        size = opened.seek(0, os.SEEK_END)
    if head.data[:4] != b"GGUF":
        raise expected("file", "to begin with GGUF", head.data[:4])
    head.at = 4
    if (version := head.number("I")) not in (2, 3):
        raise expected("file", "version 2 or 3 of GGUF", version)
    num_tensors, num_values = head.numbers("Q", 2)
    metadata, entries = {}, {}
    for _ in range(num_values):
        name = head.text()
        if name in metadata:
            raise expected("file", "no name of a value twice", repr(name[:64]))
        metadata[name] = head.value(head.number("I"))
    for _ in range(num_tensors):
        name = head.text()
        if name in entries or len(name) > 64:
            must = "names of tensors of at most 64 letters, and none twice"
            raise expected("file", must, repr(name[:65]))
        entries[name] = _entry(head, name)
    return metadata, StoredTensors(file, _placed(metadata, entries, head.at, size))


def _entry(head: _Head, name: str) -> tuple[tuple[int, ...], int, int]:
    """Shape, kind and offset of a tensor."""
    axes = head.number("I")
    if not 1 <= axes <= 4:
        raise expected(f"tensor {name!r}", "1 to 4 axes", axes)
    shape = tuple(reversed(head.numbers("Q", axes)))
    kind, offset = head.number("I"), head.number("Q")
    if kind not in _KINDS_OF_BLOCKS:
        must = "a kind of 0 (F32), 1 (F16), 3 (Q4_1) or 8 (Q8_0)"
        raise expected(f"tensor {name!r}", must, kind)
    in_block = _KINDS_OF_BLOCKS[kind][0]
    if 0 in shape or shape[-1] % in_block:
        must = f"axes of at least 1, the last a multiple of {in_block}"
        raise expected(f"tensor {name!r}", must, shape)
    return shape, kind, offset


def _placed(metadata: dict, entries: dict, end: int, size: int) -> dict[str, tuple]:
    """The entries with places in the file for offsets; ValueError beyond its end."""
    step = metadata.get("general.alignment", 32)
    if type(step) is not int or not 1 <= step <= 2**16 or step & (step - 1):
        must = "a power of two up to 65536"
        raise expected("general.alignment", must, repr(step)[:40])
    begin, placed = -(-end // step) * step, {}
    for name, (shape, kind, offset) in entries.items():
        numbers, in_bytes, _ = _KINDS_OF_BLOCKS[kind]
        last = begin + offset + prod(shape) // numbers * in_bytes
        if offset % step or last > size:
            must = f"a multiple of {step} for its place, and an end within {size} bytes"
            raise expected(f"tensor {name!r}", must, f"{offset}, and {last}")
        placed[name] = shape, kind, begin + offset
    return placed
