"""The directive `{overview}`: the path through the chapters, drawn.

Each chapter stands there with its first map, what it is about, the names that it adds
to the package and the chapters that its module builds on. All of it is written once
elsewhere: the order in `_toc.yml`, the lead sentence in the chapter's first cell, its
map in a stored output, names and imports in its module.
"""

import ast
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml
from docutils import nodes
from docutils.statemachine import StringList
from social_picture import Square, first_map
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

INK = "#5a62d8"  # of weights: a picture with other inks is no map
DOT = '<circle cx="50" cy="50" r="9"/>'


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
        drawn = glyph(first_map(root / f"{page}.ipynb"))
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


def parts(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Each part with its chapters: the notebooks of the book but for its reference."""
    for part in yaml.safe_load((root / "_toc.yml").read_text("utf-8"))["parts"]:
        pages = [page["file"] for page in part["chapters"]]
        pages = [page for page in pages if not page.startswith("book/reference/")]
        if pages := [page for page in pages if (root / f"{page}.ipynb").exists()]:
            yield part["caption"], pages


def entry(root: Path, page: str) -> Entry:
    """A chapter's lead sentence, and what its module adds and imports."""
    cell = json.loads((root / f"{page}.ipynb").read_text(encoding="utf-8"))["cells"][0]
    lines = "".join(cell["source"]).splitlines()
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
