"""Rotary positions

Each query and each key is turned by an angle that grows with its position, so that
their score depends on the distance between them and not on where they stand.

Written by `book/position/rotary.ipynb`: read and change it there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from attention.tools.checks import (
    check_above,
    check_pair,
    check_positions,
    check_returned,
    check_sizes,
    is_number,
    own_number,
    own_numbers,
    precise,
)
from attention.tools.workbench import check_tensor, expected

__all__ = [
    "ProcessHeads",
    "ProportionalScaling",
    "QKNorm",
    "Rotary",
    "Scaling",
    "check_factor",
    "check_placed",
    "check_rotary",
    "check_speeds",
    "check_turn",
    "convert_pairing",
    "normalised",
    "rotary_frequencies",
    "rotate",
]


@runtime_checkable
class Scaling(Protocol):
    """What gives `Rotary` frequencies other than the usual ones.

    Called with how many numbers turn, the base, and whole positions (..., length), it
    gives rotary_dim / 2 frequencies, in axes that broadcast to (..., rotary_dim / 2). A
    number `attention_factor`, if it has one, multiplies turned queries and keys.
    """

    def __call__(
        self, rotary_dim: int, base: float | int, positions: Tensor
    ) -> Tensor: ...


def rotary_frequencies(
    rotary_dim: int,
    *,
    base: float | int | Tensor = 10_000.0,
    scaling: Scaling | None = None,
    positions: Integer[Tensor, "..."] | None = None,
) -> Float[Tensor, "... half"]:
    """Radians that each pair of numbers turns at a step: base^(-2i / rotary_dim).

    They are float64 where that exists, on the device of `positions`. ValueError for
    an odd rotary_dim, and a base of at most 1. Su et al. 2024, section 3.2.2.
    """
    rotary_dim, base = check_rotary(rotary_dim, base)
    place = torch.zeros(1, dtype=torch.int64) if positions is None else positions
    if scaling is not None:
        return check_speeds(scaling(rotary_dim, base, place), rotary_dim)
    dtype = torch.float32 if place.device.type == "mps" else torch.float64
    even = torch.arange(0, rotary_dim, 2, dtype=dtype, device=place.device)
    return base ** (-even / rotary_dim)


def check_rotary(
    rotary_dim: int, base: float | int | Tensor = 10_000.0
) -> tuple[int, float | int | Tensor]:
    """Both, as Python's; ValueError unless pairs can be turned with this base."""
    (rotary_dim,) = check_sizes(rotary_dim=rotary_dim)
    if rotary_dim % 2:
        raise expected("rotary_dim", "an even number, since pairs turn", rotary_dim)
    return rotary_dim, check_above("base", 1, base)


def check_speeds(frequencies: Tensor, rotary_dim: int) -> Tensor:
    """What a scaling gave; ValueError unless it is one number for each pair."""
    check_returned(scaling=frequencies)
    if frequencies.shape[-1:] != (rotary_dim // 2,):
        raise expected("scaling", f"{rotary_dim // 2} frequencies", frequencies)
    return frequencies


def rotate(
    heads: Float[Tensor, "*batch length head_dim"],
    angles: Float[Tensor, "... half"],
    *,
    interleaved: bool = False,
    factor: float | int = 1.0,
) -> Float[Tensor, "*batch length head_dim"]:
    """Turn pairs of numbers by `angles`, (length, half) or what broadcasts to `heads`.

    The first 2 * half numbers of each head turn, in pairs (i, i + half) or, if
    interleaved, (2i, 2i + 1), and are multiplied by `factor`; the rest stay as they
    are. It computes in float32, or float64 for float64. Su et al. 2024, eq. 34.
    ValueError unless both are floats on one device, of shapes that fit.
    """
    check_turn(heads, angles)
    if not (is_number(factor) or isinstance(factor, Tensor)):
        raise expected("factor", "a number", factor)
    dtype, width = precise(heads), 2 * angles.shape[-1]
    cos, sin = ((factor * turn).to(dtype) for turn in (angles.cos(), angles.sin()))
    turning, rest = heads[..., :width], heads[..., width:]
    if interleaved:
        a, b = turning[..., 0::2], turning[..., 1::2]
        turned = torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)
    else:
        a, b = turning.chunk(2, dim=-1)
        turned = torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
    return torch.cat([turned.to(heads.dtype), rest], dim=-1)


def check_turn(heads: Tensor, angles: Tensor) -> None:
    """ValueError unless `angles` turn pairs of numbers of `heads`."""
    check_tensor(heads=heads, angles=angles)
    if heads.ndim < 2 or not heads.is_floating_point():
        raise expected("heads", "floats (..., length, head_dim)", heads)
    pairs = heads.shape[-1] // 2
    must = f"floats (..., length, at most {pairs}) on {heads.device}"
    if not angles.is_floating_point() or angles.device != heads.device:
        raise expected("angles", must, angles)
    if angles.ndim < 1 or not 1 <= angles.shape[-1] <= pairs:
        raise expected("angles", must, angles)
    room = (*heads.shape[:-1], angles.shape[-1])
    try:
        angles.expand(room)
    except RuntimeError:
        must = f"a shape that broadcasts to {room}"
        raise expected("angles", must, tuple(angles.shape)) from None


class Rotary(nn.Module):
    """Turn queries and keys by their positions: fills the slot `process_heads`.

    The first `rotary_dim` numbers of a head turn (all, if None), in pairs (i, i + half)
    or, if interleaved, (2i, 2i + 1); `scaling` changes how fast (see `Scaling`). There
    is no parameter and no buffer: one object may serve all layers, and a model in
    another dtype rounds no angle. ValueError for what does not fit. Su et al. 2024.
    """

    def __init__(
        self,
        head_dim: int,
        *,
        base: float | int = 10_000.0,
        interleaved: bool = False,
        rotary_dim: int | None = None,
        scaling: Scaling | None = None,
    ) -> None:
        super().__init__()
        rotary_dim = head_dim if rotary_dim is None else rotary_dim
        (head_dim,) = check_sizes(head_dim=head_dim)
        rotary_dim, base = check_rotary(rotary_dim, base)
        if rotary_dim > head_dim:
            raise expected("rotary_dim", f"at most {head_dim=}", rotary_dim)
        if scaling is not None and not callable(scaling):
            raise expected("scaling", "None, or a callable", scaling)
        self.head_dim, self.base, self.rotary_dim = head_dim, base, rotary_dim
        self.interleaved, self.scaling = interleaved, scaling

    def forward(
        self,
        queries: Float[Tensor, "*batch length head_dim"],
        keys: Float[Tensor, "*groups length head_dim"],
        positions: Integer[Tensor, "*rows length"],
    ) -> tuple[Tensor, Tensor]:
        """Both, turned; positions are (length,), or (*batch, length) for all heads."""
        check_placed(queries, keys, positions, self.head_dim)
        angles = self.angles(positions)
        options = {"interleaved": self.interleaved}
        options["factor"] = getattr(self.scaling, "attention_factor", 1.0)
        return rotate(queries, angles, **options), rotate(keys, angles, **options)

    def angles(
        self, positions: Integer[Tensor, "*rows length"]
    ) -> Float[Tensor, "..."]:
        """By how much each pair turns: (length, half), or (*rows, 1, length, half)."""
        options = {"base": self.base, "scaling": self.scaling, "positions": positions}
        frequencies = rotary_frequencies(self.rotary_dim, **options)
        angles = positions.unsqueeze(-1) * frequencies.unsqueeze(-2)
        return angles.unsqueeze(-3) if positions.ndim > 1 else angles

    def extra_repr(self) -> str:
        told = f"{self.head_dim}, base={self.base}, interleaved={self.interleaved}"
        return f"{told}, rotary_dim={self.rotary_dim}, scaling={self.scaling}"


def check_placed(
    queries: Tensor, keys: Tensor, positions: Tensor, head_dim: int
) -> None:
    """ValueError unless these are heads of tokens at `positions`."""
    check_tensor(queries=queries, keys=keys, positions=positions)
    for name, heads in {"queries": queries, "keys": keys}.items():
        fits = heads.ndim > 1 and heads.shape[-1] == head_dim
        if not fits or not heads.is_floating_point():
            raise expected(name, f"floats (..., length, {head_dim=})", heads)
        check_positions(positions, heads.select(-3, 0) if heads.ndim > 2 else heads)


def convert_pairing(
    rows: Float[Tensor, "width ..."],
    head_dim: int,
    *,
    interleaved: bool,
    rotary_dim: int | None = None,
) -> Float[Tensor, "width ..."]:
    """Rows of W_query or W_key, in the order that the other pairing needs.

    With interleaved=True, (i, i + half) becomes (2i, 2i + 1), with False the reverse,
    head by head; biases and weights of `QKNorm` likewise. ValueError for what does not
    fit.
    """
    check_tensor(rows=rows)
    rotary_dim = head_dim if rotary_dim is None else rotary_dim
    (head_dim,) = check_sizes(head_dim=head_dim)
    check_rotary(rotary_dim)
    if rotary_dim > head_dim:
        raise expected("rotary_dim", f"at most {head_dim=}", rotary_dim)
    if rows.ndim < 1 or rows.shape[0] % head_dim or not len(rows):
        must = f"a first axis that is a multiple of {head_dim=}"
        raise expected("rows", must, tuple(rows.shape))
    order = torch.arange(head_dim, device=rows.device)
    shape = (2, -1) if interleaved else (-1, 2)
    order[:rotary_dim] = order[:rotary_dim].view(shape).T.flatten()
    return rows.unflatten(0, (-1, head_dim))[:, order].flatten(0, 1)


@dataclass(frozen=True)
class ProportionalScaling:
    """A scaling: only the fastest pairs turn, a share of all, at their usual speed.

    All of the head is paired, and slow pairs stand still. Those that turn are slowed by
    `factor`, for longer texts. Gemma 4 has this kind, GPT-NeoX that of rotary_dim.
    ValueError for a share that is not in (0, 1], and a factor below 1.
    """

    share: float | int
    factor: float | int = 1.0

    def __post_init__(self) -> None:
        own_numbers(self)
        if not is_number(self.share) or not 0 < self.share <= 1:
            raise expected("share", "above 0 and at most 1", self.share)
        check_factor(self.factor)

    def __call__(self, rotary_dim: int, base: float | int, positions: Tensor) -> Tensor:
        frequencies = rotary_frequencies(rotary_dim, base=base, positions=positions)
        frequencies[int(self.share * rotary_dim // 2) :] = 0
        return frequencies / self.factor


def check_factor(factor: float | int) -> None:
    """ValueError unless frequencies may be divided by this number, 1 or more."""
    if not is_number(factor) or factor < 1:
        raise expected("factor", "a number of at least 1", factor)


def normalised(
    vectors: Float[Tensor, "*axes width"], weight: Float[Tensor, " width"], eps: float
) -> Float[Tensor, "*axes width"]:
    """Vectors with a mean square of 1, times `weight`; computed in float32 at least."""
    numbers = vectors.to(precise(vectors))
    mean = numbers.square().mean(dim=-1, keepdim=True)
    return (numbers * torch.rsqrt(mean + eps) * weight).to(vectors.dtype)


class QKNorm(nn.Module):
    """Bring the numbers of each query and key to a mean square of 1, head by head.

    Then each is multiplied by trained weights, head_dim for all queries' heads and as
    many for all keys'. Fills the slot `process_heads`; Henry et al. 2020 divide by the
    length instead, Qwen3 and Gemma 3 do this. ValueError for a head_dim
    below 1, an eps below 0, and heads or positions that do not fit.
    """

    def __init__(self, head_dim: int, *, eps: float = 1e-6) -> None:
        super().__init__()
        (head_dim,) = check_sizes(head_dim=head_dim)
        if not is_number(eps) or eps < 0:
            raise expected("eps", "a number of at least 0", eps)
        eps = own_number(eps)
        self.query_weight = nn.Parameter(torch.ones(head_dim))
        self.key_weight = nn.Parameter(torch.ones(head_dim))
        self.eps = eps

    def forward(
        self,
        queries: Float[Tensor, "*batch length head_dim"],
        keys: Float[Tensor, "*groups length head_dim"],
        positions: Integer[Tensor, "*rows length"],
    ) -> tuple[Tensor, Tensor]:
        """Both, normalised; positions do not matter. It computes in float32."""
        check_placed(queries, keys, positions, len(self.query_weight))
        queries = normalised(queries, self.query_weight, self.eps)
        return queries, normalised(keys, self.key_weight, self.eps)


class ProcessHeads(nn.Module):
    """Several steps in the slot `process_heads`, each given what the last one gave.

    ValueError for a step that cannot be called, or gives anything but two tensors.
    """

    def __init__(self, *steps: Callable[..., tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        for each in steps:
            if not callable(each):
                must = "functions (queries, keys, positions) -> queries, keys"
                raise expected("steps", must, each)
        self.steps = steps
        self.modules_of_steps = nn.ModuleList(
            each for each in steps if isinstance(each, nn.Module)
        )

    def forward(
        self, queries: Tensor, keys: Tensor, positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Queries and keys after all steps."""
        for place, each in enumerate(self.steps):
            made = each(queries, keys, positions)
            queries, keys = check_pair(f"steps[{place}]", made)
        return queries, keys
