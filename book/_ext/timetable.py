"""What `{timetable}` shows: minutes for each chapter, and the companion's sections.

Minutes follow from the chapter's length, without its exercises; the sections are those
that its *Sources* name beside the companion's key.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from overview import cells, parts

WORDS, LINES = 200, 20  # a minute, of prose and of code in view
SECTIONS = re.compile(
    r"\{cite:p\}`raschka2024`,? sections? ([\d.]+(?:(?:,| and) [\d.]+)*)"
)
HIDDEN = {"hide-input", "hide-cell", "remove-input", "remove-cell"}


def markdown(root: Path) -> Iterator[str]:
    yield from ("| chapter | minutes | companion |", "|---|--:|---|")
    for caption, pages in parts(root):
        yield f"| **{caption}** | | |"
        for page in pages:
            found = cells(root, page)
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
