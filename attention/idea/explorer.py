"""The attention explorer

An attention map that answers: choose a head, point at a token, and read where it
looks and who looks at it. Underneath it is a plain table, which needs no script to
be read.

Written by `book/idea/explorer.ipynb`: read and change it there.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from jaxtyping import Bool, Float
from torch import Tensor

from attention.idea.attention_map import as_maps, describe

__all__ = ["Explorer", "explore"]


def _visible(token: str) -> str:
    """The token with its edges, controls and emptiness made visible."""
    token = token.encode("utf-8", "replace").decode()  # halves of a character: ?
    token = re.sub(
        r"^\s+|\s+$|[\x00-\x1f\x7f]",
        lambda found: "".join(map(_sign, found[0])),
        token,
    )
    return token or "∅"


def _sign(blank: str) -> str:
    """A character that leaves no ink, as one that does."""
    if blank in "\n\t":
        return "↵" if blank == "\n" else "⇥"
    return f"\\x{ord(blank):02x}" if ord(blank) in (*range(32), 127) else "␣"


def _cell(weight: str) -> str:
    """A cell of the table from a weight with four decimals, or from `masked`."""
    if weight == "masked":
        return '<td class="masked" style="--w:0">masked</td>'
    return f'<td style="--w:{weight}">{weight}</td>'


def _table(
    table: list[list[str]], queries: Sequence[str], keys: Sequence[str], caption: str
) -> str:
    """One map as HTML: its tokens are headers, its weights both ink and text."""
    tilt = len(keys) > 8 or max(map(_width, keys)) > 4
    style = f"--keys:{len(keys)};--name:{min(12, max(2, *map(_width, queries)))}"
    kind = ("tilt " if tilt else "") + ("" if len(keys) * len(queries) > 64 else "few")
    names, heads = ([escape(_visible(t)) for t in side] for side in (queries, keys))
    top = "".join(f'<th scope="col"><bdi>{head}</bdi></th>' for head in heads)
    rows = [f"<thead><tr><td></td>{top}</tr></thead>", "<tbody>"]
    for name, row in zip(names, table, strict=True):
        cells = "".join(map(_cell, row))
        rows.append(f'<tr><th scope="row"><bdi>{name}</bdi></th>{cells}</tr>')
    return "\n".join(
        [
            f'<table class="{kind.strip()}" style="{style}">',
            f"<caption>{caption}</caption>",
            *rows,
            "</tbody></table>",
        ]
    )


def _width(token: str) -> int:
    """How many letters of the Latin script are about as wide as this token."""
    return sum(2 if letter > "\u2e80" else 1 for letter in token)


_STYLE = """
.attention-explorer[data-heads] {  /* outweighs a notebook's own style of tables */
  container-type: inline-size;
  margin: 1.5rem 0;
  font-size: 0.85rem;
  line-height: 1.35;

  .room { overflow-x: auto; }
  table {
    /* A cell's share of the room, between a sliver and a comfortable square. */
    --first: min(var(--name) * 0.5rem + 0.8rem, max(4.2rem, 15cqi));
    --cell: clamp(0.7rem, (100cqi - var(--first)) / var(--keys), 2.6rem);
    display: table;
    table-layout: fixed;
    width: calc(var(--first) + var(--keys) * var(--cell));
    margin: 0;
    border: 0;
    border-collapse: collapse;
    font-size: inherit;
  }
  caption { caption-side: top; padding: 0 0 0.5rem; color: inherit; text-align: left; }
  caption span { white-space: nowrap; }
  caption i {
    display: inline-block;
    width: 4rem;
    height: 0.7em;
    background: linear-gradient(to right, transparent, #5a62d8);
    forced-color-adjust: none;
    print-color-adjust: exact;
  }
  thead, tr { border: 0; background: none !important; }
  th, td {
    box-sizing: border-box;
    width: var(--cell);
    height: 1.7rem;
    padding: 1px;
    border: 0;
    background: none;
    font-weight: normal;
    text-align: center;
    vertical-align: middle;
  }
  tr > :first-child { width: var(--first); text-align: right; }
  tbody td {
    background-clip: content-box;
    background-color: rgb(90 98 216 / var(--w));
    color: oklch(from currentColor max((l - 0.5) * 99, (var(--w) - 0.95) * 9999) 0 0);
    font-size: 0;
    font-variant-numeric: tabular-nums;
    letter-spacing: -0.03em;
    forced-color-adjust: none;
    print-color-adjust: exact;
  }
  /* Numbers shrink with their cell, and leave before they are too small to read. */
  .few td, .lit {
    --size: min(0.78rem, 0.45 * var(--cell));
    font-size: clamp(0px, (var(--cell) - 1.29rem) * 99, var(--size));
  }
  td.masked {
    background: content-box
      repeating-linear-gradient(-45deg, #8a8f98 0 1px, transparent 1px 5px);
    font-size: 0;
  }
  .asked td:not(.lit) { opacity: 0.25; }

  bdi {
    display: inline-block;
    overflow: hidden;
    max-inline-size: 8rem;
    text-overflow: ellipsis;
    vertical-align: middle;
    white-space: pre;
  }
  tbody bdi { max-inline-size: calc(var(--first) - 0.7rem); }
  thead :is(th, td) { height: auto; vertical-align: bottom; }
  .tilt thead bdi { rotate: 180deg; writing-mode: vertical-rl; }

  button, label { margin: 0; border: 0; border-radius: 3px; cursor: pointer; }
  button {
    width: 100%;
    height: 100%;
    padding: 0.15rem 0.3rem;
    background: none;
    color: inherit;
    font: inherit;
    text-align: inherit;
  }
  thead button { padding: 0.3rem 0; }
  .lit button { font-weight: 600; }
  label { min-width: 1.65rem; padding: 0.2rem 0.3rem; text-align: center; }
  [aria-pressed="true"], label:has(:checked) { background: #5a62d8; color: white; }
  button:focus-visible, label:has(:focus-visible) { outline: 2px solid; }

  fieldset { display: flex; flex-wrap: wrap; margin: 0 0 6px; padding: 0; border: 0; }
  legend {
    float: left;
    width: 3rem;
    margin: 0;
    padding: 0.2rem 0;
    font-size: inherit;
    text-transform: capitalize;
  }
  input { position: absolute; opacity: 0; }
  output { display: block; min-height: 2.7em; margin: 0.5rem 0; }
}
"""

_SCRIPT = r"""
for (const map of document.querySelectorAll(".attention-explorer:not([data-ready])")) {
  map.dataset.ready = "";
  const sizes = { layer: Number(map.dataset.layers), head: Number(map.dataset.heads) };
  const chosen = { layer: Number(map.dataset.layer), head: Number(map.dataset.head) };
  const maps = map.dataset.weights.split(";").map((one) => one.split(" ").map(Number));
  const table = map.querySelector("table"), output = map.querySelector("output");
  const grid = [...table.rows].map((row) => [...row.cells]);
  const queries = grid.slice(1).map((row) => row[0]), keys = grid[0].slice(1);
  const corner = grid[0][0];  // the one place that stands for no token
  let kept = corner;
  let weights;  // of the map in view: a line for each query, NaN where masked

  const make = (tag, properties, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };
  // As Python writes it: between two numbers, 0.125 and 0.625 go to the even one.
  const format = (weight) => (weight - (weight * 8 % 4 === 1) / 1e9).toFixed(2);
  // Isolated, as bdi does it; of equal tokens each is told with its place.
  const name = (token) => {
    const side = queries.includes(token) ? queries : keys;
    const twins = side.filter((other) => other.textContent === token.textContent);
    const place = twins.length > 1 ? ` (${side.indexOf(token) + 1})` : "";
    return `“\u2068${token.textContent}\u2069”${place}`;
  };

  // The three largest of these weights with their tokens, and the sum of the others.
  const shares = (tokens, line) => {
    const pairs = tokens.map((token, n) => [name(token), line[n]])
      .filter(([, weight]) => weight >= 0).sort((a, b) => b[1] - a[1]);
    const words = pairs.slice(0, 3).map(([who, weight]) => `${who} ${format(weight)}`);
    const others = pairs.slice(3).map(([, weight]) => weight);
    const rest = format(others.reduce((sum, weight) => sum + weight, 0));
    if (others.length === 1) words.push(`1 other ${rest}`);
    if (others.length > 1) words.push(`${others.length} others ${rest}`);
    return words.join(", ") || "no token";
  };
  const answer = (row, column) => {
    const query = name(grid[row][0]), key = name(grid[0][column]);
    if (row && column) {
      const weight = weights[row - 1][column - 1];
      return weight >= 0 ? `${query} looks at ${key} with ${format(weight)}.`
        : `${query} may not look at ${key}.`;
    }
    if (row) return `${query} looks at ${shares(keys, weights[row - 1])}.`;
    const line = weights.map((line) => line[column - 1]);
    if (column) return `${key} is looked at by ${shares(queries, line)}.`;
    return "Point at a token: a row shows where it looks, a column who looks at it.";
  };

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
    const values = maps[chosen.layer * sizes.head + chosen.head];
    const width = keys.length;
    weights = queries.map((_, i) => values.slice(i * width, (i + 1) * width));
    weights.forEach((line, i) => line.forEach((weight, j) => {
      const cell = grid[i + 1][j + 1];
      cell.classList.toggle("masked", isNaN(weight));
      cell.style.setProperty("--w", weight || 0);
      cell.textContent = isNaN(weight) ? "masked" : format(weight);
    }));
    for (const axis of table.querySelectorAll("caption b")) {
      axis.textContent = chosen[axis.className] + 1;
    }
    keep(kept);
  };

  const buttons = [...queries, ...keys].map((token) => {
    const button = make("button", { type: "button" }, ...token.childNodes);
    button.tabIndex = -1;
    token.append(button);
    return button;
  });
  buttons[0].tabIndex = 0;
  for (const axis of ["layer", "head"]) {
    if (sizes[axis] === 1) continue;
    const one = `${axis} ${Math.random()}`;  // radio buttons of one name are one choice
    const options = Array.from({ length: sizes[axis] }, (_, value) => {
      const checked = value === chosen[axis];
      const input = make("input", { type: "radio", name: one, value, checked });
      return make("label", {}, input, value + 1);
    });
    const choice = make("fieldset", {}, make("legend", {}, axis), ...options);
    choice.addEventListener("change", (event) => {
      chosen[axis] = Number(event.target.value);
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
    const to = line.includes(from) ? line.indexOf(from) + step : 0;
    const next = line[Math.max(0, Math.min(to, line.length - 1))].firstChild;
    for (const button of buttons) button.tabIndex = button === next ? 0 : -1;
    next.focus();
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
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Attention map</title>
<style>
:root {{ color-scheme: light dark; font-family: system-ui, sans-serif; }}
body {{ max-width: 52rem; margin: 2rem auto; padding: 0 1rem; }}
</style>
</head>
<body>
<main>
<h1>Attention map</h1>
{}
</main>
</body>
</html>
"""


def _check_rows(maps: Tensor, mask: Tensor, queries: Sequence[str]) -> None:
    """ValueError unless each row sums to one over the keys that it may look at."""
    sums = maps.masked_fill(~mask, 0.0).sum(dim=-1)
    must = mask.any(dim=-1).to(sums.dtype)
    wrong = (sums - must).abs() > 0.01 + 5e-5 * maps.shape[-1]
    if wrong.any():
        place, query = wrong.nonzero()[0].tolist()
        want, came = must[place, query].item(), sums[place, query].item()
        row = f"the row of query {query + 1}, {queries[query]!r}"
        raise ValueError(
            f"weights that a query may see must sum to {want:.0f}, "
            f"came {came:.4f} in {row}, of map {place + 1}"
        )


def explore(
    weights: Float[Tensor, "*heads num_queries num_keys"],
    queries: Sequence[str],
    keys: Sequence[str],
    *,
    mask: Bool[Tensor, "..."] | None = None,
    show: Sequence[int] = (),
    caption: str = "Rows are queries, columns are keys.",
) -> Explorer:
    """The attention map as an interactive table: choose a head, point at a token.

    `weights` may have an axis of heads in front, or of layers and heads. Each row sums
    to one over the keys that `mask` (True where a query may see a key) allows. At first
    the map `weights[show]` is in view.
    """
    maps, allowed = as_maps(weights, queries, keys, mask)
    _check_rows(maps, allowed, queries)
    sides = ([f"\u2068{_visible(token)}\u2069" for token in s] for s in (queries, keys))
    told = escape(describe(weights, *sides, mask=mask))
    words = describe(weights, queries, keys, mask=mask)
    texts = _texts(maps.tolist(), allowed.tolist())
    axes = (1, 1, *weights.shape[:-2])[-2:]
    place = _place(show, weights.shape[:-2])
    html = _html(texts, axes, place, queries, keys, escape(caption), told)
    return Explorer(html, words)


def _place(show: Sequence[int], axes: Sequence[int]) -> list[int]:
    """The layer and the head that are in view at first, counted from 0."""
    place = list(show) or [0] * len(axes)
    if len(place) != len(axes) or not all(
        0 <= n < size for n, size in zip(place, axes, strict=True)
    ):
        raise ValueError(f"show must be a place in {tuple(axes)}, came {tuple(show)}")
    return [0, 0, *place][-2:]


def _texts(weights: list | float, may: list | bool) -> list | str:
    """Weights with four decimals, or `masked`, in lists as nested as they came."""
    if isinstance(weights, list):
        return [_texts(*pair) for pair in zip(weights, may, strict=True)]
    return f"{weights:.4f}" if may else "masked"


def _html(
    texts: list[list[list[str]]],
    axes: Sequence[int],
    place: Sequence[int],
    queries: Sequence[str],
    keys: Sequence[str],
    caption: str,
    told: str,
) -> str:
    """The explorer: style, table, sentence, words and script."""
    shown = ", ".join(
        f'{axis} <b class="{axis}">{n + 1}</b> of {size}'
        for axis, n, size in zip(("layer", "head"), place, axes, strict=True)
        if size > 1
    )
    if shown:
        caption += f" In view: {shown}."
    caption += ' <span aria-hidden="true">0 <i></i> 1</span>'
    table = texts[place[0] * axes[1] + place[1]]
    weights = ";".join(" ".join(map(" ".join, text)) for text in texts)
    parts = [
        f'<div class="attention-explorer" data-weights="{weights}" '
        f'data-layer="{place[0]}" data-layers="{axes[0]}" '
        f'data-head="{place[1]}" data-heads="{axes[1]}">',
        f"<style>{_STYLE}</style>",
        f'<div class="room">{_table(table, queries, keys, caption)}</div>',
        "<output></output>",
        f"<details><summary>In words</summary><p>{told}</p></details>",
        f"<script>{_SCRIPT}</script>",
        "</div>",
    ]
    return "\n".join(parts)
