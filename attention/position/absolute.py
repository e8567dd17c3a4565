"""A vector for each place

Sines and cosines of many wavelengths, or trained vectors, are added to the words
and say where each one stands.

Written by `book/position/absolute.ipynb`: read and change it there.
"""

import torch
from jaxtyping import Float, Integer
from torch import Tensor, nn

from attention.core.layer import positions_of
from attention.tools.checks import autocast_on, check_above, check_sizes, readable
from attention.tools.workbench import check_tensor, expected

__all__ = ["LearnedPositions", "sinusoidal"]


def sinusoidal(
    length: int,
    d: int,
    *,
    base: float = 10_000.0,
    device: torch.device | str | None = None,
) -> Float[Tensor, "length d"]:
    """A vector for each place from 0: sines and cosines in turn, in float32.

    Pair i turns by base^(-2i/d) radians with each place. For positions that are not 0,
    1, 2, … pick rows: sinusoidal(…)[positions]. Vaswani et al. 2017, section 3.5.
    ValueError unless d is even and the base above 0.
    """
    length, d = check_sizes(length=length, d=d)
    if d % 2:
        raise expected("d", "an even number, a sine and a cosine for each pair", d)
    base = check_above("base", 0, base)
    if isinstance(base, Tensor) and base.numel() != 1:
        raise expected("base", "one number", base)
    device = torch.empty(0).device if device is None else device
    kind = {"dtype": torch.float64, "device": getattr(base, "device", "cpu")}
    speeds = base ** -(torch.arange(0, d, 2, **kind) / d)
    angles = torch.arange(length, **kind).unsqueeze(1) * speeds
    table = torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)
    return table.to(device, torch.float32)


class LearnedPositions(nn.Module):
    """Adds a trained vector to each token of (..., length, d), by its position.

    Positions count from 0, unless they are given, (length,) or (*batch, length).
    ValueError for one that the table of `context_length` rows does not hold, where its
    value can be looked at (see `readable`). Companion, section 2.8.
    """

    def __init__(self, context_length: int, d: int) -> None:
        super().__init__()
        context_length, d = check_sizes(context_length=context_length, d=d)
        self.table = nn.Embedding(context_length, d)

    def forward(
        self,
        x: Float[Tensor, "*batch length d"],
        positions: Integer[Tensor, "..."] | None = None,
    ) -> Float[Tensor, "*batch length d"]:
        """Each token, and the vector of its position added."""
        _check_tokens(x, self.table, positions)
        positions = positions_of(x, positions)
        _check_rows(positions, self.table)
        return x + self.table(positions)


def _check_tokens(x: Tensor, table: nn.Embedding, positions: Tensor | None) -> None:
    check_tensor(x=x)
    rows, d = table.weight.shape
    if x.ndim < 2 or x.shape[-1] != d or not x.is_floating_point():
        raise expected("x", f"floats (..., length, {d=})", x)
    if x.device != table.weight.device:
        raise expected("x", f"floats on {table.weight.device}, like the table", x)
    if x.dtype != table.weight.dtype and not autocast_on(x):
        raise expected("x", f"{table.weight.dtype}, like the table", x)
    if positions is None and x.shape[-2] > rows:
        must = f"a length of at most context_length={rows}"
        raise expected("x", must, f"length {x.shape[-2]}")


def _check_rows(positions: Tensor, table: nn.Embedding) -> None:
    if not positions.numel() or not readable(positions):
        return
    last, rows = positions.max().item(), table.num_embeddings
    if last >= rows:
        raise expected("positions", f"less than context_length={rows}", last)
