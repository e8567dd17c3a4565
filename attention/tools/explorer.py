"""The attention explorer

An attention map that answers: choose a head, point at a token, and read where it
looks and who looks at it. Underneath it is a plain table, which needs no script to
be read.

Written by `book/tools/explorer.ipynb`: read and change it there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import product
from math import isnan
from numbers import Integral
from pathlib import Path
from unicodedata import east_asian_width

import torch
from jaxtyping import Bool, Real
from torch import Tensor

from attention.tools.maps import as_maps, axis_names, describe_weights
from attention.tools.workbench import expected, visible_token, well_formed

__all__ = ["Explorer", "explore"]


def _cell(weight: float) -> str:
    """A cell of the table, with its weight as ink and as text; NaN is masked."""
    if isnan(weight):
        return '<td class="masked" style="--w:0">masked</td>'
    return f'<td style="--w:{weight:.4f}">{weight:.4f}</td>'


def _table(
    table: Tensor, queries: Sequence[str], keys: Sequence[str], caption: str
) -> str:
    """One map as HTML: its tokens are headers, its weights both ink and text."""
    queries, keys = ([visible_token(t) for t in side] for side in (queries, keys))
    few = "few" if table.numel() <= 64 else ""
    tilt = "tilt" if len(keys) > 8 or max(map(_width, keys)) > 4 else ""
    first = min(12, max(2, *map(_width, queries)))
    names, heads = (map(escape, side) for side in (queries, keys))
    top = "".join(f'<th scope="col"><bdi>{head}</bdi></th>' for head in heads)
    rows = ""
    for name, row in zip(names, table.tolist(), strict=True):
        cells = "".join(map(_cell, row))
        rows += f'<tr><th scope="row"><bdi>{name}</bdi></th>{cells}</tr>\n'
    kind, style = f"{tilt} {few}".strip(), f"--keys:{len(keys)};--name:{first}"
    return f"""<table class="{kind}" style="{style}">
<caption>{caption}</caption>
<thead><tr><td></td>{top}</tr></thead>
<tbody>
{rows}</tbody></table>"""


def _width(token: str) -> int:
    """How many letters of the Latin script are about as wide as this token."""
    return sum(2 if east_asian_width(letter) in "WF" else 1 for letter in token)


_STYLE = """
.attention-explorer[data-layers][data-heads] {  /* outweighs the page's own style */
  container-type: inline-size;
  margin: 1.5rem 0;
  font-size: 0.85rem;
  line-height: 1.35;

  * { all: revert; }
  .room { overflow-x: auto; }
  table {
    /* A cell's share of the room, between a sliver and a comfortable square. */
    --spare: min(5.3rem, 100cqi - var(--keys) * 1.26rem);
    --first: min(var(--name) * 0.5rem + 0.8rem, max(4.2rem, 15cqi, var(--spare)));
    --cell: clamp(0.7rem, (100cqi - var(--first)) / var(--keys), 2.6rem);
    table-layout: fixed;
    width: calc(var(--first) + var(--keys) * var(--cell));
    border-collapse: collapse;
  }
  th, td {
    box-sizing: border-box;
    width: var(--cell);
    height: 1.7rem;
    font-weight: normal;
    text-align: center;
  }
  tr > :first-child { width: var(--first); text-align: right; }
  tbody td {
    background-clip: content-box;
    background-color: rgb(90 98 216 / var(--w));
    color: oklch(from currentColor max((l - 0.5) * 99, (var(--w) - 0.95) * 9999) 0 0);
    font-size: 0;
    font-variant-numeric: tabular-nums;
    letter-spacing: -0.03em;
  }
  /* Numbers shrink with their cell, and leave before they are too small to read. */
  .few td, td.lit {
    --size: min(0.78rem, 0.47 * var(--cell));
    font-size: clamp(0px, (var(--cell) - 1.25rem) * 99, var(--size));
  }
  td.masked {
    background: content-box
      repeating-linear-gradient(-45deg, #8a8f98 0 1px, transparent 1px 5px);
    font-size: 0;
  }
  .asked td:not(.lit) { opacity: 0.25; }
  /* Nobody can ask without scripts: all numbers show, and a wide map scrolls. */
  @media (scripting: none) {
    table { --cell: 3rem; }
    tbody td:not(.masked) { font-size: 0.78rem; }
  }
  caption { padding-bottom: 0.5rem; text-align: left; }
  caption span { white-space: nowrap; }
  caption i {
    display: inline-block;
    width: 4rem;
    height: 0.7em;
    background: linear-gradient(to right, transparent, #5a62d8);
  }
  tbody td, caption i { forced-color-adjust: none; print-color-adjust: exact; }
"""

_STYLE += """
  bdi {
    display: inline-block;
    overflow: hidden;
    max-inline-size: 8rem;
    text-overflow: ellipsis;
    vertical-align: middle;
    white-space: pre;
  }
  tbody bdi {  /* a long token takes a second line, and a third */
    display: -webkit-inline-box;
    max-inline-size: calc(var(--first) - 0.5rem);
    margin: 0.15rem 0.3rem 0.15rem 0;
    overflow-wrap: anywhere;
    white-space: pre-wrap;
    -webkit-box-orient: vertical;
    -webkit-line-clamp: 3;
  }
  thead :is(th, td) { height: auto; vertical-align: bottom; }
  thead bdi { margin: 0.3rem 0; }
  .tilt thead bdi { rotate: 180deg; writing-mode: vertical-rl; }

  button {
    all: unset;
    box-sizing: border-box;
    width: 100%;
    vertical-align: middle;
  }
  .lit button { -webkit-text-stroke: 0.4px; }  /* bold, and no wider */
  button, label { border-radius: 3px; cursor: pointer; }
  label { min-width: 1.65rem; padding: 0.2rem 0.3rem; text-align: center; }
  [aria-pressed="true"], label:has(:checked) { background: #5a62d8; color: white; }
  button:focus-visible, label:has(:focus-visible) { outline: 2px solid; }
  fieldset {
    display: flex;
    flex-wrap: wrap;
    min-height: 1.6rem;
    margin: 0 0 0.4rem;
    padding: 0;
    border: 0;
  }
  legend {
    float: left;
    min-width: 3rem;
    padding: 0.2rem 0.4rem 0.2rem 0;
    text-transform: capitalize;
  }
  input { position: absolute; opacity: 0; }
  output { display: block; min-height: 2.7em; margin: 0.5rem 0; }
  /* Each choice will take a line above the table. */
  @media (scripting: enabled) {
    &:not([data-ready]) { padding-top: calc(var(--choices) * 2rem); }
  }
}
"""

_SCRIPT = r"""
for (const map of document.querySelectorAll(".attention-explorer:not([data-ready])")) {
  const state = map.dataset;
  state.ready = "";
  const rows = state.weights.split(";").map((row) => row.split(" ").map(Number));
  const table = map.querySelector("table"), output = map.querySelector("output");
  const grid = [...table.rows].map((row) => [...row.cells]);
  const queries = grid.slice(1).map((row) => row[0]), keys = grid[0].slice(1);
  const corner = grid[0][0];  // the one place that stands for no token
  let weights, kept = corner;  // the rows in view, NaN where masked; the token chosen
"""

_SCRIPT += r"""
  // As Python writes it: between two numbers, 0.125 and 0.625 go to the even one.
  const format = (weight) => (weight - (weight * 8 % 4 === 1) / 1e9).toFixed(2);
  // Isolated, as bdi does it; of equal tokens each is told with its place.
  const named = (side) => side.map(({ textContent: token }, n) => {
    const twins = side.filter((other) => other.textContent === token);
    return `“\u2068${token}\u2069”${twins.length > 1 ? ` (${n + 1})` : ""}`;
  });
  const lookers = named(queries), seen = named(keys);

  // The three largest of these weights with their tokens, and the sum of the others.
  const shares = (names, line) => {
    const pairs = names.map((name, n) => [name, line[n]])
      .filter(([, weight]) => weight >= 0).sort((a, b) => b[1] - a[1]);
    const words = pairs.slice(0, 3).map(([who, weight]) => `${who} ${format(weight)}`);
    const others = pairs.slice(3);
    const rest = format(others.reduce((sum, [, weight]) => sum + weight, 0));
    if (others.length === 1) words.push(`1 other ${rest}`);
    if (others.length > 1) words.push(`${others.length} others ${rest}`);
    return words.join(", ") || "no token";
  };
  const answer = (row, column) => {
    const query = lookers[row - 1], key = seen[column - 1];
    if (row && column) {
      const weight = weights[row - 1][column - 1];
      return weight >= 0 ? `${query} looks at ${key} with ${format(weight)}.`
        : `${query} may not look at ${key}.`;
    }
    if (row) return `${query} looks at ${shares(seen, weights[row - 1])}.`;
    const line = weights.map((line) => line[column - 1]);
    if (column) return `${key} is looked at by ${shares(lookers, line)}.`;
    return "Point at a token: a row shows where it looks, a column who looks at it.";
  };
"""

_SCRIPT += r"""
  const light = (place) => {
    const row = place.parentNode.rowIndex, column = place.cellIndex;
    table.classList.toggle("asked", place !== corner);
    grid.forEach((cells, i) => cells.forEach((cell, j) => cell.classList.toggle(
      "lit", (row > 0 && i === row) || (column > 0 && j === column))));
    output.textContent = answer(row, column);
  };
  const keep = (place) => {
    kept = place;
    for (const button of buttons) button.ariaPressed = button.parentNode === kept;
    light(kept);
  };
  const draw = () => {
    const before = (state.layer * state.heads + Number(state.head)) * queries.length;
    weights = rows.slice(before, before + queries.length);
    weights.forEach((line, i) => line.forEach((weight, j) => {
      const cell = grid[i + 1][j + 1];
      cell.classList.toggle("masked", isNaN(weight));
      cell.style.setProperty("--w", weight || 0);
      cell.textContent = isNaN(weight) ? "masked" : format(weight);
    }));
    for (const axis of table.querySelectorAll("caption b")) {
      axis.textContent = Number(state[axis.className]) + 1;
    }
    keep(kept);
  };
"""

_SCRIPT += r"""
  const buttons = [...queries, ...keys].map((token) => {
    const button = document.createElement("button");
    button.type = "button";
    button.tabIndex = -1;
    button.append(...token.childNodes);
    token.append(button);
    return button;
  });
  buttons[0].tabIndex = 0;
  for (const axis of ["layer", "head"]) {
    const size = Number(state[`${axis}s`]);
    if (size === 1) continue;
    const choice = document.createElement("fieldset");
    choice.innerHTML = "<legend></legend>";
    const one = `${axis} ${Math.random()}`;  // radio buttons of one name are one choice
    for (let n = 0; n < size; n++) {
      choice.innerHTML +=
        `<label><input type="radio" name="${one}" value="${n}">${n + 1}</label>`;
    }
    choice.firstChild.textContent = state[`${axis}Name`];
    choice.querySelectorAll("input")[state[axis]].checked = true;
    choice.addEventListener("change", (event) => {
      state[axis] = event.target.value;
      draw();
    });
    table.parentNode.before(choice);
  }
  draw();

  const placeOf = (event) => event.target.closest("th, td") ?? corner;
  for (const arrive of ["pointerover", "focusin"]) {
    table.addEventListener(arrive, (event) => light(placeOf(event)));
  }
  for (const leave of ["pointerleave", "focusout"]) {
    table.addEventListener(leave, () => light(kept));
  }
  table.addEventListener("click", (event) => {
    keep(placeOf(event) === kept ? corner : placeOf(event));
  });
  map.addEventListener("keydown", (event) => {
    if (event.key === "Escape") keep(corner);
    const step = { ArrowUp: -1, ArrowDown: 1, ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const from = event.target.closest("th");
    if (!step || !from) return;
    event.preventDefault();  // the page stays where it is
    const line = /Up|Down/.test(event.key) ? queries : keys;
    const to = line[line.includes(from) ? line.indexOf(from) + step : 0] ?? from;
    for (const button of buttons) button.tabIndex = button.parentNode === to ? 0 : -1;
    to.firstChild.focus();
  });
}
"""


@dataclass(frozen=True, repr=False)
class Explorer:
    """A map to explore: HTML in a notebook or a page, words everywhere else."""

    html: str
    words: str

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.words

    def save(self, path: str | Path) -> None:
        """Write a page that any browser opens, without a server or a network."""
        page = _PAGE.format(self.html)
        Path(path).write_text(page, encoding="utf-8", newline="\n")


_PAGE = """<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Attention map</title>
<style>
:root {{ color-scheme: light dark; font-family: system-ui, sans-serif; }}
body {{ max-width: 52rem; margin: 2rem auto; padding: 0 1rem; }}
</style>
<main>
<h1>Attention map</h1>
{}
</main>
</html>
"""


def _check_rows(maps: Tensor, mask: Tensor, queries: Sequence[str]) -> None:
    """ValueError unless each row sums to one over the keys that it may look at."""
    sums = maps.masked_fill(~mask, 0.0).sum(dim=-1)
    must = mask.any(dim=-1).to(sums.dtype)
    wrong = (sums - must).abs() > 0.01 + 5e-5 * maps.shape[-1]
    if wrong.any():
        n, i = wrong.nonzero()[0].tolist()
        row = f"in the row of query {i + 1}, {queries[i]!r}, of map {n + 1}"
        must = f"a sum of {must[n, i]:.0f} over the keys that a query may see"
        raise expected("weights", must, f"{sums[n, i]:.4f} {row}")


def explore(
    weights: Real[Tensor, "*heads num_queries num_keys"],
    queries: Sequence[str],
    keys: Sequence[str],
    *,
    mask: Bool[Tensor, "..."] | None = None,
    show: Sequence[int] = (),
    caption: str = "Rows are queries, columns are keys.",
    axes: Sequence[str] | None = None,
) -> Explorer:
    """The attention map as an interactive table: choose a head, point at a token.

    `weights` may have an axis of heads in front, or two axes that `axes` names, as in
    `show_weights`. Each row sums to one over the keys that `mask` (True where a query
    may see a key) allows. At first the map `weights[show]` is in view; `show` counts
    from 0, like `ablate`, and the buttons count from 1: (0, 2) is layer 1, head 3.
    Errors: those of `as_maps`, and ValueError for other sums and for a place where
    there is no map.
    """
    maps, allowed = as_maps(weights, queries, keys, mask, axes=axes)
    _check_rows(maps, allowed, queries)
    sizes = tuple(weights.shape[:-2])
    place = show if isinstance(show, Sequence) else [show]
    place = tuple(place) or (0,) * len(sizes)
    whole = all(isinstance(n, Integral) and not isinstance(n, bool) for n in place)
    if not whole or place not in product(*map(range, sizes)):
        raise expected("show", f"an index into {sizes}", show)
    if not isinstance(caption, str):
        raise expected("caption", "a str", type(caption).__name__)
    words = describe_weights(weights, queries, keys, mask=mask, axes=axes)
    maps = maps.masked_fill(~allowed, torch.nan)
    caption = escape(well_formed(caption))
    data, caption = _places(sizes, axis_names(sizes, axes), place, caption)
    table = _table(maps.reshape(weights.shape)[place], queries, keys, caption)
    return Explorer(_html(maps, data, table, escape(words)), words)


def _places(sizes: tuple, names: tuple, show: tuple, caption: str) -> tuple[str, str]:
    """How many maps there are and which is in view: for the script, and in words."""
    data, shown = "", []
    sizes, place = (1, 1, *sizes)[-2:], (0, 0, *show)[-2:]
    names = map(escape, ("", "", *names)[-2:])
    for axis, name, n, size in zip(("layer", "head"), names, place, sizes, strict=True):
        data += f' data-{axis}="{n}" data-{axis}s="{size}" data-{axis}-name="{name}"'
        if size > 1:
            shown.append(f'{name} <b class="{axis}">{n + 1}</b> of {size}')
    if shown:
        caption += f" In view: {', '.join(shown)}."
    data += f' style="--choices:{len(shown)}"'
    return data, caption + ' <span aria-hidden="true">0 <i></i> 1</span>'


def _html(maps: Tensor, data: str, table: str, told: str) -> str:
    """The explorer: style, table, sentence, words and script."""
    rows = maps.flatten(0, 1).tolist()
    weights = ";".join(" ".join(f"{weight:.4f}" for weight in row) for row in rows)
    return f"""<div class="attention-explorer" data-weights="{weights}"{data}>
<style>{_STYLE}</style>
<div class="room">{table}</div>
<output></output>
<details><summary>In words</summary><p>{told}</p></details>
<script>{_SCRIPT}</script>
</div>"""
