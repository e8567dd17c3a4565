"""What a browser prints of a chapter reads well on paper, whatever the screen shows."""

from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

SITE = Path(__file__).resolve().parents[2] / "_build" / "html"
PAPER = 178 * 96 / 25.4  # A4 less its margins, in pixels
LONGEST = 'print("' + "no " * 30 + '")'


@pytest.fixture(scope="module")
def paper(browser: Browser):
    """A chapter with pictures and folds, as it is printed from a dark screen."""
    page = browser.new_page(color_scheme="dark")
    page.set_viewport_size({"width": int(PAPER), "height": 1000})
    page.goto((SITE / "book/idea/attention_map.html").as_uri())
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    page.emulate_media(media="print", color_scheme="dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    yield page
    page.close()


def test_paper_bears_the_text_alone(paper: Page):
    shown = "e => e.filter(e => e.checkVisibility()).map(e => e.outerHTML.slice(0, 99))"
    for shut in ("nav", "button", "input", "footer", "dialog", ".headerlink", "aside"):
        assert paper.locator(shut).evaluate_all(shown) == []
    assert paper.locator("h1:visible").all_inner_texts() == ["What attention computes"]


def test_paper_is_light_and_the_screen_dark_again_after_it(browser: Browser):
    page = browser.new_page(color_scheme="dark")
    page.goto((SITE / "book/idea/attention_map.html").as_uri())
    page.evaluate("""addEventListener("beforeprint", () => {
        window.printed = document.documentElement.dataset.theme;
    })""")
    page.pdf(format="A4")
    assert page.evaluate("printed") == "light"
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    page.close()


def test_ink_on_paper_is_dark(paper: Page):
    inks = paper.evaluate("""() => [...document.querySelectorAll("article *")]
        .filter(e => e.checkVisibility() && !e.closest("svg") && e.textContent.trim())
        .map(e => getComputedStyle(e).color.match(/[0-9.]+/g).map(Number))""")
    light = [ink for ink in inks if 0.2126 * ink[0] + 0.7152 * ink[1] > 140]
    assert inks
    assert light == []


def test_the_longest_line_of_code_is_wrapped_not_cut(paper: Page):
    paper.locator("article pre").first.evaluate("(e, s) => e.append(s)", LONGEST)
    cut = paper.locator("article pre").evaluate_all(
        "e => e.filter(e => e.scrollWidth > e.clientWidth).length"
    )
    assert cut == 0
    assert paper.evaluate("document.documentElement.scrollWidth - innerWidth") == 0


def test_no_picture_is_cut_by_the_edge_or_between_two_pages(paper: Page):
    pictures = paper.locator(".picture")
    assert pictures.count()
    for picture in pictures.all():
        expect(picture).to_have_css("break-inside", "avoid")
        expect(picture).to_have_css("print-color-adjust", "exact")
        box = picture.locator("svg").bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= PAPER
        assert box["height"] < 900


def test_code_may_go_on_on_the_next_page(paper: Page):
    for code in paper.locator(".cell_input, .cell_input div").all():
        expect(code).to_have_css("break-inside", "auto")
        expect(code).to_have_css("display", "block")


def test_what_is_folded_is_told_and_what_is_open_is_printed(paper: Page):
    told = """e => getComputedStyle(e, "::before").content
        .replaceAll('" "', "").replaceAll('"', "").split(":")[0]"""
    for kind, name in (("solution", "Solution"), ("hide-input", "Code")):
        fold = paper.locator(f".tag_{kind} details.hide").first
        assert fold.locator("summary").evaluate(told) == f"{name} folded away"
        fold.evaluate("e => { e.open = true; }")
        assert fold.locator("summary").evaluate(told) == name
        expect(fold.locator("pre").first).to_be_visible()
