"""The path through the chapters, as Markdown: what `{overview}` shows on the home page.

Each chapter stands there with its first map, what it is about, the names that it adds
to the package and the chapters that its module builds on. All of it is written once
elsewhere: the order in `_toc.yml`, the lead sentence in the chapter's first cell, its
map in a stored output, names and imports in its module.
"""

import ast
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import tangle

INK = "#5a62d8"  # of weights: a picture with other inks is no map
GLYPH = '<svg class="{}" viewBox="{}" aria-hidden="true">{}</svg>'
DOT = GLYPH.format("glyph dot", "0 0 100 100", '<circle cx="50" cy="50" r="9"/>')
FEWEST = 6  # squares that make a map: two queries, three keys
ASIDE = "book/tools/"  # no idea stands on them, and nearly every module imports them

Square = tuple[float, float, float, float, str, float]
PATH = re.compile(
    r'<path d="M ([\d.]+) ([\d.]+) L [\d. ]+ L ([\d.]+) ([\d.]+) L [\d. ]+ z "'
    r' clip-path="([^"]*)" style="fill: (#[0-9a-f]{6})(?:; opacity: ([\d.]+))?"'
)


@cache
def cells(root: Path, page: str) -> list[dict]:
    """The cells of a chapter, each source as one string."""
    return tangle.load(root / f"{page}.ipynb", root)["cells"]


def parts(root: Path) -> list[tuple[str, list[str]]]:
    """Each part with its chapters: the notebooks of the book but for its reference."""
    found = defaultdict(list)
    for name, caption in tangle.contents(root).items():
        page = f"book/{name}"
        if not name.startswith("reference/") and (root / f"{page}.ipynb").exists():
            found[caption].append(page)
    return list(found.items())


def markdown(root: Path) -> Iterator[str]:
    for caption, pages in parts(root):
        yield from (f"### {caption}", "", "```{rst-class} path", "```", "")
        for page in pages:
            first, *lines = station(root, page)
            yield from (f"1. {first}", *(f"   {line}" for line in lines), "")


def station(root: Path, page: str) -> list[str]:
    """A chapter on the path: its map, its title, its lead, what the package gains."""
    module = root / f"{page.replace('book/', 'attention/', 1)}.py"
    names, public = exported(module), exported(root / "attention" / "__init__.py")
    names = [name for name in names if name in public] or names
    links = [
        f"[`{name}`](#{address(name, public)})" if name in public else f"`{name}`"
        for name in names
    ]
    bases = [f"{{doc}}`/{base}`" for base in imported(module)]
    said = [f"adds {', '.join(links)}"] if links else []
    said += [f"builds on {', '.join(bases)}"] if bases else []
    lead = tangle.read_chapter(root, page.removeprefix("book/")).lead
    drawn = ["```{raw} html", glyph(first_map(root, page)), "```"]
    return [*drawn, f"{{doc}}`/{page}`", "", lead, "", " · ".join(said)]


def address(name: str, public: list[str]) -> str:
    """Where the reference tells of a public name; addresses do not tell A from a."""
    same = name != name.lower() and name.lower() in public
    return f"api-{name}-class" if same else f"api-{name}"


def exported(module: Path) -> list[str]:
    """What `__all__` lists in `module`; nothing where a chapter writes no module."""
    found = re.search(r"(?ms)^__all__ = (\[.*?\])", text(module))
    return ast.literal_eval(found[1]) if found else []


def imported(module: Path) -> list[str]:
    """The chapters whose modules `module` imports, in its order, but for tools."""
    names = re.findall(r"(?m)^from attention\.(\S+) import", text(module))
    bases = [f"book/{name.replace('.', '/')}" for name in names]
    return [base for base in dict.fromkeys(bases) if not base.startswith(ASIDE)]


def text(module: Path) -> str:
    return module.read_text("utf-8") if module.exists() else ""


# The maps


def first_map(root: Path, page: str) -> list[Square]:
    """The squares of the first map that a chapter stores; none without one."""
    outputs = [o for cell in cells(root, page) for o in cell.get("outputs", [])]
    stored = (output.get("data", {}).get("image/svg+xml", "") for output in outputs)
    return next(filter(None, map(filled, map("".join, stored))), [])


def filled(svg: str) -> list[Square]:
    """The filled cells of the first map that matplotlib drew: corners, ink, opacity."""
    maps = defaultdict(list)  # by the frame that cuts them off
    for *corners, frame, ink, opacity in PATH.findall(" ".join(svg.split())):
        maps[frame].append((*map(float, corners), ink, float(opacity or 1)))
    return next((found for found in maps.values() if len(found) >= FEWEST), [])


def glyph(cells: list[Square]) -> str:
    """A chapter's first map, without words, in steps of 5 %; a dot if it has none."""
    if {ink for *_, ink, _ in cells} != {INK}:
        return DOT
    xs, ys = ([cell[k] for cell in cells for k in (a, a + 2)] for a in (0, 1))
    left, top, right, bottom = min(xs), min(ys), max(xs), max(ys)
    paths = defaultdict(str, {1: rectangle(left, top, right, bottom)})
    for *corners, _, opacity in cells:
        paths[round(20 * opacity)] += rectangle(*corners)
    paths.pop(0, None)
    steps = [f'<path fill-opacity="{n / 20:g}" d="{paths[n]}"/>' for n in sorted(paths)]
    box = f"{left:g} {top:g} {right - left:g} {bottom - top:g}"
    return GLYPH.format("glyph", box, "".join(steps))


def rectangle(x: float, y: float, across: float, down: float) -> str:
    return f"M{x:.4g} {y:.4g}H{across:.4g}V{down:.4g}H{x:.4g}z"
