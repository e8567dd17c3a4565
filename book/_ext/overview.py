"""The directive `{overview}`: the path through the chapters, drawn.

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
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

sys.path.insert(0, str(Path(__file__).parents[1]))
import tangle

INK = "#5a62d8"  # of weights: a picture with other inks is no map
DOT = '<circle cx="50" cy="50" r="9"/>'
FEWEST = 9  # squares that make a map

Square = tuple[float, float, float, float, str, float]
PATH = re.compile(
    r'<path d="M ([\d.]+) ([\d.]+) L [\d. ]+ L ([\d.]+) ([\d.]+) L [\d. ]+ z "'
    r' clip-path="([^"]*)" style="fill: (#[0-9a-f]{6})(?:; opacity: ([\d.]+))?"'
)


@cache
def cells(root: Path, page: str) -> list[dict]:
    """The cells of a chapter, each source as one string."""
    return tangle.load(root / f"{page}.ipynb", root)["cells"]


def filled(svg: str) -> list[Square]:
    """The filled cells of the first map that matplotlib drew: corners, ink, opacity."""
    maps = {}  # by the frame that cuts them off
    for *corners, frame, ink, opacity in PATH.findall(" ".join(svg.split())):
        square = (*map(float, corners), ink, float(opacity or 1))
        maps.setdefault(frame, []).append(square)
    return next((found for found in maps.values() if len(found) >= FEWEST), [])


def first_map(root: Path, page: str) -> list[Square]:
    """The squares of the first map that a chapter stores; none without one."""
    return next(filter(None, map(filled, pictures(root, page))), [])


def pictures(root: Path, page: str) -> Iterator[str]:
    for cell in cells(root, page):
        for output in cell.get("outputs", []):
            yield "".join(output.get("data", {}).get("image/svg+xml", ""))


class Overview(SphinxDirective):
    def run(self) -> list[nodes.Node]:
        root = Path(self.env.srcdir)
        found = []
        for caption, pages in parts(root):
            stations = [self.station(root, page) for page in pages]
            part = nodes.section("", nodes.title("", caption), classes=["part"])
            part += nodes.enumerated_list("", *stations, classes=["path"])
            part["names"].append(nodes.fully_normalize_name(caption))
            self.state.document.note_implicit_target(part, part)
            found.append(part)
        return found

    def station(self, root: Path, page: str) -> nodes.list_item:
        """A chapter on the path."""
        self.env.note_dependency(str(root / f"{page}.ipynb"))
        drawn = glyph(first_map(root, page))
        item = nodes.list_item("", nodes.raw("", drawn, format="html"))
        text = entry(root, page).lines()
        self.state.nested_parse(StringList(text, "_toc.yml"), 0, item)
        return item


def address(name: str, public: list[str]) -> str:
    """Where the reference tells of a public name; addresses do not tell A from a."""
    same = name != name.lower() and name.lower() in public
    return f"api-{name}-class" if same else f"api-{name}"


@dataclass
class Entry:
    """What the path says of a chapter."""

    page: str
    lead: str
    names: list[str]
    public: list[str]
    bases: list[str]

    def lines(self) -> list[str]:
        """As Markdown: the title's link, the lead, and what the package gains."""
        names = [
            f"[`{name}`](#{address(name, self.public)})"
            if name in self.public
            else f"`{name}`"
            for name in self.names
        ]
        bases = [f"{{doc}}`/{base}`" for base in self.bases]
        said = [f"adds {', '.join(names)}"] if names else []
        said += [f"builds on {', '.join(bases)}"] if bases else []
        return [f"{{doc}}`/{self.page}`", "", self.lead, "", " · ".join(said)]


def parts(root: Path) -> list[tuple[str, list[str]]]:
    """Each part with its chapters: the notebooks of the book but for its reference."""
    found = defaultdict(list)
    for name, caption in tangle.contents(root).items():
        page = f"book/{name}"
        if not name.startswith("reference/") and (root / f"{page}.ipynb").exists():
            found[caption].append(page)
    return list(found.items())


def entry(root: Path, page: str) -> Entry:
    """A chapter's lead sentence, and what its module adds and imports."""
    lines = cells(root, page)[0]["source"].splitlines()
    lead = " ".join(line.lstrip("> ") for line in lines if line.startswith(">"))
    module = root / f"{page.replace('book/', 'attention/', 1)}.py"
    names, public = exported(module), exported(root / "attention" / "__init__.py")
    names = [name for name in names if name in public] or names
    return Entry(page, lead, names, public, imported(module))


def exported(module: Path) -> list[str]:
    """What `__all__` lists in `module`; nothing where a chapter writes no module."""
    for node in statements(module):
        match node:
            case ast.Assign(targets=[ast.Name(id="__all__")], value=value):
                return ast.literal_eval(value)
    return []


# What nearly every module imports, and no chapter's idea stands on.
ASIDE = "book/tools/"


def imported(module: Path) -> list[str]:
    """The chapters whose modules `module` imports, in its order, but for tools."""
    bases = [
        node.module.replace("attention.", "book/", 1).replace(".", "/")
        for node in statements(module)
        if isinstance(node, ast.ImportFrom) and node.module.startswith("attention.")
    ]
    return [base for base in bases if not base.startswith(ASIDE)]


def statements(module: Path) -> list[ast.stmt]:
    return ast.parse(module.read_text("utf-8")).body if module.exists() else []


def glyph(cells: list[Square]) -> str:
    """A chapter's first map, small and without words; a dot where it draws none."""
    is_map = {cell[4] for cell in cells} == {INK}
    kind, drawn = ("glyph", squares(cells)) if is_map else ("glyph dot", DOT)
    return f'<svg class="{kind}" viewBox="0 0 100 100" aria-hidden="true">{drawn}</svg>'


def squares(cells: list[Square]) -> str:
    """The cells of a map, scaled to fit: one path for each opacity, in steps of 5 %."""
    low = [min(min(cell[k], cell[k + 2]) for cell in cells) for k in (0, 1)]
    high = [max(max(cell[k], cell[k + 2]) for cell in cells) for k in (0, 1)]
    sides = [b - a for a, b in zip(low, high, strict=True)]
    scale, paths = 100 / max(sides), defaultdict(str)
    margin = [(100 - scale * side) / 2 for side in sides]
    for *corners, _, opacity in cells:
        x, y = (
            margin[k] + scale * (min(corners[k], corners[k + 2]) - low[k])
            for k in (0, 1)
        )
        width, height = (scale * abs(corners[k + 2] - corners[k]) for k in (0, 1))
        paths[round(20 * opacity)] += (
            f"M{x:.3g} {y:.3g}h{width:.3g}v{height:.3g}h-{width:.3g}z"
        )
    width, height = (scale * side for side in sides)
    frame = f"M{margin[0]:.3g} {margin[1]:.3g}h{width:.3g}v{height:.3g}h-{width:.3g}z"
    paths[1] = frame + paths[1]
    return "".join(
        f'<path fill-opacity="{steps / 20:g}" d="{paths[steps]}"/>'
        for steps in sorted(paths)
        if steps
    )


def setup(app: Sphinx) -> dict:
    app.add_directive("overview", Overview)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
