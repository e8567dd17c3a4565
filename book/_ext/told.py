"""Directives that tell of the chapters, in Markdown that is made of them.

What is stored in a chapter was computed by the package and is compared with a fresh run
whenever the book is verified, so a page that shows it needs no run of its own.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import exercises
import overview
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.errors import SphinxError
from sphinx.util.docutils import SphinxDirective

WORDS, LINES = 200, 20  # a minute, of prose and of code in view
HIDDEN = {"hide-input", "hide-cell", "remove-input", "remove-cell"}
SECTIONS = re.compile(
    r"\{cite:p\}`raschka2024`,? sections? ([\d.]+(?:(?:,| and) [\d.]+)*)"
)


def stored(root: Path, page: str, name: str) -> list[str]:
    """A cell's HTML as its chapter stores it."""
    for cell in overview.cells(root, page):
        if cell["id"] == name and cell.get("outputs"):
            html = "".join(cell["outputs"][-1].get("data", {})["text/html"])
            return ["```{raw} html", html, "```"]
    raise SphinxError(f"{page}: no cell {name!r} stores an output")


def timetable(root: Path) -> Iterator[str]:
    """Minutes for each chapter, and the companion's sections that it goes with."""
    yield from ("| chapter | minutes | companion |", "|---|--:|---|")
    for caption, pages in overview.parts(root):
        yield f"| **{caption}** | | |"
        for page in pages:
            found = overview.cells(root, page)
            yield f"| {{doc}}`/{page}` | {minutes(found)} | {sections(found)} |"


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


TELLERS = {
    "exercises": exercises.markdown,
    "overview": overview.markdown,
    "stored": stored,
    "timetable": timetable,
}


class Told(SphinxDirective):
    optional_arguments = 2

    def run(self) -> list[nodes.Node]:
        self.env.note_reread()  # in every build, for any chapter may have changed
        text = "\n".join(TELLERS[self.name](Path(self.env.srcdir), *self.arguments))
        return self.parse_text_to_nodes(text, allow_section_headings=True)


def setup(app: Sphinx) -> None:
    for name in TELLERS:
        app.add_directive(name, Told)
