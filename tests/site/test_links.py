"""Every link inside the built book leads somewhere; what a page loads is there."""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "_build" / "html"
TOLD = re.findall(r"\b(?:root|file): *(\S+)", (ROOT / "_toc.yml").read_text())


class Anchors(HTMLParser):
    """The ids of a page, and all that it links to or loads."""

    def __init__(self, page: Path):
        super().__init__()
        self.ids, self.links, self.icons = set(), [], []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.ids.add(attributes.get("id"))
        self.links += filter(None, (attributes.get("href"), attributes.get("src")))
        if attributes.get("rel") == "icon":
            self.icons.append(attributes["href"])


@pytest.fixture(scope="module")
def anchors() -> dict[Path, Anchors]:
    return {page: Anchors(page) for page in SITE.rglob("*.html")}


@pytest.mark.parametrize("name", [*TOLD, "search", "genindex"])
def test_every_link_inside_the_book_leads_somewhere(name: str, anchors):
    page = SITE / f"{name}.html"
    broken = []
    for link in anchors[page].links:
        address = urlsplit(link)
        if address.scheme or address.netloc:
            continue
        target = (page.parent / unquote(address.path)) if address.path else page
        target = target.resolve()
        known = anchors[target].ids if target in anchors else set()
        if not target.exists() or (address.fragment and address.fragment not in known):
            broken.append(link)
    assert broken == []


def test_every_page_has_the_books_icon(anchors):
    for name in [*TOLD, "search", "genindex"]:
        page = anchors[SITE / f"{name}.html"]
        assert [Path(icon).name for icon in page.icons] == ["favicon.svg"], name


def test_the_front_door_leads_to_the_first_page():
    door = (SITE / "index.html").read_text()
    assert f"{TOLD[0]}.html" in door
