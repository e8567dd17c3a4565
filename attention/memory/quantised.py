"""A cache of few bits

A cache that holds keys and values as whole numbers of 8, 4 or 2 bits, with a step
and an offset for each group of them, and that says how far each may be off.

Written by `book/memory/quantised.ipynb`: read and change it there.
"""

from copy import copy
from itertools import accumulate

import torch
from jaxtyping import Float, Int, Integer, UInt8
from torch import Tensor

from attention.memory.kv_cache import check_piece, check_rollback, joined_positions
from attention.tools.checks import check_counts, check_sizes, has_numbers, precise
from attention.tools.workbench import check_tensor, expected

__all__ = ["QuantizedCache", "check_bits", "check_numbers", "dequantize", "quantize"]


def quantize(
    numbers: Float[Tensor, "..."], bits: int, dim: int = -1, *, symmetric: bool = False
) -> tuple[UInt8[Tensor, "..."], Float[Tensor, "..."], Float[Tensor, "..."]]:
    """Codes, step and offset: each number is about offset + step * code.

    All numbers along `dim` share a step. Codes go from 0 to 2**bits - 1; step and
    offset have the dtype of the numbers. No number is off by more than half a step,
    apart from the rounding of its dtype. `symmetric` puts zero on a mark, at the price
    of one code: the offset is -(2 ** (bits - 1) - 1) steps, exactly, so the step has
    few digits, and may be twice as wide in 16 bits. (Only where float16 ends, from
    65,024 on, is there no such offset.) ValueError for bits other than 8, 4 and 2, and
    for numbers that are not finite.
    """
    bits = check_bits(bits)
    check_numbers(dim, numbers=numbers)
    exact, levels = numbers.to(precise(numbers)), 2**bits - 1
    lowest, highest = (
        find(exact, dim, keepdim=True) for find in (torch.amin, torch.amax)
    )
    if symmetric:
        highest = torch.maximum(-lowest, highest)
        lowest, levels = -highest, levels - 1
    info, least = torch.finfo(numbers.dtype), torch.finfo(torch.float32).tiny
    step = ((highest - lowest) / levels).clamp(min=least)  # less may be flushed to 0
    step = step * (1 + info.eps) + info.tiny * info.eps  # so that none is rounded down
    if symmetric:  # few digits, so that a multiple of the step is not rounded
        digits, fine = torch.frexp(step.detach())[0], 2 ** (2 - bits) / info.eps
        step = (digits * fine).ceil() / fine * (step / digits)
    step = step.clamp(max=info.max).to(numbers.dtype)
    offset = lowest.to(numbers.dtype)
    if symmetric:
        offset = -(levels // 2 * step).clamp(max=info.max)
    codes = ((exact - offset) / step).round().clamp(0, 2**bits - 1)
    return codes.to(torch.uint8), step, offset


def dequantize(
    codes: UInt8[Tensor, "..."],
    step: Float[Tensor, "..."],
    offset: Float[Tensor, "..."],
) -> Float[Tensor, "..."]:
    """The numbers that codes stand for, in the dtype of their step."""
    wide, most = precise(step), torch.finfo(step.dtype).max
    numbers = offset.to(wide) + step.to(wide) * codes
    return numbers.clamp(-most, most).to(step.dtype)  # the last mark may lie beyond


def check_bits(bits: int) -> int:
    """How many; ValueError unless codes may have that many bits."""
    if isinstance(bits, bool) or bits not in (8, 4, 2):
        raise expected("bits", "8, 4 or 2", repr(bits))
    return int(bits)


def check_numbers(dim: int = -1, **tensors: Tensor) -> None:
    """ValueError unless these can share a step along `dim`: some floats, all finite.

    A range must be a number, too: in size they may be a quarter of what their dtype
    holds, or float32 for 16 bits.
    """
    check_tensor(**tensors)
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not -tensor.ndim <= dim < tensor.ndim:
            raise expected(name, f"floats with an axis {dim}", tensor)
        if tensor.itemsize < 2:
            raise expected(name, "floats of 16 bits or more", tensor)
        if tensor.shape[dim] == 0:
            raise expected(name, f"at least one number along axis {dim}", tensor)
        most = torch.finfo(precise(tensor)).max / 4
        fits = tensor.detach().to(precise(tensor)).abs() <= most
        if has_numbers(fits) and not fits.all():
            must = f"finite numbers, of at most {most:.0e} in size"
            raise expected(name, must, tensor.detach()[~fits][0].item())


def _pack(codes: Tensor, bits: int) -> Tensor:
    """Bytes that hold 8 // bits codes each, of neighbours along axis -2."""
    lanes = codes.unflatten(-2, (-1, 8 // bits))
    return (lanes << _shifts(bits, codes)).sum(dim=-2, dtype=torch.uint8)


def _unpack(packed: Tensor, bits: int) -> Tensor:
    """The codes that `_pack` was given."""
    codes = packed.unsqueeze(-2) >> _shifts(bits, packed)
    return (codes & 2**bits - 1).flatten(-3, -2)


def _shifts(bits: int, like: Tensor) -> Tensor:
    return torch.arange(0, 8, bits, dtype=torch.uint8, device=like.device)[:, None]


def _coded(numbers: Tensor, group: int, bits: int, dim: int) -> tuple[Tensor, ...]:
    """Packed codes, steps and offsets of (*batch, groups * group, width)."""
    groups = numbers.detach().unflatten(-2, (-1, group))
    codes, step, offset = quantize(groups, bits, dim)
    return _pack(codes, bits), step, offset


def _tokens(groups: Tensor, counts: tuple[int, ...]) -> Tensor:
    """The first `counts` tokens of each of (*batch, groups, group, width), in a row."""
    group, tokens = groups.shape[-2], groups.flatten(-3, -2)
    if sum(counts) == tokens.shape[-2]:
        return tokens
    here = {"device": "cpu"}  # where their number is known, whatever the tokens are on
    kept = torch.arange(group, **here) < torch.tensor(counts, **here)[:, None]
    places = kept.flatten().nonzero().squeeze(-1)
    return tokens[..., places.to(tokens.device), :]


class _Read(torch.autograd.Function):
    """Numbers read from codes. What they came from would need a gradient."""

    @staticmethod
    def forward(numbers, source):
        return numbers.view_as(numbers)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, _):
        must = "no gradient through codes, which have none"
        instead = "write within torch.no_grad(), or train without a cache"
        raise RuntimeError(f"QuantizedCache: expected {must}, got backward; {instead}")


class QuantizedCache:
    """Keys and values as codes of `bits` bits: keys by channel, values by token.

    Whole groups of `group` tokens are codes, packed into bytes, with a step and an
    offset for each channel of the keys and each token of the values (KIVI, Liu et al.
    2024). The tokens after them stay as they came, at least the last `residual` ones,
    unless `truncate` left fewer. `extend` takes and gives what `Cache` promises, in the
    dtype that came in; a piece sees its own tokens exactly. What is held after it does
    not depend on how a text was cut, and no number is ever off by more than
    `error_bounds` says, half a step of its group: `truncate` cuts a group short and
    leaves its codes as they are. Back where the last piece began, everything is as it
    was there. `nbytes` counts all that is held.
    ValueError for what does not fit (`check_piece`) and for numbers that are not
    finite; the cache is then as it was. `backward` refuses a gradient through codes.
    """

    def __init__(self, bits: int, *, group: int = 32, residual: int = 0) -> None:
        bits = check_bits(bits)
        (group,) = check_sizes(group=group)
        if group * bits % 8:
            must = f"a multiple of {8 // bits}, to fill whole bytes with {bits=}"
            raise expected("group", must, group)
        (residual,) = check_counts(residual=residual)
        self.bits, self.group, self.residual = bits, group, residual
        self._clear()

    def _clear(self) -> None:
        self.positions: Int[Tensor, "*rows held"] = torch.empty(0, dtype=torch.long)
        self._counts: tuple[int, ...] = ()  # how many tokens of each group are held
        self._groups: tuple[tuple[Tensor, ...], ...] = ()  # of keys, and of values
        self._rest: tuple[Tensor, ...] = ()  # keys and values
        self._before: tuple = ((), ())  # counts and rest where the last piece began
        self._source: Tensor | None = None  # what codes would have a gradient for

    @property
    def length(self) -> int:
        """How many tokens are held."""
        return self.positions.shape[-1]

    @property
    def nbytes(self) -> int:
        """Bytes of all that is held: codes, steps, offsets, the rest, positions."""
        parts = [*sum(self._groups, ()), *self._rest, *self._before[1], self.positions]
        return sum(part.nbytes for part in parts)

    def extend(
        self,
        keys: Float[Tensor, "*batch num_kv_heads new key_dim"],
        values: Float[Tensor, "*batch num_kv_heads new value_dim"],
        positions: Integer[Tensor, "*rows new"],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Keys, values and positions of all tokens so far, these included."""
        like, last = None, None
        if self.length > 0:
            like, last = self._rest, self.positions[..., -1:]
        positions = check_piece(keys, values, positions, like=like, last=last)
        check_numbers(keys=keys, values=values)
        rest = keys, values
        if self.length > 0:
            rest = _joined(self._rest, rest)
            positions = joined_positions(self.positions, positions)
        held = _joined(self._read(), rest) if self._groups else _copied(rest)
        self._keep(rest)
        self.positions = positions.clone()
        return *held, positions.clone()

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        length = check_rollback(length, self.length)
        if length == 0:
            return self._clear()
        counts, rest = self._before
        if not rest or length > sum(counts) + rest[0].shape[-2]:
            counts, rest = self._counts, self._rest
        left = max(0, length - sum(counts))
        starts = accumulate(counts, initial=0)
        pairs = zip(starts, counts, strict=False)
        left_in = (min(length - start, count) for start, count in pairs)
        self._counts = tuple(count for count in left_in if count > 0)
        self._groups = _first(self._groups, len(self._counts))
        self._rest = _copied(each[..., :left, :] for each in rest)
        self._before = ((), ())
        self.positions = self.positions[..., :length].clone()

    def error_bounds(self) -> tuple[Tensor, Tensor]:
        """How far each key and each value that is held may be off from what came.

        Half a step of its group and the rounding of its dtype; 0 for the rest.
        """
        exact = tuple(torch.zeros_like(t, dtype=precise(t)) for t in self._rest)
        if not self._groups:
            return exact
        bounds = [_bound(*parts, self.bits) for parts in self._groups]
        return _joined([_tokens(bound, self._counts) for bound in bounds], exact)

    def __deepcopy__(self, memo: dict) -> "QuantizedCache":
        return copy(self)  # nothing that is held is ever written over

    def _keep(self, rest: tuple[Tensor, ...]) -> None:
        """Hold `rest`, and whole groups of it as codes."""
        count = max(0, rest[0].shape[-2] - self.residual) // self.group
        end, self._before = count * self.group, ((), ())
        if count > 0:
            old = [each[..., :end, :] for each in rest]
            new = [
                _coded(each, self.group, self.bits, dim)
                for each, dim in zip(old, (-2, -1), strict=True)
            ]
            if self._groups:
                pairs = zip(self._groups, new, strict=True)
                new = [_joined(*pair, dim=-3) for pair in pairs]
            self._before = self._counts, self._rest
            self._groups = tuple(new)
            self._counts += count * (self.group,)
            if any(each.requires_grad for each in old):
                earlier = 0 if self._source is None else self._source
                self._source = earlier + sum(each.sum() for each in old)
        self._rest = _copied(each[..., end:, :] for each in rest)

    def _read(self) -> list[Tensor]:
        """The keys and values that are held as codes."""
        read = [
            _tokens(dequantize(_unpack(packed, self.bits), *ruler), self._counts)
            for packed, *ruler in self._groups
        ]
        if self._source is None:
            return read
        return [_Read.apply(each, self._source) for each in read]


def _joined(first, second, dim: int = -2) -> tuple[Tensor, ...]:
    """Tensors of one list, each followed by its partner."""
    pairs = zip(first, second, strict=True)
    return tuple(torch.cat(pair, dim=dim) for pair in pairs)


def _copied(tensors) -> tuple[Tensor, ...]:
    """The same in memory of their own, and no larger."""
    return tuple(each.clone() for each in tensors)


def _first(groups: tuple, count: int) -> tuple:
    """The first `count` groups of keys and of values."""
    if count == 0 or count == groups[0][0].shape[-3]:
        return groups if count else ()
    cut = ([part[..., :count, :, :] for part in kind] for kind in groups)
    return tuple(_copied(kind) for kind in cut)


def _bound(packed: Tensor, step: Tensor, offset: Tensor, bits: int) -> Tensor:
    """Half a step and the rounding of the dtype, for each code."""
    wide = precise(step)
    largest = offset.abs().to(wide) + 2**bits * step.to(wide)
    bound = step.to(wide) / 2 + torch.finfo(step.dtype).eps * largest
    group, width = packed.shape[-2] * 8 // bits, packed.shape[-1]
    return bound.expand(*bound.shape[:-2], group, width)
