"""Pictures that stand in two files show the same in both."""

import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
STATIC, SVG = ROOT / "book" / "_static", "{http://www.w3.org/2000/svg}"
sys.path.insert(0, str(ROOT / "book" / "_ext"))

import first_map  # noqa: E402


def test_the_picture_is_the_one_that_the_chapter_stores():
    picture = first_map.PICTURE.read_text(encoding="utf-8")
    assert picture == first_map.first_map(), "`make tangle` writes it anew"


def test_the_picture_is_described_in_the_chapters_words():
    _, words = first_map.stored()
    assert words in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_mark_in_previews_is_the_mark_of_the_site():
    drawing = ElementTree.parse(STATIC / "favicon.svg").getroot()
    squares = drawing.findall(f"{SVG}g/{SVG}rect")
    with Image.open(STATIC / "favicon.png") as file:
        picture = file.convert("RGB")
    scale = picture.width / 32
    assert len(squares) == 6
    for square in squares:
        left, top, width = (float(square.get(key)) for key in ("x", "y", "width"))
        middle = [round(scale * (corner + width / 2)) for corner in (left, top)]
        ink, share = (0x5A, 0x62, 0xD8), float(square.get("fill-opacity", 1))
        over_white = [255 + share * (part - 255) for part in ink]
        assert picture.getpixel(middle) == pytest.approx(over_white, abs=2)
