"""Warnings name a notebook's cell, and two faults of a cell are warnings.

MyST-NB counts 10000 lines a cell: `masks.ipynb:70004` is told as `masks.ipynb: cell
padding, line 3`. A picture without alt text and a line of code that the page would cut
are told like a broken link; the book is built with warnings as errors.
"""

import json
import logging
import re
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.logging import SphinxLogRecordTranslator, getLogger

logger = getLogger(__name__)

CELL = 10_000
FIRST = 2  # what MyST-NB calls a cell's first line
WIDTH = 88


class NameCell(logging.Filter):
    """Says in which cell of a notebook a message's place is."""

    def filter(self, record: logging.LogRecord) -> bool:
        place = getattr(record, "location", None) or ""
        if found := re.fullmatch(r"(.+\.ipynb):(\d{5,})", place):
            path, count = found[1], int(found[2])
            cell = json.loads(Path(path).read_text("utf-8"))["cells"][count // CELL - 1]
            line = max(count % CELL - FIRST, 0) + 1
            record.location = f"{path}: cell {cell['id']}, line {line}"
        return True


def place(path: str, cell: int, line: int = 0) -> str:
    """Line and cell, both counted from 0, as MyST-NB says them."""
    return f"{path}:{(cell + 1) * CELL + line + FIRST}"


def long_lines(app: Sphinx, docname: str, source: list[str]) -> None:
    """Tell of each line of code that is wider than a page shows."""
    path = app.env.doc2path(docname)
    if not path.endswith(".ipynb"):
        return
    for index, cell in enumerate(json.loads(source[0])["cells"]):
        code = "".join(cell["source"]) if cell["cell_type"] == "code" else ""
        for number, line in enumerate(code.splitlines()):
            if len(line) > WIDTH:
                logger.warning(
                    "a line of code has %d characters: %d fit the page",
                    *(len(line), WIDTH),
                    location=place(path, index, number),
                )


def undescribed(app: Sphinx, doctree: nodes.document) -> None:
    """Tell of each picture that says nothing to those who do not see it."""
    for picture in doctree.findall(nodes.image):
        if not picture.get("alt", "").strip():
            logger.warning("a picture has no alt text", location=origin(picture))


def origin(node: nodes.Node) -> str | None:
    """The place of the nearest node that knows its own."""
    while node is not None:
        if isinstance(node, nodes.container) and "cell_index" in node:
            return place(node.document["source"], node["cell_index"])
        if node.line:
            return f"{node.document['source']}:{node.line}"
        node = node.parent


def setup(app: Sphinx) -> None:
    app.connect("source-read", long_lines)
    app.connect("doctree-read", undescribed)
    for handler in logging.getLogger("sphinx").handlers:
        for index, found in enumerate(handler.filters):
            if isinstance(found, SphinxLogRecordTranslator):
                handler.filters.insert(index + 1, NameCell())
                break
