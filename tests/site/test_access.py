"""Readers who hear the pages, work them by keyboard or need contrast are served alike.

axe-core looks at every page twice: light on a phone, and dark on a desktop.
"""

from importlib.resources import files

import pytest
from playwright.sync_api import Browser, Page, expect
from visits import NO_DUSK, SITE, Visit

CHAPTER = (SITE / "book/core/causal.html").as_uri()
AXE = next(files("axe_playwright_python").glob("**/axe.min.js")).read_text("utf-8")
# That a label says what is seen is a rule of WCAG A, and that a finger can hit what is
# pressed is one of AA: axe-core asks neither unless told to. The contrast of marked
# words is found in the same run: each reads the page anew.
RULES = """() => {
    axe.configure({rules: [{id: "color-contrast", selector: "[data-one]"}]});
    return axe.run({
        resultTypes: ["violations"],
        selectors: false,
        rules: {
            "label-content-name-mismatch": {enabled: true},
            "target-size": {enabled: true},
        },
    });
}"""
# Of code's many words, one of each kind is enough.
FEW_WORDS = """() => {
    const seen = new Set();
    for (const word of document.querySelectorAll("pre span[class]")) {
        const kind = word.className + "|" + word.closest("pre").parentNode.className;
        if (seen.has(kind)) word.replaceWith(...word.childNodes);
        seen.add(kind);
    }
    document.querySelectorAll("pre").forEach(block => block.normalize());
}"""
# Words whose ink, size and papers are the same all the way up have the same contrast,
# and axe-core takes longest to find it: one of each kind is enough.
ONE_OF_EACH_KIND = """() => {
    const looks = ["color", "backgroundColor", "backgroundImage", "opacity", "filter",
        "fontSize", "fontWeight", "position", "textShadow"];
    const kinds = new Map(), numbers = new Map([[null, 0]]), seen = new Set();
    const kind = element => {
        if (!numbers.has(element)) {
            const style = getComputedStyle(element);
            const [tag, name] = [element.tagName, element.getAttribute("class")];
            const parts = looks.map(look => style[look]);
            const key = [kind(element.parentElement), tag, name, ...parts].join("|");
            if (!kinds.has(key)) kinds.set(key, kinds.size + 1);
            numbers.set(element, kinds.get(key));
        }
        return numbers.get(element);
    };
    const says = element => element.matches("input, select, textarea, button")
        || [...element.childNodes].some(n => n.nodeType === 3 && n.data.trim());
    for (const element of document.querySelectorAll("body *")) {
        const shown = element.checkVisibility({visibilityProperty: true});
        const one = shown && says(element) && !seen.has(kind(element));
        if (one) seen.add(kind(element));
        element.toggleAttribute("data-one", one);
    }
}"""
HEADINGS = """() => [...document.querySelectorAll("h1, h2, h3, h4, h5, h6")]
    .filter(heading => heading.checkVisibility())
    .map(heading => [Number(heading.tagName[1]), heading.textContent])"""


def violations(page: Page) -> dict[str, list[str]]:
    """What axe-core finds, rule by rule, and where."""
    faults = page.evaluate(RULES)["violations"]
    return {fault["id"]: [node["html"] for node in fault["nodes"]] for fault in faults}


def test_axe_finds_no_fault_and_headings_are_in_order(visit: Visit):
    faults, page = {}, visit.page
    page.add_style_tag(content=NO_DUSK)
    page.evaluate(AXE)
    page.evaluate(FEW_WORDS)
    for width, theme in ((390, "light"), (1280, "dark")):
        visit.view(width, theme).evaluate(ONE_OF_EACH_KIND)
        faults[width, theme] = violations(page)
    headings = page.evaluate(HEADINGS)
    assert not any(faults.values()), faults
    levels = [level for level, _ in headings]
    assert levels.count(1) == 1
    assert levels[0] == 1
    steps = zip(levels, headings[1:], strict=False)
    assert [text for above, (level, text) in steps if level > above + 1] == []


def test_a_pale_word_is_found_wherever_it_is(chapter: Page):
    words = "article p:visible", "pre span.k:visible"
    for place in words:
        chapter.locator(place).last.evaluate("word => { word.style.color = '#999'; }")
    chapter.evaluate(AXE)
    chapter.evaluate(ONE_OF_EACH_KIND)
    ((rule, found),) = violations(chapter).items()
    assert rule == "color-contrast"
    pale = [html for html in found if "rgb(153, 153, 153)" in html]
    assert len(pale) == len(words)


@pytest.fixture
def chapter(browser: Browser, read):
    page = browser.new_page(viewport={"width": 1280, "height": 844})
    read(page, CHAPTER)
    page.add_style_tag(content=NO_DUSK)
    yield page
    page.close()


def test_the_first_stop_of_the_keyboard_skips_to_the_text(chapter: Page):
    chapter.keyboard.press("Tab")
    skip = chapter.get_by_role("link", name="Skip to main content")
    expect(skip).to_be_focused()
    expect(skip).to_be_in_viewport()
    chapter.keyboard.press("Enter")
    chapter.keyboard.press("Tab")
    assert chapter.evaluate("document.activeElement.closest('main') !== null")


def test_focus_is_seen_wherever_it_is(chapter: Page):
    unseen, stops = [], set()
    for _ in range(60):
        chapter.keyboard.press("Tab")
        stop, seen = chapter.evaluate("""() => {
            const stop = document.activeElement, style = getComputedStyle(stop);
            const ring = style.outlineStyle !== "none" && style.outlineWidth !== "0px";
            const shown = stop.checkVisibility({opacityProperty: true});
            return [stop.outerHTML.slice(0, 120),
                shown && (ring || style.boxShadow !== "none")];
        }""")
        stops.add(stop)
        if not seen:
            unseen.append(stop)
    assert len(stops) > 40, "the focus did not move"
    assert unseen == []


def test_a_fold_opens_and_closes_by_keyboard(chapter: Page):
    fold = chapter.locator("details.hide").first
    summary = fold.locator("summary")
    summary.focus()
    chapter.keyboard.press("Enter")
    expect(fold).to_have_attribute("open", "")
    expect(fold.locator("pre").first).to_be_visible()
    chapter.keyboard.press("Space")
    expect(fold.locator("pre").first).to_be_hidden()


def test_a_fold_is_called_by_the_words_on_it(chapter: Page):
    summary = chapter.locator("details.hide > summary").first
    assert summary.get_attribute("aria-label") is None
    assert summary.inner_text().startswith("Show the ")


def test_a_wide_table_is_named_and_scrolled_by_keyboard(browser: Browser, read):
    page = browser.new_page()
    page.add_init_script("""addEventListener("DOMContentLoaded", () => {
        const style = document.createElement("style");
        style.textContent = ".pst-scrollable-table-container { width: 5rem; }";
        document.head.append(style);
    })""")  # narrow from the start, so that no font decides
    read(page, (SITE / "book/reference/notation.html").as_uri())
    boxes = page.locator(".pst-scrollable-table-container")
    for box in boxes.all():
        expect(box).to_have_attribute("tabindex", "0")
        expect(box).to_have_role("group")
    letters = page.get_by_role("group", name="Wide table: letter, axis")
    letters.focus()
    page.keyboard.press("ArrowRight")
    expect(letters).to_be_focused()
    page.wait_for_function("document.activeElement.scrollLeft > 0")
    boxes.evaluate_all("boxes => boxes.forEach(box => { box.style.width = '99rem'; })")
    for box in boxes.all():
        expect(box).not_to_have_attribute("tabindex", "0")
        expect(box).not_to_have_attribute("role", "group")
    page.close()


def test_a_table_that_grows_by_its_words_alone_gets_its_tab_stop(
    browser: Browser, read
):
    page = browser.new_page(viewport={"width": 390, "height": 844})
    read(page, (SITE / "book/reference/notation.html").as_uri())
    box = page.locator(".pst-scrollable-table-container").last
    box.evaluate("""box => {
        box.style.height = "9rem";  // the box stays as it is
        box.querySelector("td").append("n".repeat(99));
    }""")
    expect(box).to_have_attribute("tabindex", "0")
    page.close()
