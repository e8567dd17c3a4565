"""The directive `{timetable}`: minutes for each chapter, and the companion's sections.

Minutes follow from the chapter's length, without its exercises; the sections are those
that its *Sources* name beside the companion's key.
"""

import re
from pathlib import Path

from docutils import nodes
from docutils.statemachine import StringList
from overview import cells, parts
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

WORDS, LINES = 200, 20  # a minute, of prose and of code in view
SECTIONS = re.compile(
    r"\{cite:p\}`raschka2024`,? sections? ([\d.]+(?:(?:,| and) [\d.]+)*)"
)
HIDDEN = {"hide-input", "hide-cell", "remove-input", "remove-cell"}


class Timetable(SphinxDirective):
    def run(self) -> list[nodes.Node]:
        root = Path(self.env.srcdir)
        rows = ["| chapter | minutes | companion |", "|---|--:|---|"]
        for caption, pages in parts(root):
            rows.append(f"| **{caption}** | | |")
            for page in pages:
                self.env.note_dependency(str(root / f"{page}.ipynb"))
                found = cells(root, page)
                told = " | ".join((str(minutes(found)), sections(found)))
                rows.append(f"| {{doc}}`/{page}` | {told} |")
        place = nodes.container()
        self.state.nested_parse(StringList(rows, "_toc.yml"), 0, place)
        return place.children


def minutes(chapter: list[dict]) -> int:
    """How long a chapter takes to read, up to its exercises, in steps of five."""
    words = lines = 0
    for cell in chapter:
        text = cell["source"]
        if text.startswith("## Exercises"):
            break
        if cell["cell_type"] == "markdown":
            words += len(text.split())
        elif not HIDDEN & set(cell["metadata"].get("tags", [])):
            lines += len(text.splitlines())
    return max(5, 5 * round((words / WORDS + lines / LINES) / 5))


def sections(chapter: list[dict]) -> str:
    """The companion's sections that a chapter goes with, as its sources name them."""
    found = SECTIONS.findall(chapter[-1]["source"])
    return ", ".join(dict.fromkeys(re.findall(r"\d+(?:\.\d+)+", " ".join(found))))


def setup(app: Sphinx) -> dict:
    app.add_directive("timetable", Timetable)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
