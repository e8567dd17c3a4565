"""What a reader works with on every page works: menus, search, colours, ways on."""

import time
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect
from visits import NO_DUSK

ROOT = Path(__file__).resolve().parents[2]
CHAPTER = (ROOT / "_build/html/book/core/causal.html").as_uri()
WIDTHS = {"phone": 390, "desktop": 1280}


@pytest.fixture
def chapter(request, browser: Browser, read):
    width = WIDTHS[getattr(request, "param", "desktop")]
    page = browser.new_page(viewport={"width": width, "height": 844})
    read(page, CHAPTER)
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
    late = time.monotonic() + 60
    chapter.reload()
    while theme(chapter) != chosen:  # the browser stores the choice when it has time
        assert time.monotonic() < late, "the choice was forgotten"
        chapter.reload()


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


def test_a_dialog_closes_by_key_and_by_a_click_beside_it(chapter: Page):
    dialog = chapter.locator("#pst-search-dialog")
    for close in (
        lambda: chapter.keyboard.press("Control+k"),
        lambda: chapter.keyboard.press("Escape"),
        lambda: chapter.mouse.click(5, 800),
    ):
        chapter.keyboard.press("Control+k")
        expect(dialog).to_be_visible()
        dialog.locator("input").click()
        expect(dialog).to_be_visible()
        close()
        expect(dialog).to_be_hidden()


@pytest.mark.parametrize("chapter", ["phone"], indirect=True)
def test_a_phones_contents_lead_to_a_section_and_open_again(chapter: Page):
    for _ in range(2):
        chapter.locator("button.secondary-toggle:visible").first.click()
        chapter.locator("dialog a:has-text('The formula')").click()
        expect(chapter.locator("#pst-secondary-sidebar-modal")).to_be_hidden()
        expect(chapter.locator("h2:has-text('The formula')")).to_be_in_viewport()


def test_a_desktops_contents_can_be_hidden_and_shown(chapter: Page):
    contents = chapter.locator("#pst-primary-sidebar nav[aria-label=Main]")
    for look in (expect(contents).to_be_hidden, expect(contents).to_be_visible):
        chapter.locator("button.primary-toggle").click()
        look()


def test_the_contents_begin_with_the_page_and_stay_where_they_were(browser: Browser):
    chapter = browser.new_page(viewport={"width": 1280, "height": 300})
    chapter.goto(CHAPTER)
    menu = chapter.locator("#pst-primary-sidebar")
    depth = "document.querySelector('#pst-primary-sidebar').scrollTop"
    chapter.wait_for_function(f"{depth} > 0")
    expect(menu.locator("li.active a").first).to_be_in_viewport()
    menu.evaluate("menu => { menu.scrollTop = 77; }")
    chapter.reload()
    chapter.wait_for_function(f"{depth} === 77")
    chapter.close()


def test_the_contents_of_a_page_mark_where_the_reader_is(chapter: Page):
    current = chapter.locator("#pst-page-toc-nav [aria-current]")
    for section in ("the-module", "sources", "the-question"):
        chapter.locator(f"#{section} > :is(h2, h3)").evaluate(
            "title => scrollTo(0, title.getBoundingClientRect().y + scrollY - 60)"
        )
        if section != "sources":  # the page ends before it
            expect(current).to_have_attribute("href", f"#{section}")
        expect(current).to_have_count(1)
        expect(current).to_be_visible()


CONTRAST = """button => {
    const {color, backgroundColor} = getComputedStyle(button);
    const [low, high] = [color, backgroundColor].map(colour => {
        const [r, g, b] = colour.match(/[\\d.]+/g).map(c => c / 255)
            .map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
    }).sort((a, b) => a - b);
    return high / low;
}"""


@pytest.mark.parametrize("chapter", ["phone"], indirect=True)
def test_who_scrolls_up_on_a_phone_is_offered_the_way_to_the_top(chapter: Page):
    chapter.add_style_tag(content=NO_DUSK)
    way = chapter.locator("#pst-back-to-top")
    scroll = """height => new Promise(done => {
        addEventListener("scrollend", done, {once: true});
        scrollTo(0, height);
    })"""
    chapter.evaluate(scroll, 3000)
    expect(way).to_be_hidden()
    chapter.evaluate(scroll, 2500)
    expect(way).to_be_visible()
    for theme in ("light", "dark"):
        chapter.emulate_media(color_scheme=theme)
        chapter.wait_for_function(
            f"document.documentElement.dataset.theme == '{theme}'"
        )
        assert way.evaluate(CONTRAST) >= 4.5
    way.click()
    chapter.wait_for_function("scrollY === 0")
    expect(way).to_be_hidden()


def test_the_page_has_its_colours_before_anything_is_painted(browser: Browser):
    page = browser.new_page(color_scheme="dark")
    page.route("**/site.js*", lambda route: route.abort())
    page.goto(CHAPTER)
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.close()


@pytest.mark.parametrize("chapter", WIDTHS, indirect=True)
def test_the_chapters_before_and_after_are_a_step_away(chapter: Page):
    for way, there in (("a.right-next", "multi_head"), ("a.left-prev", "causal")):
        chapter.locator(way).click()
        chapter.wait_for_url(f"**/{there}.html")
