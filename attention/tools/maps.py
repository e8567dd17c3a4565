"""How a map is drawn

An attention map in two forms, a picture and a sentence: both are made from the same
checked numbers, so neither can contradict the other.

Written by `book/tools/maps.ipynb`: read and change it there.
"""

import re
from collections.abc import Sequence
from itertools import product
from typing import TYPE_CHECKING
from unicodedata import bidirectional

import torch
from jaxtyping import Bool, Real
from torch import Tensor

from attention.tools.workbench import (
    BLUE,
    BROWN,
    GREY,
    check_tensor,
    check_tokens,
    described,
    draw_boxes,
    expected,
    name_width,
    visible_token,
)

if TYPE_CHECKING:
    import matplotlib.figure

__all__ = ["as_maps", "axis_names", "describe_weights", "show_weights"]


def as_maps(
    weights: Real[Tensor, "*heads num_queries num_keys"],
    queries: Sequence[str],
    keys: Sequence[str],
    mask: Bool[Tensor, "..."] | None = None,
    signed: bool = False,
    axes: Sequence[str] | None = None,
) -> tuple[
    Real[Tensor, "maps num_queries num_keys"],
    Bool[Tensor, "maps num_queries num_keys"],
]:
    """All maps in one row, and the mask of each, on the CPU, rounded to 4 decimals.

    Weights that the mask hides are zeros. ValueError unless `weights` is queries x
    keys, with an axis of heads before it, or two axes that `axes` names; weights lie
    from 0 to 1 (with `signed=True`: are finite); the mask is boolean and broadcasts to
    them; and the tokens are strings. TypeError for what is not a tensor.
    """
    weights = _dense(weights)
    check_tensor(weights=weights)
    check_tokens(queries=queries, keys=keys)
    sides, shape = (len(queries), len(keys)), tuple(weights.shape)
    must = f"((layers and) heads and) queries x keys {sides}, real numbers"
    fits = len(shape) in (2, 3, 4) and shape[-2:] == sides and 0 not in shape
    if not fits or weights.is_complex() or weights.is_meta:
        raise expected("weights", must, weights)
    axis_names(shape[:-2], axes)
    maps = weights.detach().to("cpu", torch.float64).reshape(-1, *sides)
    allowed = _as_masks(mask, shape)
    maps = maps.masked_fill(~allowed, 0.0)
    low, high = maps.min().item(), maps.max().item()
    if not maps.isfinite().all() or not (signed or -5e-5 <= low <= high <= 1 + 5e-5):
        must = "finite numbers" if signed else "numbers from 0 to 1"
        raise expected("weights", must, f"{low:.5g} to {high:.5g}")
    # So no colour depends on the last bit; and adding 0 takes the minus from zeros.
    rounded = (1e4 * maps).round() / 1e4 + 0.0
    rounded = rounded if signed else rounded.clamp(0, 1)
    return torch.where(rounded.isfinite(), rounded, maps), allowed


def _number(value: float | Tensor) -> str:
    """A value as it is written into a cell or a sentence: in about three digits."""
    value = float(value)
    if abs(value) >= 99999.5:
        return f"{value:.2e}"
    digits = 2 - (abs(value) >= 9.995) - (abs(value) >= 99.95)
    return f"{round(value, digits) + 0.0:.{digits}f}"  # adding 0: no minus before 0.00


def _dense(thing: object) -> object:
    """A sparse tensor as a dense one; all else as it is."""
    return thing.to_dense() if isinstance(thing, Tensor) else thing


def _as_masks(mask: Tensor | None, shape: tuple) -> Tensor:
    """The mask of each map: True where a query may see a key."""
    must = shape if len(shape) > 2 else (1, *shape)
    mask = torch.ones((), dtype=torch.bool, device="cpu") if mask is None else mask
    mask = _dense(mask)
    check_tensor(mask=mask)
    if mask.dtype != torch.bool or mask.is_meta:
        raise expected("mask", "booleans (True: may see)", mask)
    try:
        return mask.cpu().expand(must).reshape(-1, *shape[-2:])
    except RuntimeError:
        raise expected("mask", f"a shape that broadcasts to {must}", mask) from None


def axis_names(sizes: Sequence[int], axes: Sequence[str] | None = None) -> tuple:
    """What the axes before queries x keys are called; "" if one needs no name.

    A single axis is of heads. The first of two may be of layers or of sentences, which
    no size shows: ValueError unless `axes` names them, or the first has size 1.
    """
    if axes is None and (len(sizes) < 2 or sizes[0] == 1):
        return ("", "head")[2 - len(sizes) :]
    several = isinstance(axes, Sequence) and not isinstance(axes, str)
    names = list(axes) if several else [axes]
    words = {name for name in names if isinstance(name, str) and name.strip()}
    if not len(words) == len(names) == len(sizes):
        such = 'as in ("layer", "head"), ("sentence", "head")'
        must = f"a name for each of the {len(sizes)} axes {tuple(sizes)}, {such}"
        raise expected("axes", must, axes)
    return tuple(map(visible_token, names))


def describe_weights(
    weights: Real[Tensor, "*heads num_queries num_keys"],
    queries: Sequence[str],
    keys: Sequence[str],
    *,
    mask: Bool[Tensor, "..."] | None = None,
    signed: bool = False,
    brief: bool | None = None,
    axes: Sequence[str] | None = None,
) -> str:
    """What a map shows, in words: where each query looks most.

    Takes what `show_weights` takes, and needs no matplotlib. With `brief` it names only
    the strongest pair of each map, as it does by itself when there are more than 16
    queries or maps. Tokens are shown by `visible_token`, and isolated from each other
    (U+2068, U+2069) where one of them is written from right to left. ValueError and
    TypeError as in `as_maps`.
    """
    maps, allowed = as_maps(weights, queries, keys, mask, signed, axes)
    titles, names = _titles(weights.shape[:-2], axes), _named(queries, keys)
    brief = max(len(queries), len(maps)) > 16 if brief is None else brief
    size = f"{len(queries)} queries (rows) by {len(keys)} keys (columns)"
    words = [f"{'Scores' if signed else 'Attention map'}: {size}."]
    for title, *of_map in zip(titles, maps, allowed, strict=True):
        told = f"{title}, strongest" if title else "strongest"
        pairs = _strongest(*of_map, *names, brief)
        words.append(f"{told[0].upper()}{told[1:]}: {pairs}.")
    if not allowed.all():
        words.append("Hatched cells may not be seen.")
    return " ".join(words)


def _titles(sizes: Sequence[int], axes: Sequence[str] | None) -> list[str]:
    """What each map is called: head 2, or layer 1, head 2; nothing if it is alone."""
    places = product(*(range(1, size + 1) for size in sizes))
    named = [zip(axis_names(sizes, axes), place, strict=True) for place in places]
    titles = [", ".join(f"{name} {n}" for name, n in title if name) for title in named]
    return titles if len(titles) > 1 else [""]


def _named(*sides: Sequence[str]) -> list[list[str]]:
    """How sentences call the tokens of each side: visible, told apart, isolated."""
    names = [_told_apart([visible_token(token) for token in side]) for side in sides]
    letters = {letter for side in names for name in side for letter in name}
    if {"R", "AL", "AN"} & set(map(bidirectional, letters)):  # from right to left
        names = [[f"\u2068{name}\u2069" for name in side] for side in names]
    return names


def _told_apart(tokens: Sequence[str]) -> list[str]:
    """The tokens, those that occur more than once with their place in brackets."""
    twice = {token for token in tokens if tokens.count(token) > 1}
    alike = re.compile(r" \(\d+\)$").search  # a token may end like a place
    places = enumerate(tokens, start=1)
    return [f"{t} ({n})" if t in twice or alike(t) else t for n, t in places]


def _strongest(
    table: Tensor, mask: Tensor, queries: list[str], keys: list[str], brief: bool
) -> str:
    """The key with the largest value, by query, or once to be brief."""
    most, best = table.abs().masked_fill(~mask, -1.0).max(dim=-1)
    rows = [most.argmax().item()] if brief else range(len(queries))
    seen = [f"{keys[j]} {_number(table[i, j])}" for i, j in enumerate(best.tolist())]
    looks = ((queries[i], seen[i] if mask[i].any() else "no key") for i in rows)
    return ", ".join(f"{query} → {key}" for query, key in looks)


_SINGLE = {"dtype": torch.float32, "device": "cpu"}  # whatever is usual
_PLAIN = {"axes.grid": False, "axes.titlecolor": "auto", "axes.titley": None}
_PLAIN |= {"patch.force_edgecolor": False, "hatch.color": GREY, "hatch.linewidth": 1}
_PLAIN |= dict.fromkeys(("axes.facecolor", "figure.facecolor"), "white")
_PLAIN |= dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor"), "black")
_PLAIN |= dict.fromkeys(("xtick.color", "ytick.color"), "black")
_PLAIN |= dict.fromkeys(("xtick.labelcolor", "ytick.labelcolor"), "inherit")
_PLAIN |= dict.fromkeys(("xtick.minor.visible", "ytick.minor.visible"), False)
_HATCH = {"facecolor": "none", "hatch": "///", "edgecolor": GREY, "linewidth": 0}


def _draw_map(axes, table, mask, limit: float, many: bool = False) -> None:
    """Fill `axes` with one square for each weight; `limit` is drawn at full opacity."""
    strength = table.abs() / limit
    (_draw_many if many else _draw_squares)(axes, table, mask, strength)
    if max(table.shape) > 8:
        return
    for i, j in mask.nonzero().tolist():
        color = "white" if round(strength[i, j].item(), 4) > 0.95 else "black"
        number = {"ha": "center", "va": "center", "fontsize": 9, "color": color}
        axes.text(j + 0.5, i + 0.5, _number(table[i, j]), **number)


def _draw_squares(axes, table, mask, strength) -> None:
    """Each square by itself."""
    from matplotlib.patches import Rectangle

    for i, j in product(*map(range, table.shape)):
        look = _HATCH
        if mask[i, j]:
            ink = BLUE if table[i, j] >= 0 else BROWN
            look = {"facecolor": ink, "alpha": round(strength[i, j].item(), 4)}
        axes.add_patch(Rectangle((j + 0.03, i + 0.03), 0.94, 0.94, **look))


def _draw_many(axes, table, mask, strength) -> None:
    """All squares that have ink at once, and all that are hatched."""
    from matplotlib import collections, colors, patches, path, transforms

    inked = mask & (strength >= 5e-5)
    i, j = inked.nonzero(as_tuple=True)
    inks = torch.tensor([*map(colors.to_rgb, (BLUE, BROWN))], **_SINGLE)
    inks = inks[(table[inked] < 0).long()]
    alphas = strength[inked].round(decimals=4)
    faces = torch.cat([inks, alphas[:, None]], dim=-1).tolist()
    corners = torch.tensor([[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]], **_SINGLE)
    corners = corners * 0.94 - 0.47
    square = path.Path(corners.tolist(), closed=True)
    look = {"facecolors": faces, "linewidths": 0, "clip_on": False}
    look |= {"offsets": torch.stack([j, i], -1) + 0.5}
    look |= {"offset_transform": axes.transData}
    squares = collections.PathCollection([square], **look)
    squares.set_transform(transforms.AffineDeltaTransform(axes.transData))
    axes.add_collection(squares, autolim=False)
    hidden = (~mask).nonzero().flip(-1)[:, None] + 0.5 + corners
    around = path.Path(hidden.flatten(0, 1), square.codes.tolist() * len(hidden))
    if len(hidden):
        axes.add_artist(patches.PathPatch(around, **_HATCH))  # add_patch is slow


def _name_axes(axes, queries: Sequence[str], keys: Sequence[str], cell: float) -> None:
    """Queries run down, keys across, turned where a cell, in inches, is too narrow."""
    tilt = 90 if max(map(name_width, keys)) > cell else 0
    axes.set(xlim=(0, len(keys)), ylim=(len(queries), 0), aspect="equal")
    down, across = ([n + 0.5 for n in range(len(s))] for s in (queries, keys))
    axes.set_xticks(across, keys, rotation=tilt, parse_math=False)
    axes.set_yticks(down, queries, parse_math=False)
    axes.set_xlabel("keys", labelpad=7)
    axes.set_ylabel("queries")
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.tick_params(length=0, labelsize=9)
    axes.spines[:].set_visible(False)
    draw_boxes(*axes.get_xticklabels(), *axes.get_yticklabels())


def _white(width: float, height: float) -> "matplotlib.figure.Figure":
    """A figure of this size in inches that stays white, whatever the style."""
    from matplotlib import figure, patches, rcParams

    page = figure.Figure(figsize=(width, height), layout="constrained")
    if rcParams["savefig.facecolor"] != "auto":  # put on when the figure is saved
        base = patches.Rectangle((-1, -1), 3, 3, fc="white", zorder=-1, in_layout=False)
        page.add_artist(base)
    return page


def _number_width(table, mask) -> float:
    """How much room the widest number in a cell takes, in inches."""
    from matplotlib.textpath import TextPath

    numbers = {re.sub(r"\d", "0", _number(value)) for value in table[mask].tolist()}
    paths = [TextPath((0, 0), number, size=9) for number in numbers]
    return max((path.get_extents().width for path in paths), default=0) / 72


def _draw_bar(axes, limit: float, signed: bool) -> None:
    """A strip beside `axes` that says which opacity is which value."""
    low, steps = (-limit if signed else 0.0), 20
    scale = torch.linspace(1, low / limit, steps, **_SINGLE)[:, None]
    bar = axes.inset_axes([1.04, 0, 0.05, 1])
    _draw_map(bar, scale, torch.ones_like(scale, dtype=torch.bool), 1.0)
    bar.set(xlim=(0, 1), ylim=(steps, 0), xticks=[])
    bar.set_yticks([0.5, steps - 0.5], [f"{limit:.2g}", f"{low:.2g}"])
    bar.yaxis.tick_right()


def show_weights(
    weights: Real[Tensor, "*heads num_queries num_keys"],
    queries: Sequence[str],
    keys: Sequence[str],
    *,
    mask: Bool[Tensor, "..."] | None = None,
    signed: bool = False,
    axes: Sequence[str] | None = None,
) -> "matplotlib.figure.Figure":
    """The attention map: row i shows where query i looks, opacity is the weight.

    Weights with an axis of heads give one map a head, side by side. With two axes
    before the queries, `axes` says what they are: ("layer", "head"), or ("sentence",
    "head"); titles count both from 1. `mask` is True where a query may see a key;
    forbidden cells are hatched. `signed=True` draws scores, in two inks on a scale
    centred on zero. Tokens are shown by `visible_token`. ValueError and TypeError
    as in `as_maps`; ModuleNotFoundError without matplotlib, the extra `maps`.
    """
    options = {"mask": mask, "signed": signed, "axes": axes}
    maps, allowed = as_maps(weights, queries, keys, **options)
    words = describe_weights(weights, queries, keys, **options)
    titles = _titles(weights.shape[:-2], axes)
    queries, keys = ([visible_token(token) for token in s] for s in (queries, keys))
    try:
        from matplotlib import rc_context
    except ModuleNotFoundError:
        hint = "maps are drawn by matplotlib: pip install 'building-attention[maps]'"
        raise ModuleNotFoundError(hint) from None

    few = max(maps.shape[1:]) <= 8
    # In inches: the names' room, that of the cells, and what a cell needs at least.
    beside, above = (
        max(0.9, 0.34 + max(map(name_width, side))) for side in (queries, keys)
    )
    least = max(0.3, 0.03 + _number_width(maps, allowed)) if few else 0.22
    room = 4.6 - beside  # 4.6 can be read on a phone
    title = max(1.2 * name_width(title) for title in titles)
    columns = min(len(maps), max(1, int(room / max(least * len(keys), title))))
    rows = -(-len(maps) // columns)
    cell = max(least, min(0.48, room / (columns * len(keys)))) if few else least
    width = columns * max(cell * len(keys), title) + beside
    height = rows * (cell * len(queries) + above + 0.2 * (rows > 1))
    limit = max(maps.abs().max().item(), 1e-4) if signed else 1.0
    with rc_context(_PLAIN):
        figure = _white(width, height)
        places = list(figure.subplots(rows, columns, squeeze=False).flat)
        drawn = zip(range(len(maps)), places, titles, maps, allowed, strict=False)
        for n, place, title, *of_map in drawn:
            _draw_map(place, *of_map, limit, many=maps.numel() > 256)
            _name_axes(place, queries, keys, cell)
            draw_boxes(place.set_title(title, fontsize=10, parse_math=False))
            if n % columns:  # the queries are named once a row
                place.set(yticks=[], ylabel="")
            if not few:
                _draw_bar(place, limit, signed)
        for spare in places[len(maps) :]:
            spare.set_axis_off()
    return described(figure, words)
