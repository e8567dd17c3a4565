"""README and home page show the first map as its chapter stores it."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FIRST_MAP = runpy.run_path(str(ROOT / "book" / "_ext" / "first_map.py"))


def test_the_picture_is_the_one_that_the_chapter_stores():
    picture = FIRST_MAP["PICTURE"].read_text(encoding="utf-8")
    assert picture == FIRST_MAP["first_map"](), "`make tangle` writes it anew"


@pytest.mark.parametrize("page", ["README.md", "book/index.md"])
def test_the_picture_is_described_in_the_chapters_words(page):
    _, words = FIRST_MAP["stored"]()
    assert words in (ROOT / page).read_text(encoding="utf-8")
