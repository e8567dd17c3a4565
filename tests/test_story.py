"""The way through the book is short to the point, and its timetable is true."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "book"), str(ROOT / "book" / "_ext")]

import tangle  # noqa: E402
from told import minutes, sections  # noqa: E402


def cells(page: str) -> list[dict]:
    path = ROOT / f"book/{page}.ipynb"
    return tangle.load(path, ROOT)["cells"] if path.exists() else []


def test_a_reader_meets_the_first_dot_product_within_2500_words():
    told = len((ROOT / "book/index.md").read_text("utf-8").split())
    for page in tangle.contents(ROOT):
        for cell in cells(page):
            if cell["cell_type"] == "markdown":
                told += len(cell["source"].split())
            if "[**dot product**]" in cell["source"]:
                assert told <= 2500, f"{told} words, home page included"
                return
    pytest.fail("no chapter explains the dot product: [**dot product**](#term-…)")


def test_minutes_count_prose_and_code_in_view_up_to_the_exercises():
    word = {"cell_type": "markdown", "source": "word " * 1000, "metadata": {}}
    line = {"cell_type": "code", "source": "line\n" * 100, "metadata": {}}
    folded = line | {"metadata": {"tags": ["hide-input"]}}
    end = {"cell_type": "markdown", "source": "## Exercises", "metadata": {}}
    assert minutes([]) == 5
    assert minutes([word]) == 5
    assert minutes([word, word, line, folded, end, word, word]) == 15


def test_the_timetable_names_the_sections_that_the_sources_name():
    def read(text):
        return sections([{"source": text}])

    cite = "{cite:p}`raschka2024`"
    assert (
        read(f"* S. Raschka {cite}, sections 3.3.1, 3.4 and 3.5.") == "3.3.1, 3.4, 3.5"
    )
    assert read(f"* S. Raschka {cite}, section 4.6: sizes; section 5.5") == "4.6"
    assert read("* S. Raschka {cite:p}`raschka2023`, section 7.1") == ""


@pytest.mark.parametrize("page", ["idea/simple", "core/causal", "core/multi_head"])
def test_a_chapter_that_follows_the_companion_says_which_section(page):
    assert re.fullmatch(r"3\.\d", sections(cells(page)))
