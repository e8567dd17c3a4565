"""The search finds words and formulas, in a folder, and loads only on its own page."""

from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, Page, expect

SITE = Path(__file__).resolve().parents[2] / "_build" / "html"
FOUND = {
    "softmax": "API › softmax",
    "causal_mask": "API › causal_mask",
    "multi-head attention": "Multi-head attention",
    "√d": "Scaled dot-product attention › Why divide by √d?",
    "sqrt(d)": "Scaled dot-product attention › Why divide by √d?",
    "1/√d_k": "Scaled dot-product attention › Why divide by √d?",
    r"\frac{1}{\sqrt{d}}": "Scaled dot-product attention › Why divide by √d?",
}


@pytest.fixture(scope="module")
def page(browser: Browser):
    page = browser.new_page()
    yield page
    page.close()


def ask(page: Page, query: str) -> list[str]:
    """The titles that the search page gives for a query in its address."""
    page.goto(f"{(SITE / 'search.html').as_uri()}?q={quote(query)}")
    expect(page.locator("#search-count")).to_contain_text(query)
    return page.locator("#search-found a").all_inner_texts()


@pytest.mark.parametrize("query", FOUND)
def test_the_best_section_comes_first(query: str, page: Page):
    assert ask(page, query)[0] == FOUND[query]


def test_a_result_quotes_what_was_asked_and_leads_there(page: Page):
    ask(page, "softmax")
    result = page.locator("#search-found li").filter(has_text="Second way").first
    assert result.locator("mark").first.inner_text().lower() == "softmax"
    result.get_by_role("link").click()
    expect(page).to_have_url(
        f"{(SITE / 'book/core/causal.html').as_uri()}#second-way-minus-infinity"
    )


def test_a_page_leads_to_the_search_by_keyboard_alone(page: Page):
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto((SITE / "book/core/causal.html").as_uri())
    assert not [url for url in asked if "search" in url], "loaded before it was used"
    page.keyboard.press("Control+k")
    page.keyboard.type("√d")
    page.keyboard.press("Enter")
    expect(page.locator("#search-count")).to_contain_text("sections on “√d”")


def test_what_is_typed_is_looked_for_at_once_and_nothing_found_is_said(page: Page):
    ask(page, "softmax")
    page.locator(".search-form input").fill("<b>no such</b>")
    expect(page.locator("#search-count")).to_have_text(
        "No sections on “<b>no such</b>”"
    )
    assert page.locator("#search-found li").count() == 0
