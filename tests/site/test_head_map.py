"""The map of all heads leads to each head's own map, by mouse and by keyboard."""

import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

SITE = Path(__file__).resolve().parents[2] / "_build" / "html"
NAME = "book/reading/heads"
LAYERS, HEADS, TOKENS = 30, 9, 10


@pytest.fixture(params=[390, 1280], ids=["phone", "desktop"])
def page(request, browser: Browser, read):
    errors = []
    page = browser.new_page(viewport={"width": request.param, "height": 844})
    page.on("pageerror", lambda error: errors.append(str(error)))
    read(page, (SITE / f"{NAME}.html").as_uri())
    yield page
    page.close()
    assert errors == []


def stored(page: Page, name: str) -> list[list[int]]:
    """Whole numbers that the page brings along, a row for each head."""
    text = page.locator(".head-map").get_attribute(f"data-{name}")
    return [[*map(int, row.split(" "))] for row in text.split(";")]


def shown(page: Page) -> list[int]:
    cells = page.locator(".head-map .one tbody td:not(.masked)").all_text_contents()
    return [*map(int, cells)]


def button(page: Page, layer: int, head: int):
    return (
        page.locator(".head-map .all tbody tr").nth(layer).locator("button").nth(head)
    )


def in_focus(page: Page) -> int:
    buttons = '[...document.querySelectorAll(".head-map .all button")]'
    return page.evaluate(f"{buttons}.indexOf(document.activeElement)")


def test_every_head_is_there_and_its_rows_sum_to_one(page):
    maps = stored(page, "maps")
    assert len(maps) == len(stored(page, "scores")) == LAYERS * HEADS
    assert page.locator(".head-map .all button").count() == LAYERS * HEADS
    starts = [row * (row + 1) // 2 for row in range(TOKENS + 1)]
    for weights in maps:
        assert len(weights) == starts[-1]
        for row in range(TOKENS):
            assert abs(sum(weights[starts[row] : starts[row + 1]]) - 100) <= TOKENS / 2


def test_before_and_after_the_script_the_same_head_is_in_view(page):
    assert shown(page) == stored(page, "maps")[18 * HEADS + 6]
    plain = json.loads((Path(__file__).parents[2] / f"{NAME}.ipynb").read_text("utf-8"))
    (cell,) = (cell for cell in plain["cells"] if cell["id"] == "map")
    html = "".join(cell["outputs"][0]["data"]["text/html"])
    table = html[html.index('<div class="one">') :]
    numbers = re.findall(r'<td style="--w:[\d.]+">(\d+)</td>', table)
    assert [*map(int, numbers)] == shown(page)


def test_a_click_leads_to_the_map_of_any_head(page):
    for layer, head in (16, 0), (0, 8), (29, 5):
        button(page, layer, head).click()
        assert shown(page) == stored(page, "maps")[layer * HEADS + head]
        told = page.locator(".head-map output")
        expect(told).to_have_text(f"In view: layer {layer}, head {head}.")
        expect(told).to_be_in_viewport()


@pytest.mark.parametrize("page", [1280], ids=["desktop"], indirect=True)
def test_the_arrow_keys_reach_every_head_from_one_stop(page):
    button(page, 0, 0).click()
    for layer in range(LAYERS):
        for head in range(1, HEADS):
            page.keyboard.press("ArrowLeft" if layer % 2 else "ArrowRight")
            at = HEADS - 1 - head if layer % 2 else head
            assert in_focus(page) == layer * HEADS + at
        page.keyboard.press("ArrowDown")
    assert shown(page) == stored(page, "maps")[(LAYERS - 1) * HEADS]
    page.keyboard.press("ArrowDown")  # there is no layer 30
    assert in_focus(page) == (LAYERS - 1) * HEADS
    assert page.locator('.head-map [tabindex="0"]').count() == 1
    assert page.locator('.head-map [aria-pressed="true"]').count() == 1


def test_a_button_is_called_by_its_place_and_its_scores(page):
    previous, sink, induction = stored(page, "scores")[16 * HEADS]
    name = f"p {previous} layer 16, head 0: previous token {previous}\u00a0%, "
    name += f"first token {sink}\u00a0%, induction {induction}\u00a0%"
    expect(button(page, 16, 0)).to_have_accessible_name(name)
