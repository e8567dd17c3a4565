"""The directive `{stored} <chapter> <cell>`: a cell's HTML as its chapter stores it.

What is stored was computed by the package and is compared with a fresh run whenever the
book is verified, so a page that shows it needs no run of its own.
"""

import json
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class Stored(SphinxDirective):
    required_arguments = 2

    def run(self) -> list[nodes.Node]:
        page, name = self.arguments
        chapter = Path(self.env.srcdir, f"{page}.ipynb")
        self.env.note_dependency(str(chapter))
        try:
            return [nodes.raw("", stored(chapter, name), format="html")]
        except LookupError as error:
            raise self.error(str(error)) from None


def stored(chapter: Path, name: str) -> str:
    """The HTML of a cell's last output; LookupError where there is none."""
    cells = json.loads(chapter.read_text("utf-8"))["cells"]
    for cell in cells:
        if cell["id"] == name and cell.get("outputs"):
            return "".join(cell["outputs"][-1].get("data", {})["text/html"])
    raise LookupError(f"{chapter.name}: no cell {name!r} stores an output")


def setup(app: Sphinx) -> dict:
    app.add_directive("stored", Stored)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
