"""Every link inside the built book leads somewhere; what a page loads is there."""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "_build" / "html"
TOLD = re.findall(r"\bfile: *(\S+)", (ROOT / "_toc.yml").read_text())


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


@pytest.mark.parametrize("name", ["index", *TOLD, "search", "genindex"])
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
    for name in ["index", *TOLD, "search", "genindex"]:
        page = anchors[SITE / f"{name}.html"]
        assert [Path(icon).name for icon in page.icons] == ["favicon.svg"], name


def test_the_home_page_lies_at_the_sites_own_address_and_nowhere_else():
    pages = {page: page.read_text("utf-8") for page in SITE.rglob("*.html")}
    homes = [page for page, text in pages.items() if 'id="home-path"' in text]
    assert homes == [SITE / "index.html"]
    assert "http-equiv" not in pages[homes[0]]
