"""What attention computes

Attention turns a table of scores into weights, and with them mixes the vectors of a
sentence, so that each token comes out knowing what stands around it.

Written by `book/idea/attention_map.ipynb`: read and change it there.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attention.idea.workbench import described

if TYPE_CHECKING:
    import matplotlib.figure

__all__ = ["describe", "show_weights"]


def _as_maps(weights, queries, keys, mask, signed) -> tuple[Tensor, Tensor]:
    """Weights and mask on the CPU, as heads x queries x keys, checked and rounded."""
    sides = (len(queries), len(keys))
    if weights.ndim not in (2, 3) or weights.shape[-2:] != sides or 0 in weights.shape:
        came = tuple(weights.shape)
        raise ValueError(f"weights must be (heads and) queries x keys {sides}, {came=}")
    maps = weights.detach().to("cpu", torch.float64).reshape(-1, *sides)
    maps = (1e4 * maps).round() / 1e4  # so that no colour hangs on the last bit
    low, high = maps.min().item(), maps.max().item()
    if not maps.isfinite().all() or not (signed or 0 <= low <= high <= 1):
        must = "values must be finite" if signed else "weights must lie from 0 to 1"
        raise ValueError(f"{must}, came {low=} and {high=}")
    if mask is None:
        mask = torch.ones(sides, dtype=torch.bool)
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be boolean (True may see), came {mask.dtype}")
    try:
        return maps, mask.cpu().expand(maps.shape)
    except RuntimeError:
        came, must = tuple(mask.shape), tuple(maps.shape)
        raise ValueError(f"mask must broadcast to {must}, {came=}") from None


def describe(
    weights: Float[Tensor, "*heads num_queries num_keys"],
    queries: Sequence[str],
    keys: Sequence[str],
    *,
    mask: Bool[Tensor, "..."] | None = None,
    signed: bool = False,
) -> str:
    """What a map shows, in words: where each query looks most.

    Takes what `show_weights` takes, and needs no matplotlib.
    """
    maps, mask = _as_maps(weights, queries, keys, mask, signed)
    size = f"{len(queries)} queries (rows) by {len(keys)} keys (columns)"
    words = [f"{'Scores' if signed else 'Attention map'}: {size}."]
    for head, table in enumerate(maps, start=1):
        title = f"Head {head}, strongest" if len(maps) > 1 else "Strongest"
        words.append(f"{title}: {_strongest(table, queries, keys)}.")
    if not mask.all():
        words.append("Hatched cells may not be seen.")
    return " ".join(words)


def _strongest(table: Tensor, queries: Sequence[str], keys: Sequence[str]) -> str:
    """The key with the largest value, by query, or once if queries are many."""
    best = table.abs().argmax(dim=-1).tolist()
    rows = range(len(queries))
    if len(queries) > 16:
        rows = [table.abs().amax(dim=-1).argmax().item()]
    looks = (f"{queries[i]} → {keys[best[i]]} {table[i, best[i]]:.2f}" for i in rows)
    return ", ".join(looks)


_INK, _COLD = "#5a62d8", "#b3541e"  # for values above and below zero


def _draw_map(axes, table, mask, limit: float) -> None:
    """Fill `axes` with one square for each weight; `limit` is drawn at full opacity."""
    from matplotlib.patches import Rectangle

    for i, row in enumerate(table.tolist()):
        for j, weight in enumerate(row):
            place = {"xy": (j + 0.03, i + 0.03), "width": 0.94, "height": 0.94}
            if not mask[i, j]:
                hatch = {"hatch": "///", "edgecolor": "#8a8f98", "linewidth": 0}
                axes.add_patch(Rectangle(**place, facecolor="none", **hatch))
                continue
            ink = _INK if weight >= 0 else _COLD
            strength = round(abs(weight) / limit, 4)
            axes.add_patch(Rectangle(**place, facecolor=ink, alpha=strength))
            if max(table.shape) <= 8:
                color = "white" if strength > 0.95 else "black"
                number = {"ha": "center", "va": "center", "fontsize": 9}
                axes.text(j + 0.5, i + 0.5, f"{weight:.2f}", color=color, **number)


def _name_axes(axes, queries: Sequence[str], keys: Sequence[str]) -> None:
    """Queries run down, keys run across; tokens are shown as they are."""
    tilt = 90 if len(keys) > 8 or max(map(len, keys)) > 6 else 0
    axes.set(xlim=(0, len(keys)), ylim=(len(queries), 0), aspect="equal")
    axes.set_xticks(
        [j + 0.5 for j in range(len(keys))], keys, rotation=tilt, parse_math=False
    )
    axes.set_yticks([i + 0.5 for i in range(len(queries))], queries, parse_math=False)
    axes.set_xlabel("keys", labelpad=7)
    axes.set_ylabel("queries")
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.tick_params(length=0, labelsize=9)
    axes.spines[:].set_visible(False)


def _draw_bar(axes, limit: float, signed: bool) -> None:
    """A strip beside `axes` that says which opacity is which value."""
    low, steps = (-limit if signed else 0.0), 20
    scale = torch.linspace(limit, low, steps)[:, None]
    bar = axes.inset_axes([1.04, 0, 0.05, 1])
    _draw_map(bar, scale, torch.ones(steps, 1, dtype=torch.bool), limit)
    bar.set(xlim=(0, 1), ylim=(steps, 0), xticks=[])
    bar.set_yticks([0.5, steps - 0.5], [f"{limit:.2g}", f"{low:.2g}"])
    bar.yaxis.tick_right()


def show_weights(
    weights: Float[Tensor, "*heads num_queries num_keys"],
    queries: Sequence[str],
    keys: Sequence[str],
    *,
    mask: Bool[Tensor, "..."] | None = None,
    signed: bool = False,
) -> "matplotlib.figure.Figure":
    """The attention map: row i shows where query i looks, opacity is the weight.

    Weights with a heads axis give one map a head, side by side. `mask` is True where
    a query may see a key; forbidden cells are hatched. `signed=True` draws scores,
    in two inks on a scale centred on zero. Needs matplotlib, the extra `maps`.
    """
    maps, mask = _as_maps(weights, queries, keys, mask, signed)
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        hint = "maps are drawn by matplotlib: pip install 'building-attention[maps]'"
        raise ModuleNotFoundError(hint) from None

    cell = 0.48 if max(len(queries), len(keys)) <= 8 else 0.22
    width, height = cell * len(keys) + 0.9, cell * len(queries) + 0.9
    columns = min(len(maps), max(1, int(7.7 / width)))  # what a page has room for
    rows = -(-len(maps) // columns)
    figure = Figure(figsize=(columns * width, rows * height), layout="constrained")
    limit = max(maps.abs().max().item(), 1e-4) if signed else 1.0
    places = figure.subplots(rows, columns, squeeze=False).flat
    for head, axes in enumerate(places):
        if head >= len(maps):
            axes.set_axis_off()
            continue
        _draw_map(axes, maps[head], mask[head], limit)
        _name_axes(axes, queries, keys)
        if len(maps) > 1:
            axes.set_title(f"head {head + 1}", fontsize=10)
        if max(maps.shape[1:]) > 8:
            _draw_bar(axes, limit, signed)
    words = describe(weights, queries, keys, mask=mask, signed=signed)
    return described(figure, words)
