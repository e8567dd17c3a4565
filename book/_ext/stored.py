"""The directive `{stored} <chapter> <cell>`: a cell's HTML as its chapter stores it.

What is stored was computed by the package and is compared with a fresh run whenever the
book is verified, so a page that shows it needs no run of its own.
"""

from pathlib import Path

from docutils import nodes
from overview import cells
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class Stored(SphinxDirective):
    required_arguments = 2

    def run(self) -> list[nodes.Node]:
        page, name = self.arguments
        root = Path(self.env.srcdir)
        self.env.note_dependency(str(root / f"{page}.ipynb"))
        for cell in cells(root, page):
            if cell["id"] == name and cell.get("outputs"):
                html = "".join(cell["outputs"][-1].get("data", {})["text/html"])
                return [nodes.raw("", html, format="html")]
        raise self.error(f"{page}: no cell {name!r} stores an output")


def setup(app: Sphinx) -> dict:
    app.add_directive("stored", Stored)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
