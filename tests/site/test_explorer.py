"""The explorer answers: to mouse, finger and keyboard, on every page that holds one."""

import base64
import hashlib
import json
import re
from pathlib import Path

import pytest
import torch
from fonts import FONTS
from playwright.sync_api import Browser, Page, expect

from attention import explore
from attention.tools.explorer import Explorer

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "_build" / "html"
QUERIES, KEYS = ["cat", "sat", "mat"], ["ein", "zwei", "drei", "vier", "fünf"]
LAYERS = ("layer", "head")
USUAL = ["DejaVu", "Liberation"]  # where all fits; in wider letters names break
HINT = re.compile("^Point at a token")
BUILT = [
    str(page.relative_to(SITE))
    for page in sorted(SITE.rglob("*.html"))
    if 'class="attention-explorer"' in page.read_text(encoding="utf-8")
]


def some_weights(*axes: int) -> torch.Tensor:
    return torch.randn(*axes, 3, 5).mul(2).softmax(dim=-1)


@pytest.fixture
def visit(browser: Browser, tmp_path):
    """Open a page with these explorers; the browser must not complain of any."""
    contexts, errors = [], []

    def visit(*explorers, **options) -> Page:
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: errors.append(("error", str(error))))
        page.on("console", lambda said: errors.append((said.type, said.text)))
        first, *others = explorers
        first.save(tmp_path / "map.html")
        text = (tmp_path / "map.html").read_text(encoding="utf-8")
        more = "".join(explorer.html for explorer in others)
        (tmp_path / "map.html").write_text(text.replace("</main>", more + "</main>"))
        page.goto((tmp_path / "map.html").as_uri())
        return page

    yield visit
    for context in contexts:
        context.close()
    assert [error for error in errors if error[0] != "warning"] == []


def said(page: Page) -> str:
    """The sentence under the map, without the marks that isolate its tokens."""
    return re.sub("[\u2066-\u2069]", "", page.locator("output").inner_text())


def lit(page: Page) -> list[str]:
    return page.locator(".lit").all_inner_texts()


def numbers(page: Page) -> list[str]:
    return page.locator("tbody td").all_text_contents()


def query(page: Page, token: str):
    return page.get_by_role("rowheader", name=token, exact=True).get_by_role("button")


def key(page: Page, token: str):
    return page.get_by_role("columnheader", name=token, exact=True).get_by_role(
        "button"
    )


def head(page: Page, axis: str, number: int):
    return page.get_by_role("group", name=axis).get_by_label(str(number), exact=True)


def shares(names: list[str], weights: torch.Tensor) -> str:
    pairs = sorted(zip(weights.tolist(), names, strict=True), reverse=True)
    words = [f"“{name}” {weight:.2f}" for weight, name in pairs[:3]]
    rest = sum(round(weight, 4) for weight, _ in pairs[3:])
    if len(pairs) > 3:
        words.append(f"{len(pairs) - 3} other{'s'[: len(pairs) - 4]} {rest:.2f}")
    return ", ".join(words)


# Mouse


def test_a_query_says_where_it_looks(visit):
    weights = some_weights()
    page = visit(explore(weights, QUERIES, KEYS))
    assert HINT.match(said(page))
    query(page, "sat").hover()
    assert lit(page) == ["sat", *(f"{weight:.2f}" for weight in weights[1])]
    assert said(page) == f"“sat” looks at {shares(KEYS, weights[1])}."


def test_a_key_says_who_looks_at_it(visit):
    weights = some_weights()
    page = visit(explore(weights, QUERIES, KEYS))
    key(page, "vier").hover()
    assert lit(page) == ["vier", *(f"{weight:.2f}" for weight in weights[:, 3])]
    assert said(page) == f"“vier” is looked at by {shares(QUERIES, weights[:, 3])}."


def test_a_cell_says_its_weight(visit):
    weights = some_weights()
    page = visit(explore(weights, QUERIES, KEYS))
    page.locator("tbody tr").nth(2).locator("td").nth(1).hover()
    assert said(page) == f"“mat” looks at “zwei” with {weights[2, 1]:.2f}."
    assert {"mat", "zwei"} <= set(lit(page))
    assert len(lit(page)) == 1 + 5 + 1 + 3 - 1


def test_what_is_left_falls_silent_and_what_is_clicked_stays(visit):
    page = visit(explore(some_weights(), QUERIES, KEYS))
    query(page, "sat").hover()
    page.mouse.move(0, 0)
    assert lit(page) == []
    assert HINT.match(said(page))
    query(page, "sat").click()
    key(page, "vier").hover()
    assert said(page).startswith("“vier” is looked at by")
    page.mouse.move(0, 0)
    assert said(page).startswith("“sat” looks at")
    expect(query(page, "sat")).to_have_attribute("aria-pressed", "true")
    query(page, "sat").click()
    page.mouse.move(0, 0)
    expect(query(page, "sat")).to_have_attribute("aria-pressed", "false")
    assert page.locator("[aria-pressed=true]").count() == 0


def test_each_layer_and_head_shows_its_weights_rounded_as_python_rounds(visit):
    weights = some_weights(2, 7)
    weights[1, 4, 0] = torch.tensor([0.125, 0.375, 0.125, 0.125, 0.25])
    page = visit(explore(weights, QUERIES, KEYS, axes=LAYERS))
    for layer in range(2):
        head(page, "layer", layer + 1).check(force=True)
        for number in range(7):
            head(page, "head", number + 1).check(force=True)
            exact = weights[layer, number].double().mul(1e4).round().div(1e4)
            assert numbers(page) == [f"{w:.2f}" for w in exact.flatten()]
            view = f"In view: layer {layer + 1} of 2, head {number + 1} of 7."
            assert view in page.locator("caption").inner_text()


def test_the_map_in_view_at_first_is_the_one_asked_for(visit):
    weights = some_weights(2, 3)
    page = visit(explore(weights, QUERIES, KEYS, show=(1, 2), axes=LAYERS))
    exact = weights[1, 2].double().mul(1e4).round().div(1e4)
    assert numbers(page) == [f"{w:.2f}" for w in exact.flatten()]
    for axis, number in (("layer", 2), ("head", 3)):
        expect(head(page, axis, number)).to_be_checked()
    assert "In view: layer 2 of 2, head 3 of 3." in page.locator("caption").inner_text()


def test_a_token_stays_while_the_head_changes(visit):
    weights = some_weights(3)
    page = visit(explore(weights, QUERIES, KEYS))
    query(page, "mat").click()
    head(page, "head", 3).check(force=True)
    assert said(page) == f"“mat” looks at {shares(KEYS, weights[2, 2])}."


def test_equal_tokens_are_told_apart_by_their_place(visit):
    page = visit(explore(torch.eye(3), ["the", "cat", "the"], ["the", "a", "b"]))
    page.locator("tbody th").nth(2).hover()
    assert said(page).startswith("“the” (3) looks at “b” 1.00, ")
    page.locator("thead th").nth(0).hover()
    assert said(page).startswith("“the” is looked at by “the” (1) 1.00, ")


def test_a_masked_cell_says_that_it_may_not_be_seen(visit):
    mask = torch.ones(3, 5, dtype=torch.bool)
    mask[0, 2:], mask[2] = False, False
    weights = torch.randn(3, 5).masked_fill(~mask, -1e9).softmax(dim=-1)
    page = visit(explore(weights * mask, QUERIES, KEYS, mask=mask))
    cells = page.locator("tbody tr").nth(0).locator("td")
    cells.nth(3).hover()
    assert said(page) == "“cat” may not look at “vier”."
    assert "gradient" in cells.nth(3).evaluate(
        "cell => getComputedStyle(cell).backgroundImage"
    )
    query(page, "cat").hover()
    assert said(page) == (f"“cat” looks at {shares(KEYS[:2], weights[0, :2])}.")
    query(page, "mat").hover()
    assert said(page) == "“mat” looks at no token."
    key(page, "vier").hover()
    assert said(page) == "“vier” is looked at by “sat” " + f"{weights[1, 3]:.2f}."


# Keyboard


def test_all_of_it_can_be_done_by_keyboard(visit):
    weights = some_weights(3)
    page = visit(explore(weights, QUERIES, KEYS))
    for expected, *keys in (
        (head(page, "head", 1), "Tab"),
        (head(page, "head", 2), "ArrowRight"),
        (query(page, "cat"), "Tab"),
        (query(page, "sat"), "ArrowDown"),
        (query(page, "mat"), "ArrowDown", "ArrowDown"),
        (query(page, "sat"), "ArrowUp"),
    ):
        for pressed in keys:
            page.keyboard.press(pressed)
        expect(expected).to_be_focused()
    assert said(page) == f"“sat” looks at {shares(KEYS, weights[1, 1])}."
    page.keyboard.press("Enter")
    for expected, *keys in (
        (key(page, "ein"), "ArrowRight"),
        (key(page, "drei"), "ArrowRight", "ArrowRight"),
        (key(page, "zwei"), "ArrowLeft"),
    ):
        for pressed in keys:
            page.keyboard.press(pressed)
        expect(expected).to_be_focused()
    looks = shares(QUERIES, weights[1, :, 1])
    assert said(page) == f"“zwei” is looked at by {looks}."
    page.keyboard.press("Shift+Tab")
    assert said(page).startswith("“sat” looks at")  # as it was kept
    page.keyboard.press("Tab")
    expect(key(page, "zwei")).to_be_focused()  # the map is one stop of the Tab key
    page.keyboard.press("Escape")
    assert page.locator("[aria-pressed=true]").count() == 0


def test_the_focus_can_be_seen(visit):
    page = visit(explore(some_weights(2), QUERIES, KEYS))
    for _ in range(2):
        page.keyboard.press("Tab")
        outlined = "e => getComputedStyle(e.closest('label') ?? e).outlineStyle"
        assert page.locator(":focus").evaluate(outlined) == "solid"


# Touch


def test_a_tap_keeps_a_token_and_a_second_lets_it_go(visit):
    page = visit(explore(some_weights(2), QUERIES, KEYS), has_touch=True)
    query(page, "sat").tap()
    assert said(page).startswith("“sat” looks at")
    page.get_by_text("2", exact=True).tap()
    assert said(page).startswith("“sat” looks at")
    assert "head 2 of 2" in page.locator("caption").inner_text()
    key(page, "drei").tap()
    assert said(page).startswith("“drei” is looked at by")
    assert page.locator("[aria-pressed=true]").count() == 1
    key(page, "drei").tap()
    assert page.locator("[aria-pressed=true]").count() == 0


# Many on a page


def test_explorers_on_one_page_do_not_disturb_each_other(visit):
    one = explore(some_weights(2), QUERIES, KEYS)
    page = visit(one, one, explore(some_weights(2, 3), QUERIES, KEYS, axes=LAYERS))
    maps = page.locator(".attention-explorer")
    before = [maps.nth(n).inner_text() for n in range(3)]
    maps.nth(1).locator("tbody button").nth(1).click()
    maps.nth(1).locator("label").nth(1).click()
    page.mouse.move(0, 0)
    assert [maps.nth(n).inner_text() for n in (0, 2)] == [before[0], before[2]]
    assert "head 2 of 2" in maps.nth(1).inner_text()
    checked = page.locator("input:checked").evaluate_all("all => all.map(e => e.value)")
    assert checked == ["0", "1", "0", "0"]


def test_the_script_may_run_again(visit):
    page = visit(explore(some_weights(2), QUERIES, KEYS))
    query(page, "sat").click()
    before = page.locator("main").inner_html()
    page.evaluate("""() => {
        const script = document.createElement("script");
        script.textContent = document.querySelector("script").textContent;
        document.head.append(script);
    }""")
    assert page.locator("main").inner_html() == before


# Everyone


def test_it_is_a_complete_table_without_a_script(visit):
    weights = some_weights(2)
    page = visit(explore(weights, QUERIES, KEYS), java_script_enabled=False)
    assert numbers(page) == [f"{weight:.4f}" for weight in weights[0].flatten()]
    for cell in page.locator("tbody td").all():
        assert cell.is_visible()
    assert page.locator("button, input").count() == 0  # nothing that does not work
    page.get_by_text("In words").click()
    expect(page.get_by_text("Head 2, strongest:")).to_be_visible()


TOO_LARGE = """cells => cells.filter(cell => {
    const text = document.createRange();
    text.selectNodeContents(cell);
    return text.getBoundingClientRect().width > cell.offsetWidth;
}).length"""


@pytest.mark.parametrize("width", [390, 1280])
def test_a_large_map_shows_all_its_numbers_without_a_script(visit, width):
    weights = torch.randn(15, 14).mul(2).softmax(dim=-1)
    names = [f"word {n}" for n in range(15)]
    page = visit(
        explore(weights, names, names[:14]),
        viewport={"width": width, "height": 844},
        java_script_enabled=False,
    )
    cells = page.locator("tbody td")
    sizes = cells.evaluate_all(
        "cells => cells.map(cell => parseFloat(getComputedStyle(cell).fontSize))"
    )
    assert min(sizes) >= 9.33  # 7 pt
    assert cells.evaluate_all(TOO_LARGE) == 0
    assert page.evaluate("document.documentElement.scrollWidth") == width


SIDES = {
    "turned keys": ((), [f"word {n}" for n in range(15)], 14),
    "heads": ((8,), [f"word {n}" for n in range(15)], 14),
    "layers and heads": ((2, 3), ["cat", "sat", "mat"], 3),
    "long tokens": ((), ["international", "New York City", "cat"], 3),
}


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize(("axes", "names", "keys"), SIDES.values(), ids=SIDES)
def test_nothing_moves_when_the_script_arrives(visit, axes, names, keys, width):
    weights = torch.randn(*axes, len(names), keys).mul(2).softmax(dim=-1)
    named = LAYERS if weights.dim() == 4 else None
    explorer = explore(weights, names, names[:keys], axes=named)
    late = Explorer(explorer.html.replace("<script>", "<script type='late'>"), "")
    page = visit(late, viewport={"width": width, "height": 844})
    parts = page.locator("table, caption, tr, th, td, bdi, output, details")
    sizes = """parts => parts.map(part => {
        const {x, y, width, height} = part.getBoundingClientRect();
        return [x, y, width, height, parseFloat(getComputedStyle(part).fontSize)];
    })"""
    before = torch.tensor(parts.evaluate_all(sizes))
    page.evaluate("""() => {
        const script = document.createElement("script");
        script.textContent = document.querySelector("script").textContent;
        document.head.append(script);
    }""")
    assert page.locator("tbody button").count() == len(names)
    after = torch.tensor(parts.evaluate_all(sizes))
    torch.testing.assert_close(after, before, atol=0.25, rtol=0)  # of a pixel


def test_a_screen_reader_is_told_what_each_thing_is(visit):
    explorer = explore(
        some_weights(2, 3), QUERIES, KEYS, caption="Who looks?", axes=LAYERS
    )
    page = visit(explorer)
    query(page, "sat").click()
    cells = iter(numbers(page))
    rows = []
    for name in QUERIES:
        pressed = " [pressed]" if name == "sat" else ""
        rows += [
            f"- row /{name}/:",
            f"  - rowheader /{name}/:",
            f'    - button "{name}"{pressed}',
            *(f'  - cell "{next(cells)}"' for _ in KEYS),
        ]
    expect(page.locator(".attention-explorer")).to_match_aria_snapshot(
        "\n".join(
            [
                '- group "layer":',
                "  - text: layer",
                '  - radio "1" [checked]',
                '  - radio "2"',
                '- group "head":',
                "  - text: head",
                '  - radio "1" [checked]',
                '  - radio "2"',
                '  - radio "3"',
                "- table /Who looks/:",
                "  - rowgroup:",
                "    - row:",
                "      - cell",
                *(f'      - columnheader "{name}"' for name in KEYS),
                "  - rowgroup:",
                *(f"    {line}" for line in rows),
                "- status: /sat.* looks at/",
            ]
        )
    )


HOSTILE = [
    "<img src=x onerror=document.title='hacked'>",
    "</script><script>document.title='hacked'</script>",
    "שלום",
    '" onfocus="alert(1)',
    "",
]


def test_a_token_is_only_ever_text(visit):
    tokens = [*HOSTILE, "cat", " "]
    page = visit(explore(torch.eye(7), tokens, tokens, caption="</caption><h2>"))
    assert page.locator("img, h2, main main").count() == 0
    for button in page.get_by_role("button").all():
        button.hover()
    assert page.title() == "Attention map"
    places = [button.bounding_box()["x"] for button in page.locator("thead th").all()]
    assert places == sorted(places)  # Hebrew turns nothing but itself


# Looks

CONTRAST = """() => {
    const brush = document.createElement("canvas").getContext("2d");
    const paint = (...colours) => {
        for (const colour of colours) {
            brush.fillStyle = colour;
            brush.fillRect(0, 0, 1, 1);
        }
        const channels = [...brush.getImageData(0, 0, 1, 1).data].slice(0, 3)
            .map(c => c / 255).map(c => c <= 0.04045 ? c / 12.92
                : ((c + 0.055) / 1.055) ** 2.4);
        return channels.reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
    };
    const paper = [...function* (e) { for (; e; e = e.parentElement) yield e; }(
        document.querySelector(".attention-explorer"))]
        .map(e => getComputedStyle(e).backgroundColor)
        .find(c => !/, 0\\)$/.test(c))
        ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "#121212" : "white");
    return [...document.querySelectorAll(
        ".attention-explorer :is(tbody td:not(.masked), button, label, output, caption)"
    )].filter(e => parseFloat(getComputedStyle(e).fontSize) > 0).map(e => {
        const { color, backgroundColor, fontSize } = getComputedStyle(e);
        const lights = [paint(paper, backgroundColor),
            paint(paper, backgroundColor, color)];
        const contrast = (Math.max(...lights) + 0.05) / (Math.min(...lights) + 0.05);
        return [e.textContent, contrast, parseFloat(fontSize)];
    });
}"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_number_can_be_read_on_its_ink(visit, theme):
    steps = torch.linspace(0, 1, 41)
    weights = torch.stack([steps, 1 - steps], dim=-1)
    names = [f"{n}" for n in range(41)]
    explorers = [
        explore(weights[n : n + 7], names[n : n + 7], ["a", "b"])
        for n in range(0, 41, 7)
    ]
    page = visit(*explorers, color_scheme=theme)
    page.locator("label, button").first.click()
    seen = page.evaluate(CONTRAST)
    assert len(seen) > 82 + 41
    for text, contrast, size in seen:
        assert contrast >= 4.5, (text, contrast)
        assert size >= 9.33, (text, size)  # 7 pt


def width(page: Page, selector: str) -> int:
    wide = "e => e.scrollWidth - e.clientWidth"
    return page.locator(selector).first.evaluate(wide)


@pytest.mark.parametrize("browser", USUAL, indirect=True)
def test_a_phone_shows_fifteen_by_fourteen_without_scrolling(visit):
    weights = torch.randn(8, 15, 14).softmax(dim=-1)
    queries, keys = [f"query {n}" for n in range(15)], [f"key {n}" for n in range(14)]
    page = visit(
        explore(weights, queries, keys), viewport={"width": 390, "height": 844}
    )
    assert width(page, "html") == width(page, ".room") == 0
    query(page, "query 3").click()
    sizes = page.locator("td.lit").evaluate_all(
        "cells => cells.map(cell => parseFloat(getComputedStyle(cell).fontSize))"
    )
    assert len(sizes) == 14
    assert min(sizes) >= 9.33  # 7 pt
    assert page.locator("td.lit").evaluate_all(
        """cells => cells.every(cell => {
            const text = document.createRange();
            text.selectNodeContents(cell);
            return text.getBoundingClientRect().width <= cell.offsetWidth;
        })"""
    )


def test_a_wider_map_scrolls_by_itself_and_hides_numbers_that_do_not_fit(visit):
    keys = [f"key {n}" for n in range(64)]
    weights = torch.randn(3, 64).softmax(dim=-1)
    page = visit(
        explore(weights, QUERIES, keys), viewport={"width": 390, "height": 844}
    )
    assert width(page, "html") == 0
    assert width(page, ".room") > 0
    query(page, "sat").click()
    sizes = page.locator("td.lit").evaluate_all(
        "cells => cells.map(cell => getComputedStyle(cell).fontSize)"
    )
    assert set(sizes) == {"0px"}
    key(page, "key 3").hover()
    size = "name => parseFloat(getComputedStyle(name).fontSize)"
    assert key(page, "key 3").evaluate(size) >= 9.33  # the name stays


CUT = """names => names.filter(
    e => e.scrollWidth > e.clientWidth || e.scrollHeight > e.clientHeight
).map(e => e.textContent)"""
LONG = ["international", "congratulations", "New York City", "cat"]


@pytest.mark.parametrize("browser", FONTS, indirect=True)
def test_a_phone_shows_long_tokens_whole(visit):
    page = visit(
        explore(torch.eye(4), LONG, LONG), viewport={"width": 390, "height": 844}
    )
    assert page.locator("bdi").evaluate_all(CUT) == []
    assert width(page, "html") == width(page, ".room") == 0


@pytest.mark.parametrize("browser", USUAL, indirect=True)
def test_names_of_nine_letters_keep_to_one_line_where_the_keys_leave_room(visit):
    queries = ["cat", "discussed", "proposals", "yesterday"]
    page = visit(
        explore(torch.full((4, 12), 1 / 12), queries, "abcdefghijkl"),
        viewport={"width": 390, "height": 844},
    )
    heights = "rows => rows.map(row => row.getBoundingClientRect().height)"
    assert len(set(page.locator("tbody tr").evaluate_all(heights))) == 1
    assert width(page, "html") == width(page, ".room") == 0


def test_a_token_too_long_for_three_lines_is_whole_in_the_sentence(visit):
    endless = "=" * 64
    page = visit(
        explore(torch.eye(2), [endless, "cat"], [endless, "cat"]),
        viewport={"width": 390, "height": 844},
        has_touch=True,
    )
    query(page, endless).tap()
    assert said(page).startswith(f"“{endless}” looks at")
    assert query(page, endless).bounding_box()["height"] < 70
    assert page.locator("bdi").evaluate_all(CUT) == [endless] * 2


@pytest.mark.parametrize("browser", FONTS, indirect=True)
def test_pointing_at_a_token_moves_no_row(visit):
    tokens = [*LONG, "commercial", "attention", "remarkably", "Wednesday", "beginning"]
    page = visit(
        explore(torch.eye(9), tokens, tokens), viewport={"width": 390, "height": 844}
    )
    heights = "rows => rows.map(row => row.getBoundingClientRect().height)"
    before = page.locator("tr").evaluate_all(heights)
    for name in tokens:
        query(page, name).hover()
        assert page.locator("tr").evaluate_all(heights) == before


def test_a_site_can_allow_style_and_script_by_their_hashes(browser, tmp_path):
    explorer = explore(some_weights(2), QUERIES, KEYS)
    hashes = {
        tag: base64.b64encode(
            hashlib.sha256(
                re.search(rf"(?s)<{tag}>(.*?)</{tag}>", explorer.html)[1].encode()
            ).digest()
        ).decode()
        for tag in ("style", "script")
    }
    policy = "default-src 'none'; " + "; ".join(
        f"{tag}-src 'sha256-{digest}'" for tag, digest in hashes.items()
    )
    meta = f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    path = tmp_path / "strict.html"
    path.write_text(f"<!DOCTYPE html>{meta}<title>Strict</title>{explorer.html}")
    page = browser.new_page()
    page.goto(path.as_uri())
    query(page, "sat").hover()
    assert said(page).startswith("“sat” looks at")
    inks = page.locator("tbody td").evaluate_all(
        "cells => cells.map(cell => getComputedStyle(cell).backgroundColor)"
    )
    assert len(set(inks)) > 5
    page.close()


# The built book


def test_the_chapters_that_promise_an_explorer_hold_one():
    core = {"core/multi_head", "core/cross"}
    chapters = {"tools/explorer", "reading/translator"} | core
    pages = {f"book/{chapter}.html" for chapter in chapters}
    assert pages | {"index.html"} <= set(BUILT)


@pytest.mark.parametrize("name", BUILT)
def test_an_explorer_of_the_book_answers_and_can_be_read(browser, read, name):
    errors = []
    page = browser.new_page(viewport={"width": 390, "height": 844})
    page.on("pageerror", lambda error: errors.append(str(error)))
    read(page, (SITE / name).as_uri())
    for explorer in page.locator(".attention-explorer").all():
        explorer.locator("tbody button").first.click()
        expect(explorer.locator("output")).to_have_text(re.compile(" looks at "))
        explorer.locator("tbody button").first.click()
        wide = "room => room.scrollWidth - room.clientWidth"
        assert explorer.locator(".room").evaluate(wide) == 0
    page.mouse.move(0, 0)
    page.keyboard.press("Escape")
    for theme in ("light", "dark"):
        page.emulate_media(color_scheme=theme)
        expect(page.locator("html")).to_have_attribute("data-theme", theme)
        seen = page.evaluate(CONTRAST)
        poor = [text for text in seen if text[1] < 4.5 or text[2] < 9.33]
        assert json.dumps(poor) == "[]"
    assert width(page, "html") == 0
    assert errors == []
    page.close()
