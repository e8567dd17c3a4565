"""What must stay true of the built pages, opened in a browser from a folder."""

import gzip
import json
import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from visits import ROOT, VIEWS, Visit

# Compressed, with formulas, fonts and icons; one page holds two large explorers, and
# one the maps of all 270 heads of a model.
MOST_REQUESTS, MOST_BYTES = 8, 110_000
WITH_EXPLORERS = {"book/reading/translator": 130_000, "book/reading/heads": 115_000}
INDEX = "search-index.js"  # grows with the book, and only the search page asks for it


def weight(address: str) -> int:
    """The bytes of a file as a server compresses it."""
    file = Path(unquote(urlsplit(address).path))
    return len(gzip.compress(file.read_bytes()))


def lines(text: str, pattern: str) -> list[str]:
    """Those in which the pattern is found."""
    return [line for line in text.splitlines() if re.search(pattern, line)]


@pytest.fixture
def look(visit: Visit) -> dict:
    """What does not change with the view."""
    return visit.looks[VIEWS[0]]


def test_a_page_asks_no_other_host(visit: Visit):
    assert [u for u in visit.requests if not u.startswith(("file:", "data:"))] == []


def test_a_page_opens_without_an_error(visit: Visit):
    assert visit.failed == []
    assert visit.errors == []


def test_a_page_follows_the_readers_theme(visit: Visit):
    for (_, theme), seen in visit.looks.items():
        assert seen["theme"] == theme


def test_a_page_never_scrolls_sideways(visit: Visit):
    assert {view: seen["overflow"] for view, seen in visit.looks.items()} == (
        dict.fromkeys(VIEWS, 0)
    )


def test_on_a_desktop_no_line_that_was_printed_is_cut_off(visit: Visit):
    assert visit.looks[1280, "light"]["cut"] == []


def test_a_formula_is_whole_on_a_phone(visit: Visit):
    assert visit.looks[390, "light"]["wide"] == []


def test_every_formula_is_rendered(look: dict):
    assert look["rendered"] == look["formulas"]
    assert look["invisible"] == []
    assert look["gaps"] == []


def test_no_page_shows_raw_tex(look: dict):
    assert lines(look["prose"], r"\$|\\[(\[]|\\[a-zA-Z]+|\b[a-zA-Z][_^]\{") == []
    assert [symbol for symbol in look["symbols"] if re.search(r"[\\$^_]", symbol)] == []


def test_no_line_begins_with_a_unit_or_with_the_comma_after_a_formula(look: dict):
    assert lines(look["lines"], r"\d (?:%|[kMGT]B\b|· \d)") == []
    assert look["loose"] == []


def test_every_symbol_is_in_the_books_own_font(visit: Visit):
    assert visit.fonts <= {("STIX Two Math", True)}


def test_every_picture_is_described(look: dict):
    assert look["undescribed"] == []


def test_a_pictures_ink_is_the_colour_of_the_text(visit: Visit):
    for seen in visit.looks.values():
        for ink, text in seen["inks"]:
            assert ink == text


def test_no_picture_brings_white_paper(visit: Visit):
    for seen in visit.looks.values():
        assert seen["papers"] == []


def test_no_table_brings_paper_of_its_own(visit: Visit):
    for seen in visit.looks.values():
        assert seen["sheets"] == []


def test_the_cells_of_the_package_say_so(visit: Visit):
    chapter = ROOT / f"{visit.name}.ipynb"
    cells = json.loads(chapter.read_text())["cells"] if chapter.exists() else []
    exported = [c for c in cells if "export" in c["metadata"].get("tags", [])]
    for seen in visit.looks.values():
        assert seen["marks"] == ["in the package"] * len(exported)


def test_a_page_is_light(visit: Visit):
    files = [ask for ask in visit.requests if ask.startswith("file:")]
    assert len(files) <= MOST_REQUESTS, files
    weights = {ask: weight(ask) for ask in files if INDEX not in ask}
    most = WITH_EXPLORERS.get(visit.name, MOST_BYTES)
    assert sum(weights.values()) <= most, weights
