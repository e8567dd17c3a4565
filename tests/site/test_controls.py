"""What a reader works with on every page works: menus, search, colours, ways on."""

from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

ROOT = Path(__file__).resolve().parents[2]
CHAPTER = (ROOT / "_build/html/book/core/causal.html").as_uri()
WIDTHS = {"phone": 390, "desktop": 1280}


@pytest.fixture
def chapter(request, browser: Browser):
    width = WIDTHS[getattr(request, "param", "desktop")]
    page = browser.new_page(viewport={"width": width, "height": 844})
    page.goto(CHAPTER)
    yield page
    page.close()


def theme(page: Page) -> str:
    return page.evaluate("document.documentElement.dataset.mode")


def test_the_colour_switch_goes_round_and_is_remembered(chapter: Page):
    switch = chapter.locator(".theme-switch-button:visible").first
    seen = [theme(chapter)]
    for _ in range(3):
        switch.click()
        seen.append(theme(chapter))
    assert sorted(seen[1:]) == ["auto", "dark", "light"]
    assert seen[0] == seen[3]
    switch.click()
    chosen = theme(chapter)
    chapter.reload()
    assert theme(chapter) == chosen


def test_every_button_in_sight_shows_an_icon_or_a_word(chapter: Page):
    empty = chapter.evaluate("""async () => {
        await document.fonts.ready;
        const loaded = [...document.fonts].filter(font => font.status === "loaded");
        const drawn = icon => {
            const style = getComputedStyle(icon, "::before");
            return style.content !== "none" && loaded.some(font =>
                style.fontWeight === font.weight
                && style.fontFamily.includes(font.family));
        };
        return [...document.querySelectorAll("button, label, summary")]
            .filter(button => button.checkVisibility() && !button.innerText.trim())
            .filter(button => ![...button.querySelectorAll("i, span")].some(drawn))
            .filter(button => !button.querySelector("svg"))
            .map(button => button.outerHTML);
    }""")
    assert empty == []


@pytest.mark.parametrize("chapter", WIDTHS, indirect=True)
def test_the_keyboard_opens_the_search_and_a_query_leads_on(chapter: Page):
    chapter.keyboard.press("Control+k")
    field = chapter.locator("input[type=search]:visible")
    expect(field).to_be_focused()
    field.fill("mask")
    field.press("Enter")
    chapter.wait_for_url("**/search.html?q=mask*")
    expect(chapter.locator("#search-found li").first).to_be_visible()


@pytest.mark.parametrize("chapter", ["phone"], indirect=True)
def test_a_phones_menus_open_and_lead_on(chapter: Page):
    chapter.locator("button.primary-toggle:visible").first.click()
    link = chapter.locator("dialog a:has-text('Multi-head attention')").first
    expect(link).to_be_in_viewport()
    link.click()
    chapter.wait_for_url("**/multi_head.html")


@pytest.mark.parametrize("chapter", WIDTHS, indirect=True)
def test_the_chapters_before_and_after_are_a_step_away(chapter: Page):
    for way, there in (("a.right-next", "multi_head"), ("a.left-prev", "causal")):
        chapter.locator(way).click()
        chapter.wait_for_url(f"**/{there}.html")
