"""The book's first attention map, as the file that README shows.

    python book/_ext/first_map.py    write book/_static/first-map.svg

The picture is the stored output of the first map's cell, on white paper: GitHub shows
it on a dark page too.
"""

import re
from pathlib import Path

from overview import cells

ROOT = Path(__file__).parents[2]
CHAPTER, CELL = "book/idea/attention_map", "map"
PICTURE = ROOT / "book/_static/first-map.svg"
PAPER = '<rect width="100%" height="100%" rx="4" fill="#ffffff"/>'


def stored() -> tuple[str, str]:
    """The map as its chapter stores it, and what it shows in words."""
    (cell,) = (cell for cell in cells(ROOT, CHAPTER) if cell["id"] == CELL)
    data = cell["outputs"][-1]["data"]
    return "".join(data["image/svg+xml"]), "".join(data["text/plain"])


def first_map() -> str:
    """The stored map on white paper."""
    svg, _ = stored()
    return re.sub(r"<svg[^>]*>", rf"\g<0>\n {PAPER}", svg, count=1)


if __name__ == "__main__":
    PICTURE.write_text(first_map(), encoding="utf-8")
