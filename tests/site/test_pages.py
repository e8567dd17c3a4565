"""What must stay true of the built pages, opened in a browser from a folder."""

import gzip
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from playwright.sync_api import Browser, Page

ROOT = Path(__file__).parents[2]
SITE = ROOT / "_build" / "html"
TOLD = re.findall(r"\b(?:root|file): *(\S+)", (ROOT / "_toc.yml").read_text())
PAGES = [*TOLD, "search", "genindex", "404"]
# Compressed, with formulas, fonts and icons: 90 kB, and room for one large explorer.
MOST_REQUESTS, MOST_BYTES = 10, 120_000
INDEX = "search-index.js"  # grows with the book, and only the search page asks for it
VIEWS = [(width, theme) for width in (390, 1280) for theme in ("light", "dark")]


@dataclass
class Visit:
    """One page, how it looks in each view, and what the browser said of it."""

    page: str
    looks: dict = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    fonts: set[tuple[str, bool]] = field(default_factory=set)


LOOK = """async () => {
    await document.fonts.ready;
    await new Promise(requestAnimationFrame);  // the theme hears of the new colours
    const all = (selector) => [...document.querySelectorAll(selector)];
    const prose = (document.querySelector("article") ?? document.body).cloneNode(true);
    prose.querySelectorAll("pre, code, script, math").forEach(e => e.remove());
    const box = (e) => e.getBoundingClientRect();
    return {
        theme: getComputedStyle(document.documentElement).colorScheme,
        overflow: document.documentElement.scrollWidth - innerWidth,
        prose: prose.textContent,
        formulas: all(".math").length,
        rendered: all(".math:has(> math)").length,
        invisible: all("math").filter(e => box(e).width * box(e).height === 0)
            .filter(e => e.checkVisibility()).map(e => e.outerHTML),
        symbols: all("math :not(:has(*))").map(e => e.textContent),
        // Chromium keeps space for the widest root that a font holds.
        gaps: all("msqrt").map(e => box(e).right - box(e.lastElementChild).right)
            .filter(gap => Math.abs(gap) > 2),
        undescribed: all("img, [role=img], article svg")
            .filter(e => !e.closest("button, [aria-hidden=true]"))
            .filter(e => !(e.alt || e.getAttribute("aria-label")))
            .map(e => e.outerHTML.slice(0, 200)),
        inks: all(".picture svg").map(e => [
            getComputedStyle(e).fill, getComputedStyle(e.parentNode).color]),
        papers: all(".picture svg :not(text, tspan)")
            .filter(e => e.closest("defs") === null)
            .filter(e => getComputedStyle(e).fill === "rgb(255, 255, 255)")
            .map(e => e.outerHTML.slice(0, 200)),
        sheets: all(".text_html")
            .map(e => getComputedStyle(e).backgroundColor)
            .filter(color => color !== "rgba(0, 0, 0, 0)"),
        // Folded code says it on the line that unfolds it.
        marks: all(".tag_export .cell_input").map(e => {
            const fold = e.closest("details:not([open])")?.querySelector("summary");
            return fold ? getComputedStyle(fold, "::after").content.replaceAll('"', "")
                : e.querySelector(".in-package").innerText.slice(0, 14);
        }),
    };
}"""


@pytest.fixture(scope="module", params=PAGES)
def visit(request, browser: Browser, read) -> Visit:
    seen = Visit(request.param)
    page = browser.new_page()
    page.on("request", lambda asked: seen.requests.append(asked.url))
    page.on("requestfailed", lambda asked: seen.failed.append(asked.url))
    page.on("pageerror", lambda error: seen.errors.append(str(error)))
    page.on(
        "console",
        lambda said: seen.errors.append(said.text) if said.type == "error" else None,
    )
    read(page, (SITE / f"{seen.page}.html").as_uri())
    for width, theme in VIEWS:
        page.set_viewport_size({"width": width, "height": 844})
        page.emulate_media(color_scheme=theme)
        seen.looks[width, theme] = page.evaluate(LOOK)
    seen.fonts = fonts_of_formulas(page)
    page.close()
    return seen


def fonts_of_formulas(page: Page) -> set[tuple[str, bool]]:
    """The fonts that the browser draws symbols with; True: one that the page brings."""
    browser = page.context.new_cdp_session(page)
    browser.send("DOM.enable")
    browser.send("CSS.enable")
    root = browser.send("DOM.getDocument")["root"]["nodeId"]
    within = {"nodeId": root, "selector": "math :is(mi, mn, mo, mtext)"}
    fonts = set()
    for node in browser.send("DOM.querySelectorAll", within)["nodeIds"]:
        used = browser.send("CSS.getPlatformFontsForNode", {"nodeId": node})["fonts"]
        fonts |= {(font["familyName"], font["isCustomFont"]) for font in used}
    return fonts


def weight(address: str) -> int:
    """The bytes of a file as a server compresses it."""
    file = Path(unquote(urlsplit(address).path))
    return len(gzip.compress(file.read_bytes()))


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


def test_every_formula_is_rendered(look: dict):
    assert look["rendered"] == look["formulas"]
    assert look["invisible"] == []
    assert look["gaps"] == []


def test_no_page_shows_raw_tex(look: dict):
    raw = re.compile(r".*(?:\$|\\[(\[]|\\[a-zA-Z]+|\b[a-zA-Z][_^]\{).*")
    assert raw.findall(look["prose"]) == []
    assert [symbol for symbol in look["symbols"] if re.search(r"[\\$^_]", symbol)] == []


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
    chapter = ROOT / f"{visit.page}.ipynb"
    cells = json.loads(chapter.read_text())["cells"] if chapter.exists() else []
    exported = [c for c in cells if "export" in c["metadata"].get("tags", [])]
    for seen in visit.looks.values():
        assert seen["marks"] == ["in the package"] * len(exported)


def test_a_page_is_light(visit: Visit):
    files = [ask for ask in visit.requests if ask.startswith("file:")]
    assert len(files) <= MOST_REQUESTS, files
    weights = {ask: weight(ask) for ask in files if INDEX not in ask}
    assert sum(weights.values()) <= MOST_BYTES, weights
