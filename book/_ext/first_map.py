"""The book's first attention map, as the file that README shows.

    python book/_ext/first_map.py    write book/_static/first-map.svg

The picture is the stored output of the first map's cell, on white paper: GitHub shows
it on a dark page too.
"""

import re
import sys
from pathlib import Path

BOOK = Path(__file__).parents[1]
sys.path.insert(0, str(BOOK))

import tangle  # noqa: E402

CHAPTER = BOOK / "idea" / "attention_map.ipynb"
PICTURE = BOOK / "_static" / "first-map.svg"
NAME = "fig-first-map"
PAPER = '<rect width="100%" height="100%" rx="4" fill="#ffffff"/>'


def stored() -> tuple[str, str]:
    """The map as its chapter stores it, and what it shows in words."""
    for cell in tangle.load(CHAPTER)["cells"]:
        figure = cell["metadata"].get("mystnb", {}).get("figure", {})
        if figure.get("name") == NAME and cell["outputs"]:
            data = cell["outputs"][-1]["data"]
            return "".join(data["image/svg+xml"]), "".join(data["text/plain"])
    raise SystemExit(f"{CHAPTER}: a cell with figure name {NAME!r} must hold a picture")


def first_map() -> str:
    """The stored map on white paper."""
    svg, _ = stored()
    return re.sub(r"<svg[^>]*>", rf"\g<0>\n {PAPER}", svg, count=1)


if __name__ == "__main__":
    PICTURE.write_text(first_map(), encoding="utf-8")
