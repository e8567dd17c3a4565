"""Warnings name a notebook's cell, and a picture without alt text is one.

MyST-NB counts 10000 lines a cell: `masks.ipynb:70004` is told as `masks.ipynb: cell
padding, line 3`. The book is built with warnings as errors.
"""

import json
import logging
import re
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.logging import getLogger

logger = getLogger(__name__)

CELL = 10_000
FIRST = 2  # what MyST-NB calls a cell's first line


def name_cell(record: logging.LogRecord) -> bool:
    """Say in which cell of a notebook a message's place is."""
    place = getattr(record, "location", None) or ""
    if found := re.fullmatch(r"(.+\.ipynb):(\d{5,})", place):
        path, count = found[1], int(found[2])
        cell = json.loads(Path(path).read_text("utf-8"))["cells"][count // CELL - 1]
        line = max(count % CELL - FIRST, 0) + 1
        record.location = f"{path}: cell {cell['id']}, line {line}"
    return True


def undescribed(app: Sphinx, doctree: nodes.document) -> None:
    """Tell of each picture that says nothing to those who do not see it."""
    for picture in doctree.findall(nodes.image):
        if not picture.get("alt", "").strip():
            logger.warning("a picture has no alt text", location=origin(picture))


def origin(node: nodes.Node) -> str | None:
    """The place of the nearest node that knows its own."""
    while node is not None:
        if isinstance(node, nodes.container) and "cell_index" in node:
            first = (node["cell_index"] + 1) * CELL + FIRST
            return f"{node.document['source']}:{first}"
        if node.line:
            return f"{node.document['source']}:{node.line}"
        node = node.parent


def setup(app: Sphinx) -> None:
    app.connect("doctree-read", undescribed)
    for handler in logging.getLogger("sphinx").handlers:
        handler.addFilter(name_cell)  # after Sphinx's, which say the place in words
