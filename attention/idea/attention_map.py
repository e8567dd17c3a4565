"""What attention computes

Attention turns a table of scores into weights, and with them mixes the vectors of a
sentence, so that each token comes out knowing what stands around it.

Written by `book/idea/attention_map.ipynb`: read and change it there.
"""

from collections import Counter
from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attention.idea.workbench import described

if TYPE_CHECKING:
    import matplotlib.figure

__all__ = ["as_maps", "describe_weights", "show_weights"]


def as_maps(
    weights: Float[Tensor, "*heads num_queries num_keys"],
    queries: Sequence[str],
    keys: Sequence[str],
    mask: Bool[Tensor, "..."] | None = None,
    signed: bool = False,
) -> tuple[
    Float[Tensor, "maps num_queries num_keys"],
    Bool[Tensor, "maps num_queries num_keys"],
]:
    """All maps in one row, and the mask of each, on the CPU, rounded to 4 decimals.

    ValueError unless `weights` is queries x keys, with an axis of heads before it, or
    of layers and heads; weights lie from 0 to 1 (with `signed=True`: are finite); the
    mask is boolean and broadcasts to them; and the tokens are strings.
    """
    sides, came = (len(queries), len(keys)), tuple(weights.shape)
    if len(came) not in (2, 3, 4) or came[-2:] != sides or 0 in came:
        must = f"((layers and) heads and) queries x keys {sides}"
        raise ValueError(f"weights must be {must}, {came=}")
    for token in (*queries, *keys):
        if not isinstance(token, str):
            raise ValueError(f"tokens must be strings, came {token!r}")
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
    must = came if len(came) > 2 else (1, *came)
    try:
        return maps, mask.cpu().expand(must).reshape(maps.shape)
    except RuntimeError:
        came = tuple(mask.shape)
        raise ValueError(f"mask must broadcast to {must}, {came=}") from None


def describe_weights(
    weights: Float[Tensor, "*heads num_queries num_keys"],
    queries: Sequence[str],
    keys: Sequence[str],
    *,
    mask: Bool[Tensor, "..."] | None = None,
    signed: bool = False,
    brief: bool | None = None,
) -> str:
    """What a map shows, in words: where each query looks most.

    Takes what `show_weights` takes, and needs no matplotlib. With `brief` it tells of
    each map the strongest pair alone, as it does by itself when there are more than 16
    queries or maps.
    """
    maps, mask = as_maps(weights, queries, keys, mask, signed)
    names = _names(weights.shape[:-2])
    if brief is None:
        brief = max(len(queries), len(maps)) > 16
    size = f"{len(queries)} queries (rows) by {len(keys)} keys (columns)"
    words = [f"{'Scores' if signed else 'Attention map'}: {size}."]
    for name, table in zip(names, maps, strict=True):
        title = f"{name}, strongest" if name else "strongest"
        pairs = _strongest(table, queries, keys, brief)
        words.append(f"{title.capitalize()}: {pairs}.")
    if not mask.all():
        words.append("Hatched cells may not be seen.")
    return " ".join(words)


def _names(axes: Sequence[int]) -> list[str]:
    """What each map is called: head 2, or layer 1, head 2; nothing if it is alone."""
    words = ("layer", "head")[2 - len(axes) :]
    places = product(*(range(1, size + 1) for size in axes))
    named = (zip(words, place, strict=True) for place in places)
    names = [", ".join(f"{word} {n}" for word, n in pairs) for pairs in named]
    return names if len(names) > 1 else [""]


def _told_apart(tokens: Sequence[str]) -> list[str]:
    """The tokens, those that occur more than once with their place in brackets."""
    count = Counter(tokens)
    return [
        f"{token} ({place})" if count[token] > 1 else token
        for place, token in enumerate(tokens, start=1)
    ]


def _strongest(
    table: Tensor, queries: Sequence[str], keys: Sequence[str], brief: bool
) -> str:
    """The key with the largest value, by query, or once to be brief."""
    queries, keys = _told_apart(queries), _told_apart(keys)
    best = table.abs().argmax(dim=-1).tolist()
    rows = range(len(queries))
    if brief:
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


def _name_axes(axes, queries: Sequence[str], keys: Sequence[str], cell: float) -> None:
    """Queries run down, keys across, turned where a cell, in inches, is too narrow."""
    tilt = 90 if 0.08 * max(map(len, keys)) > cell else 0  # a letter is 0.08 inches
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

    Weights with an axis of heads, or of layers and heads, give one map a head, side by
    side. `mask` is True where a query may see a key; forbidden cells are hatched.
    `signed=True` draws scores, in two inks on a scale centred on zero. Needs
    matplotlib, the extra `maps`.
    """
    maps, allowed = as_maps(weights, queries, keys, mask, signed)
    names = _names(weights.shape[:-2])
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        hint = "maps are drawn by matplotlib: pip install 'building-attention[maps]'"
        raise ModuleNotFoundError(hint) from None

    few = max(maps.shape[1:]) <= 8
    # In inches: the names' room, that of the cells, and what a cell needs at least.
    beside, above = (
        max(0.9, 0.34 + 0.08 * max(map(len, side))) for side in (queries, keys)
    )
    room, least = 4.6 - beside, 0.3 if few else 0.22  # 4.6 can be read on a phone
    columns = min(len(maps), max(1, int(room / (least * len(keys)))))
    rows = -(-len(maps) // columns)
    cell = max(least, min(0.48, room / (columns * len(keys)))) if few else least
    width = columns * cell * len(keys) + beside
    height = rows * (cell * len(queries) + above + 0.2 * (rows > 1))
    figure = Figure(figsize=(width, height), layout="constrained")
    limit = max(maps.abs().max().item(), 1e-4) if signed else 1.0
    places = list(figure.subplots(rows, columns, squeeze=False).flat)
    drawn = zip(range(len(maps)), places, names, maps, allowed, strict=False)
    for n, axes, name, *of_map in drawn:
        _draw_map(axes, *of_map, limit)
        _name_axes(axes, queries, keys, cell)
        axes.set_title(name, fontsize=10)
        if n % columns:  # the queries are named once a row
            axes.set(yticks=[], ylabel="")
        if not few:
            _draw_bar(axes, limit, signed)
    for spare in places[len(maps) :]:
        spare.set_axis_off()
    words = describe_weights(weights, queries, keys, mask=mask, signed=signed)
    return described(figure, words)
