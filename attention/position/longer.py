"""Longer than trained

A model that was trained on short texts reads longer ones when its rotary angles are
scaled: all alike, by speed, or along a ramp, with one factor for the scores.

Written by `book/position/longer.ipynb`: read and change it there.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int, Integer
from torch import Tensor, nn

from attention.position.rotary import (
    check_factor,
    check_placed,
    check_rotary,
    rotary_frequencies,
    rotate,
)
from attention.tools.checks import (
    are_whole,
    check_sizes,
    is_number,
    own_number,
    own_numbers,
    surely,
)
from attention.tools.workbench import check_tensor, expected

__all__ = [
    "DynamicNTKScaling",
    "LinearScaling",
    "Llama3Scaling",
    "MultimodalRotary",
    "NTKScaling",
    "YaRN",
    "check_turns",
    "ntk_base",
    "picture_places",
    "yarn_factor",
]


@dataclass(frozen=True)
class LinearScaling:
    """A scaling: positions / factor (ValueError below 1). Chen et al. 2023b, eq. 4."""

    factor: float | int

    def __post_init__(self) -> None:
        own_numbers(self)
        check_factor(self.factor)

    def __call__(self, rotary_dim: int, base: float | int, positions: Tensor) -> Tensor:
        plain = rotary_frequencies(rotary_dim, base=base, positions=positions)
        return plain / self.factor


def ntk_base(
    base: float | int, factor: float | int | Tensor, rotary_dim: int
) -> float | Tensor:
    """The base that leaves the fastest pair, and slows the slowest by `factor`.

    ValueError for fewer than two pairs, and for a factor below 1. bloc97 2023.
    """
    rotary_dim, base = check_rotary(rotary_dim, base)
    if rotary_dim < 4:
        raise expected("rotary_dim", "at least 4: a fastest and a slowest", rotary_dim)
    if not isinstance(factor, Tensor):
        check_factor(factor)
        factor = own_number(factor)
    elif factor.is_complex() or surely(~(factor >= 1).all()):
        raise expected("factor", "a number of at least 1", factor.tolist())
    return base * factor ** (rotary_dim / (rotary_dim - 2))


@dataclass(frozen=True)
class NTKScaling:
    """A scaling: the base grows, so that only slow pairs are stretched. bloc97 2023.

    ValueError for a factor below 1.
    """

    factor: float | int

    def __post_init__(self) -> None:
        own_numbers(self)
        check_factor(self.factor)

    def __call__(self, rotary_dim: int, base: float | int, positions: Tensor) -> Tensor:
        base = ntk_base(base, self.factor, rotary_dim)
        return rotary_frequencies(rotary_dim, base=base, positions=positions)


def yarn_factor(factor: float | int, mscale: float | int = 1.0) -> float:
    """By how much queries and keys are multiplied: 0.1 mscale ln(factor) + 1.

    The scores get its square. Peng et al. 2024, section 3.4; mscale is DeepSeek-V2's.
    ValueError for a factor below 1, and an mscale that is no number.
    """
    check_factor(factor)
    if not is_number(mscale):
        raise expected("mscale", "a number", mscale)
    return 0.1 * own_number(mscale) * math.log(factor) + 1


@dataclass(frozen=True)
class YaRN:
    """A scaling: fast pairs stay, slow ones are interpolated, a ramp lies between.

    In the length of training, `original_length`, a fast pair turns at least `fast`
    times, a slow one at most `slow` times. The ramp's ends are whole pairs, unless
    truncate=False (gpt-oss). `attention_factor` is `yarn_factor(factor)` if it is not
    given; with DeepSeek's mscale and mscale_all_dim, it is the ratio of both factors,
    and the layer multiplies its scale by yarn_factor(factor, mscale_all_dim) ** 2
    itself. Peng et al. 2024, sections 3.2 and 3.4; the ramp is that of their code.
    ValueError unless factor >= 1, original_length >= 1, 0 < slow < fast and
    attention_factor > 0.
    """

    factor: float | int
    original_length: int
    fast: float | int = 32.0
    slow: float | int = 1.0
    attention_factor: float | int | None = None
    mscale: float | int | None = None
    mscale_all_dim: float | int | None = None
    truncate: bool = True
    _made: float | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        own_numbers(self)
        check_factor(self.factor)
        check_sizes(original_length=self.original_length)
        check_turns("slow", self.slow, "fast", self.fast)
        factor = None
        if self.attention_factor in (None, self._made):  # `replace` copies what we made
            factor = yarn_factor(self.factor)
            if self.mscale and self.mscale_all_dim:
                factor = yarn_factor(self.factor, self.mscale)
                factor /= yarn_factor(self.factor, self.mscale_all_dim)
            object.__setattr__(self, "attention_factor", factor)
        object.__setattr__(self, "_made", factor)
        given = self.attention_factor
        if not is_number(given) or given <= 0:
            raise expected("attention_factor", "a number above 0", given)

    def ramp(
        self, rotary_dim: int, base: float | int
    ) -> tuple[float | int, float | int]:
        """The last pair that stays as it is, and the first that is interpolated."""
        pair_of = rotary_dim / (2 * math.log(base))
        ends = [
            pair_of * math.log(self.original_length / (2 * math.pi * turns))
            for turns in (self.fast, self.slow)
        ]
        if self.truncate:
            ends = [math.floor(ends[0]), math.ceil(ends[1])]
        first, last = max(ends[0], 0), min(ends[1], rotary_dim - 1)
        if first > last:  # no pair is on it: all are fast, or all are slow
            first = last = sum(ends) / 2
        return first, last

    def __call__(self, rotary_dim: int, base: float | int, positions: Tensor) -> Tensor:
        plain = rotary_frequencies(rotary_dim, base=base, positions=positions)
        first, last = self.ramp(rotary_dim, base)
        pairs = torch.arange(len(plain), device=plain.device, dtype=plain.dtype)
        slow = ((pairs - first) / (last - first or 0.001)).clamp(0, 1)
        return plain * (1 - slow) + plain / self.factor * slow


def check_turns(few: str, low: float | int, many: str, high: float | int) -> None:
    """ValueError unless one number of turns is above the other, and both above 0."""
    if not all(map(is_number, (low, high))) or not 0 < low < high:
        raise expected(f"{few} and {many}", f"0 < {few} < {many}", f"{low} and {high}")


@dataclass(frozen=True)
class Llama3Scaling:
    """A scaling: like YaRN's ramp, in turns instead of pairs, without its factor.

    A pair of `high` or more turns in `original_length` stays, one of `low` or fewer is
    interpolated. Llama Team 2024, and the released code. ValueError as in `YaRN`.
    """

    factor: float | int
    original_length: int
    low: float | int = 1.0
    high: float | int = 4.0

    def __post_init__(self) -> None:
        own_numbers(self)
        check_factor(self.factor)
        check_sizes(original_length=self.original_length)
        check_turns("low", self.low, "high", self.high)

    def __call__(self, rotary_dim: int, base: float | int, positions: Tensor) -> Tensor:
        plain = rotary_frequencies(rotary_dim, base=base, positions=positions)
        turns = self.original_length * plain / (2 * math.pi)
        fast = ((turns - self.low) / (self.high - self.low)).clamp(0, 1)
        return plain * fast + plain / self.factor * (1 - fast)


@dataclass(frozen=True)
class DynamicNTKScaling:
    """A scaling: like `NTKScaling`, more so the further a text goes beyond training.

    The largest position of a row says how long its text is, and each row has a base of
    its own. Keys that were cached when the text was shorter are not turned again: hand
    in the whole text each time, or fix the factor with `NTKScaling`. emozilla 2023.
    ValueError for a factor or an original_length below 1.
    """

    factor: float | int
    original_length: int

    def __post_init__(self) -> None:
        own_numbers(self)
        check_factor(self.factor)
        check_sizes(original_length=self.original_length)

    def __call__(self, rotary_dim: int, base: float | int, positions: Tensor) -> Tensor:
        plain = rotary_frequencies(rotary_dim, base=base, positions=positions)
        if positions.shape[-1] == 0:
            return plain
        length = positions.long().amax(dim=-1, keepdim=True).to(plain) + 1
        longer = (length / self.original_length).clamp(min=1)
        base = ntk_base(base, 1 + self.factor * (longer - 1), rotary_dim)
        return rotary_frequencies(rotary_dim, base=base, positions=positions)


def picture_places(*parts: int | tuple[int, int, int]) -> Int[Tensor, "length 3"]:
    """Time, row and column of each token of a text with pictures in it.

    A whole number is that many tokens of text, whose three coordinates are equal; a
    tuple (times, rows, columns) is a picture or film. What follows begins after the
    largest coordinate so far. ValueError for sizes below 1. Wang et al. 2024, 2.1.
    """
    places, start = [torch.empty(0, 3, dtype=torch.int64)], 0
    for part in parts:
        sizes = part if isinstance(part, tuple) else (part,)
        for size in sizes:
            check_sizes(part=size)
        if len(sizes) not in (1, 3):
            raise expected("part", "a length, or (times, rows, columns)", part)
        steps = [torch.arange(size) for size in sizes]
        grid = torch.cartesian_prod(*steps).view(-1, len(sizes)).expand(-1, 3)
        places.append(start + grid)
        start += max(sizes)
    return torch.cat(places)


class MultimodalRotary(nn.Module):
    """Rotary positions with several coordinates: fills the slot `process_heads`.

    `places` (tokens, axes) or (*batch, tokens, axes) holds the coordinates of the
    tokens at positions 0, 1, …; tokens after them are text. The first sections[0] pairs
    turn by the first coordinate, the next sections[1] by the second, and so on. Wang et
    al. 2024 (Qwen2-VL: M-RoPE), section 2.1. ValueError for what does not fit.
    """

    def __init__(
        self,
        head_dim: int,
        places: Integer[Tensor, "*batch tokens axes"],
        *,
        sections: Sequence[int],
        base: float | int = 10_000.0,
        interleaved: bool = False,
    ) -> None:
        super().__init__()
        head_dim, base = check_rotary(head_dim, base)
        check_tensor(places=places)
        named = {f"sections[{n}]": size for n, size in enumerate(sections)}
        sections = check_sizes(**named)
        if 2 * sum(sections) != head_dim:
            must = f"a sum of {head_dim // 2} pairs"
            raise expected("sections", must, tuple(sections))
        fits = places.ndim > 1 and places.shape[-1] == len(sections)
        if not are_whole(places) or not fits or not places.numel():
            must = f"whole numbers (..., at least one token, {len(sections)})"
            raise expected("places", must, places)
        self.head_dim, self.base, self.interleaved = head_dim, base, interleaved
        self.sections = tuple(sections)
        self.register_buffer("places", places.long(), persistent=False)

    def coordinates(self, positions: Integer[Tensor, "*rows length"]) -> Tensor:
        """Coordinates (..., length, axes) of the tokens at `positions`."""
        positions, count = positions.long(), self.places.shape[-2]
        known = positions.clamp(max=count - 1).unsqueeze(-1)
        rows = torch.broadcast_shapes(positions.shape[:-1], self.places.shape[:-2])
        places = self.places.expand(*rows, count, -1)
        known = known.expand(*rows, -1, places.shape[-1])
        after = places.flatten(-2).amax(dim=-1)[..., None, None]
        text = after + 1 + (positions - count).unsqueeze(-1)
        found = places.gather(-2, known)
        return torch.where(positions.unsqueeze(-1) < count, found, text)

    def forward(
        self,
        queries: Float[Tensor, "*batch length head_dim"],
        keys: Float[Tensor, "*groups length head_dim"],
        positions: Integer[Tensor, "*rows length"],
    ) -> tuple[Tensor, Tensor]:
        """Both, turned by the coordinates of the tokens at `positions`."""
        check_placed(queries, keys, positions, self.head_dim)
        plain = rotary_frequencies(self.head_dim, base=self.base, positions=positions)
        axes = torch.arange(len(self.sections), device=plain.device)
        axes = axes.repeat_interleave(torch.tensor(self.sections, device=plain.device))
        angles = self.coordinates(positions)[..., axes] * plain
        angles = angles.unsqueeze(-3) if angles.ndim > 2 else angles
        options = {"interleaved": self.interleaved}
        return rotate(queries, angles, **options), rotate(keys, angles, **options)
