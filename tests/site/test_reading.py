"""What a reader does with a page: copies its code, takes it along, links to it."""

import json
import re
import sys
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from fonts import FONTS
from playwright.sync_api import Browser, Page, expect
from visits import soup

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "book/_ext"))

import markup  # noqa: E402

SITE = ROOT / "_build" / "html"
CHAPTER = ROOT / "book/core/causal.ipynb"
TOLD = ["index", *re.findall(r"\bfile: *(\S+)", (ROOT / "_toc.yml").read_text())]

# What a page says goes away after two seconds: in a test it stays until it is read.
SAID = """const soon = setTimeout;
setTimeout = (work, wait) => wait < 2000 ? soon(work, wait) : 0;"""
# Characters a line of each longer paragraph without formulas: these are told twice.
LENGTHS = """() => [...document.querySelectorAll("article section > p")]
    .filter(p => !p.querySelector(".math") && p.checkVisibility())
    .filter(p => p.innerText.length > 240)
    .map(p => p.innerText.length / Math.round(
        p.getBoundingClientRect().height / parseFloat(getComputedStyle(p).lineHeight)
    ))"""


@pytest.fixture(scope="module")
def page(browser: Browser, read):
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    page.add_init_script(SAID)
    read(page, (SITE / "book/core/causal.html").as_uri())
    yield page
    context.close()


def code() -> list[str]:
    cells = json.loads(CHAPTER.read_text("utf-8"))["cells"]
    return ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]


def test_a_button_copies_a_cells_code_and_says_so(page: Page):
    second = page.locator("div.cell").nth(1)
    second.hover()
    second.get_by_role("button", name="Copy").click()
    button = second.locator(".copybtn")
    expect(button).to_have_attribute("data-tooltip", "Copied!")
    expect(page.locator("main > [role=status]")).to_have_text("Copied!")
    assert page.evaluate("navigator.clipboard.readText()") == code()[1]


def test_a_copy_button_lies_on_its_code_and_is_seen_when_it_is_wanted(page: Page):
    third = page.locator("div.cell").nth(2)
    button, block = third.locator(".copybtn").first, third.locator("pre").first
    page.mouse.move(0, 0)
    assert (button.bounding_box()["y"] - block.bounding_box()["y"]) < 14
    expect(button).to_have_css("opacity", "0")
    third.locator("pre").first.hover()
    expect(button).to_have_css("opacity", "1")


def test_a_copy_button_leaves_the_mark_of_the_package_free(page: Page):
    marked = page.locator(".tag_export:has(.in-package):not(:has(details)) .cell_input")
    assert marked.count()
    for cell in marked.all():
        mark, button = (cell.locator(part) for part in (".in-package", ".copybtn"))
        mark, button = mark.bounding_box(), button.bounding_box()
        assert mark["y"] + mark["height"] < button["y"]


@pytest.mark.parametrize("browser", FONTS, indirect=True)
def test_folded_code_of_the_package_says_so_on_one_line(browser: Browser, read):
    page = browser.new_page()
    read(page, (SITE / "book/tools/maps.html").as_uri())
    folds = page.locator(".tag_export details.hide:not([open]) > summary")
    assert folds.count()
    for fold in folds.all():
        assert fold.bounding_box()["height"] < 32
    page.close()


def test_a_page_begins_with_words_its_long_imports_are_folded(page: Page):
    first = page.locator("div.cell").first
    expect(first.locator("pre").first).to_be_hidden()
    expect(first.locator("summary")).to_contain_text("Show the imports")
    first.locator("summary").click()
    expect(first.locator("pre").first).to_be_visible()
    first.locator("summary").click()


def test_every_cell_has_one_button_and_no_output_has_any(page: Page):
    assert page.locator(".cell_input .copybtn").count() == len(code())
    assert page.locator(".cell_output .copybtn").count() == 0


def test_prompts_and_answers_are_not_copied(browser: Browser, read):
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    page = context.new_page()
    read(page, (SITE / "book/reference/api.html").as_uri())
    block = page.locator("#api-Attend-class .highlight-pycon, .highlight-pycon").nth(1)
    shown = block.locator("pre").inner_text().strip().splitlines()
    asked = [line for line in shown if line.startswith((">>> ", "... "))]
    assert asked
    assert len(asked) < len(shown)
    block.hover()
    block.get_by_role("button", name="Copy").click()
    copied = page.evaluate("navigator.clipboard.readText()").splitlines()
    assert copied == [line[4:] for line in asked]
    context.close()


@pytest.mark.parametrize("width", [1280, 1600])
@pytest.mark.parametrize("browser", FONTS, indirect=True)
def test_a_line_of_prose_is_no_longer_than_the_eye_follows(
    browser: Browser, read, width: int
):
    page = browser.new_page(viewport={"width": width, "height": 900})
    read(page, (SITE / "book/core/causal.html").as_uri())
    lengths = page.evaluate(LENGTHS)
    page.close()
    assert lengths
    assert max(lengths) <= 85


def test_every_heading_has_an_address_of_its_own(page: Page):
    headings = page.locator("article :is(h2, h3)")
    addresses = page.locator("article :is(h2, h3) > a.headerlink")
    links = [link.get_attribute("href") for link in addresses.all()]
    assert len(set(links)) == headings.count() > 10
    for link in links:
        assert page.locator(link).count() == 1


def test_pages_lead_on_and_back_in_the_order_of_the_story():
    for before, name, after in zip(["", *TOLD], TOLD, [*TOLD[1:], ""], strict=False):
        page = SITE / f"{name}.html"
        links = soup(page)
        for direction, other in (("left-prev", before), ("right-next", after)):
            found = links.select(f"a.{direction}")
            places = [(page.parent / link["href"]).resolve() for link in found]
            assert places == [SITE / f"{other}.html"] * bool(other)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_code_without_marks_has_lost_no_colour(scheme: str):
    style = (SITE / "_static/pygments.css").read_text("utf-8")
    inks = re.findall(
        rf'data-theme="{scheme}"\] \.highlight( \.\w+)? {{[^}}]*\bcolor: (\S+)', style
    )
    inks = {name.strip(" ."): ink for name, ink in inks}
    assert inks["k"] != inks[""], "a word of the language has a colour"
    assert {inks[name] for name in markup.PLAIN} == {inks[""]}


@pytest.mark.parametrize("name", TOLD)
def test_code_is_marked_only_where_it_has_a_colour(name: str):
    page = soup(SITE / f"{name}.html")
    marks = [tuple(mark["class"]) for mark in page.select(".highlight pre span[class]")]
    assert not {(name,) for name in markup.PLAIN} & set(marks)


# The first screen

CAUSAL = (SITE / "book/core/causal.html").as_uri()
WAITING = """parts => [...document.querySelectorAll(".bd-article > section > " + parts)]
    .map(part => getComputedStyle(part).contentVisibility !== "visible")"""
SECTIONS, BLOCKS = "section", "section:first-of-type > *"
# Somewhere on the screen: at any one place may be the space between two blocks.
DRAWN = """[200, 300, 400, 500, 600].some(y =>
    document.elementFromPoint(195, y).closest("section > :not(section)"))"""


@pytest.fixture
def opening(browser: Browser):
    """A page as it is before its script has laid out what is below the first screen."""
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.route("**/site.js*", lambda route: route.abort())
    yield page
    page.close()


def test_what_is_below_the_first_screen_waits_for_it(opening: Page):
    opening.goto(CAUSAL)
    first, *rest = opening.evaluate(WAITING, SECTIONS)
    assert not first
    assert len(rest) == sum(rest) > 5
    blocks = opening.evaluate(WAITING, BLOCKS)
    assert blocks == [False] * 4 + [True] * (len(blocks) - 4)


def test_who_scrolls_before_the_script_is_there_reads_on(opening: Page):
    opening.goto(CAUSAL)
    for depth in (3000, 6000, 9000):
        opening.evaluate("top => scrollTo({top, behavior: 'instant'})", depth)
        opening.wait_for_function(DRAWN)


def test_soon_the_whole_page_is_laid_out(browser: Browser, read):
    page = browser.new_page(viewport={"width": 390, "height": 844})
    read(page, CAUSAL)
    assert not any(page.evaluate(WAITING, SECTIONS) + page.evaluate(WAITING, BLOCKS))
    page.close()


def test_who_begins_at_a_section_gets_the_page_whole(opening: Page):
    opening.goto(f"{CAUSAL}#the-step")
    assert not any(opening.evaluate(WAITING, SECTIONS))
    expect(opening.locator("#the-step h2")).to_be_in_viewport()


def test_a_link_within_the_page_leads_there_at_any_time(browser: Browser):
    page = browser.new_page(viewport={"width": 1280, "height": 844})
    page.add_init_script("requestIdleCallback = () => {};")  # never a quiet moment
    page.goto(CAUSAL)
    page.locator("#pst-page-toc-nav a[href='#the-step']").click()
    expect(page.locator("#the-step h2")).to_be_in_viewport()
    page.close()


def test_who_comes_again_gets_the_page_whole(opening: Page):
    opening.goto(CAUSAL)
    opening.reload()
    assert not any(opening.evaluate(WAITING, SECTIONS))


def test_who_has_no_scripts_gets_the_page_whole(browser: Browser):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(CAUSAL)
    shown = "section => getComputedStyle(section).contentVisibility"
    assert page.locator("#the-step").evaluate(shown) == "visible"
    context.close()


def test_the_bar_names_the_page_once_its_title_has_left_the_screen(browser, read):
    for width in (390, 1280):
        page = browser.new_page(viewport={"width": width, "height": 844})
        read(page, CAUSAL)
        name = page.locator(".bar-title")
        expect(name).to_be_hidden()
        page.locator("#the-step h2").evaluate("title => title.scrollIntoView()")
        expect(name).to_be_in_viewport()
        expect(name).to_have_text("Causal attention")
        boxes = [
            page.locator(f".{each}").bounding_box()
            for each in ("primary-toggle", "bar-title", "article-header-buttons")
        ]
        for left, right in pairwise(boxes):
            assert left["x"] + left["width"] <= right["x"] + 1
            middles = [box["y"] + box["height"] / 2 for box in (left, right)]
            assert abs(middles[0] - middles[1]) < 12
        page.close()


@pytest.mark.parametrize("width", [390, 1280])
def test_code_is_set_in_fourteen_or_fifteen_pixels(browser, read, width: int):
    page = browser.new_page(viewport={"width": width, "height": 844})
    read(page, CAUSAL)
    sizes = (
        "all => [...new Set(all.map(e => parseFloat(getComputedStyle(e).fontSize)))]"
    )
    (size,) = page.locator(".cell_input pre").evaluate_all(sizes)
    assert 14 <= size <= 15
    page.close()


@pytest.mark.parametrize("name", TOLD)
def test_every_displayed_formula_has_a_number_and_an_address(name: str):
    page = soup(SITE / f"{name}.html")
    formulas = page.select("article div.math")
    numbers = [formula.select_one(".eqno").contents[0] for formula in formulas]
    assert numbers == [f"({n})" for n in range(1, len(formulas) + 1)]
    for formula in formulas:
        link = formula.select_one(".eqno a")["href"]
        assert formula.get("id") == link[1:]


def test_a_source_is_called_by_authors_and_year_and_a_link_says_its_host():
    page = soup(SITE / "book/reference/bibliography.html")
    sources = page.select(".citation")
    names = [source.select_one(".label").get_text() for source in sources]
    assert len(set(names)) == len(names) > 30
    assert [
        n
        for n in names
        if not re.fullmatch(r"\[(W3C|bloc97 2023|[^\d\]]+( \d{4}[a-z]?)?)\]", n)
    ] == []
    for link in page.select(".citation a[href^=http]"):
        assert urlsplit(link["href"]).netloc in link.get_text()
    chapter = soup(SITE / "book/core/causal.html")
    cited = {link.get_text() for link in chapter.select(".bibtex-citation a")}
    assert cited
    assert {f"[{name}]" for name in cited} <= set(names)
