"""Every page is opened once, seen in each view, and asked all that the tests ask."""

import re
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

from bs4 import BeautifulSoup
from playwright.sync_api import Browser, Page

ROOT = Path(__file__).parents[2]
SITE = ROOT / "_build" / "html"
TOLD = re.findall(r"\b(?:root|file): *(\S+)", (ROOT / "_toc.yml").read_text())
HOME, *REST = TOLD
PAGES = ["index", *REST, "search", "genindex", "404"]  # by where they lie
CHAPTERS = [page for page in TOLD if (ROOT / f"{page}.ipynb").exists()]
VIEWS = [(width, theme) for width in (390, 1280) for theme in ("light", "dark")]
PATIENCE = 120_000  # ms for what a busy machine does at last
# The theme hears of new colours, and what scrolls gets its tab stop when it is drawn in
# its new size.
SETTLED = """([width, theme]) => {
    const boxes = "article :is(pre, .picture, .pst-scrollable-table-container)";
    const page = getComputedStyle(document.documentElement);
    return innerWidth === width && page.colorScheme === theme
        && document.fonts.status === "loaded"
        && [...document.querySelectorAll(boxes)].every(box => !box.checkVisibility()
            || box.scrollWidth <= box.clientWidth || box.tabIndex === 0);
}"""
# A colour is judged when it has come, not on its way.
NO_DUSK = "*, ::before, ::after { transition: none !important; }"
# The script has laid out more than the first screen.
WHOLE = "!document.scripts.length || 'whole' in document.documentElement.dataset"


@cache
def soup(page: Path) -> BeautifulSoup:
    """What a file of the site holds, for tests that need no browser."""
    return BeautifulSoup(page.read_text("utf-8"), "html.parser")


@dataclass(eq=False)
class Visit:
    """One page, how it looks in each view, and what the browser said of it."""

    name: str
    page: Page
    looks: dict = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    fonts: set[tuple[str, bool]] = field(default_factory=set)

    def view(self, width: int, theme: str) -> Page:
        """The page in this width and these colours, when it has come to rest."""
        self.page.set_viewport_size({"width": width, "height": 844})
        self.page.emulate_media(color_scheme=theme)
        self.page.wait_for_function(SETTLED, arg=[width, theme], timeout=PATIENCE)
        return self.page


LOOK = """() => {
    const all = (selector) => [...document.querySelectorAll(selector)];
    const prose = (document.querySelector("article") ?? document.body).cloneNode(true);
    prose.querySelectorAll("pre, code, script, math").forEach(e => e.remove());
    const lines = prose.cloneNode(true);
    lines.querySelectorAll("svg").forEach(e => e.remove());
    const box = (e) => e.getBoundingClientRect();
    return {
        theme: getComputedStyle(document.documentElement).colorScheme,
        overflow: document.documentElement.scrollWidth - innerWidth,
        prose: prose.textContent,
        lines: lines.textContent,
        formulas: all(".math").length,
        rendered: all(".math:has(> math)").length,
        invisible: all("math").filter(e => box(e).width * box(e).height === 0)
            .filter(e => e.checkVisibility()).map(e => e.outerHTML),
        symbols: all("math :not(:has(*))").map(e => e.textContent),
        loose: all("span.math").filter(e => getComputedStyle(e).whiteSpace !== "nowrap")
            .filter(e => /^[,.;:!?)\\]]/.test(e.nextSibling?.data)
                || /[([]$/.test(e.previousSibling?.data))
            .map(e => `${e.previousSibling?.data ?? ""}…${e.nextSibling?.data ?? ""}`),
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
        wide: all("div.math").filter(e => e.scrollWidth > e.clientWidth)
            .map(e => e.textContent),
        cut: all(".cell_output pre").filter(e => e.scrollWidth > e.clientWidth)
            .map(e => e.textContent.slice(0, 200)),
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


def visit(name: str, browser: Browser) -> Visit:
    """The page, still open, after a look at it in each view."""
    seen = Visit(name, page := browser.new_page())
    page.on("request", lambda ask: seen.requests.append(ask.url))
    page.on("requestfailed", lambda ask: seen.failed.append(ask.url))
    page.on("pageerror", lambda error: seen.errors.append(str(error)))
    page.on(
        "console",
        lambda said: seen.errors.append(said.text) if said.type == "error" else None,
    )
    page.goto((SITE / f"{name}.html").as_uri())
    page.wait_for_function(WHOLE, timeout=PATIENCE)
    for view in VIEWS:
        seen.looks[view] = seen.view(*view).evaluate(LOOK)
    # Who looks for fonts makes the browser ask for the files again: not the page does.
    kept = {name: [*getattr(seen, name)] for name in ("errors", "failed", "requests")}
    return replace(seen, fonts=fonts_of_formulas(page), **kept)


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
