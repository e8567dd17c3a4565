"""README shows the first map as its chapter stores it."""

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]
FIRST_MAP = runpy.run_path(str(ROOT / "book" / "_ext" / "first_map.py"))


def test_the_picture_is_the_one_that_the_chapter_stores():
    picture = FIRST_MAP["PICTURE"].read_text(encoding="utf-8")
    assert picture == FIRST_MAP["first_map"](), "`make tangle` writes it anew"


def test_the_picture_is_described_in_the_chapters_words():
    _, words = FIRST_MAP["stored"]()
    assert words in (ROOT / "README.md").read_text(encoding="utf-8")
