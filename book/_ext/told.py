"""Directives that tell of the chapters, in Markdown that is made of them.

What is stored in a chapter was computed by the package and is compared with a fresh run
whenever the book is verified, so a page that shows it needs no run of its own.
"""

from pathlib import Path

import exercises
import overview
import tangle
import timetable
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.errors import SphinxError
from sphinx.util.docutils import SphinxDirective


def stored(root: Path, page: str, name: str) -> list[str]:
    """A cell's HTML as its chapter stores it."""
    for cell in overview.cells(root, page):
        if cell["id"] == name and cell.get("outputs"):
            html = "".join(cell["outputs"][-1].get("data", {})["text/html"])
            return ["```{raw} html", html, "```"]
    raise SphinxError(f"{page}: no cell {name!r} stores an output")


TELLERS = {
    "exercises": exercises.markdown,
    "overview": overview.markdown,
    "stored": stored,
    "timetable": timetable.markdown,
}


class Told(SphinxDirective):
    optional_arguments = 2

    def run(self) -> list[nodes.Node]:
        root = Path(self.env.srcdir)
        for page in tangle.contents(root):
            self.env.note_dependency(str(root / "book" / f"{page}.ipynb"))
        text = "\n".join(TELLERS[self.name](root, *self.arguments))
        return self.parse_text_to_nodes(text, allow_section_headings=True)


def setup(app: Sphinx) -> None:
    for name in TELLERS:
        app.add_directive(name, Told)
