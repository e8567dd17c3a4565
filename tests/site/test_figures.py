"""Pictures can be read: by eye on a phone, in both colour schemes, and by ear."""

import json
from functools import cache
from io import BytesIO

import pytest
from PIL import Image
from playwright.sync_api import Browser, Locator
from visits import CHAPTERS, ROOT, Visit

FIGURES = """() => {
    const level = colour => {
        const [r, g, b] = colour.match(/[\\d.]+/g).slice(0, 3).map(c => c / 255)
            .map(c => c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
    };
    const page = level(getComputedStyle(document.body).backgroundColor);
    const contrast = colour =>
        Math.max(level(colour), page) / Math.min(level(colour), page);
    const lowest = colours => Math.min(99, ...colours
        .filter(colour => colour.startsWith("rgb")).map(contrast));
    const white = "rgb(255, 255, 255)";  // words on a filled area
    const holds = (area, text) => {  // the middle of the text
        const [a, t] = [area, text].map(each => each.getBoundingClientRect());
        const x = t.x + t.width / 2, y = t.y + t.height / 2;
        return a.left <= x && x <= a.right && a.top <= y && y <= a.bottom;
    };
    return [...document.querySelectorAll(".picture svg")].map(svg => {
        const words = [...svg.querySelectorAll("text")];
        const lines = [...svg.querySelectorAll("path, use, line")]
            .filter(line => !line.closest("defs"));
        const areas = lines.filter(area => getComputedStyle(area).fill !== "none");
        const under = text => areas.findLast(area => holds(area, text));
        return {
            spoken: svg.getAttribute("aria-label"),
            caption: svg.closest("figure")?.querySelector("figcaption")?.innerText,
            height: Math.min(...words.map(text => {
                const {a, b} = text.getScreenCTM();
                return parseFloat(getComputedStyle(text).fontSize) * Math.hypot(a, b);
            })),
            words: lowest(words.map(w => getComputedStyle(w).fill)
                .filter(colour => colour !== white)),
            white: Math.min(99, ...words
                .filter(text => getComputedStyle(text).fill === white)
                .map(under).map(area => area ? getComputedStyle(area).fill : white)
                .map(colour => 1.05 / level(colour))),
            hidden: svg.parentNode.scrollWidth - svg.parentNode.clientWidth,
            lines: lowest(lines.map(line => getComputedStyle(line).stroke)
                .filter(colour => colour !== white)),
        };
    });
}"""


@cache
def figures_of(visit: Visit) -> list[dict]:
    """The chapter's figures on a phone, in the light and again in the dark."""
    light = visit.view(390, "light").evaluate(FIGURES)
    return light + visit.view(390, "dark").evaluate(FIGURES)


@pytest.fixture
def figures(visit: Visit) -> list[dict]:
    return figures_of(visit)


of_each_chapter = pytest.mark.parametrize("visit", CHAPTERS, indirect=True)


@of_each_chapter
def test_figures_are_legible_on_a_phone_in_both_colour_schemes(figures):
    for figure in figures:
        assert figure["height"] >= 8.99, figure
        assert figure["words"] >= 4.5, figure
        assert figure["white"] >= 4.5, figure
        assert figure["lines"] >= 3, figure


@of_each_chapter
def test_a_figure_is_whole_on_a_phone(figures):
    assert not any(figure["hidden"] for figure in figures)


@of_each_chapter
def test_a_figure_is_spoken_as_its_chapter_describes_it_and_has_a_caption(
    figures, visit
):
    cells = json.loads((ROOT / f"{visit.name}.ipynb").read_text("utf-8"))["cells"]
    stored = [
        output["data"]
        for cell in cells
        for output in cell.get("outputs", [])
        if "image/svg+xml" in output.get("data", {})
    ]
    words = [" ".join("".join(data["text/plain"]).split()) for data in stored]
    assert [" ".join(figure["spoken"].split()) for figure in figures] == words * 2
    for figure in figures:
        assert len((figure["caption"] or "").split()) > 5, figure["spoken"]


def plain_edges(box: Locator) -> list[bool]:
    """Whether the paper on the left and on the right is that of the middle."""
    shot = Image.open(BytesIO(box.screenshot()))
    places = (1, shot.width // 2, shot.width - 2)
    left, middle, right = (shot.getpixel((x, shot.height // 2)) for x in places)
    return [left == middle, right == middle]


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_shadow_shows_where_a_picture_goes_on(browser: Browser, read, theme: str):
    page = browser.new_page(viewport={"width": 300, "height": 844}, color_scheme=theme)
    read(page, (ROOT / "_build/html/book/core/multi_head.html").as_uri())
    page.add_style_tag(content=".picture svg { visibility: hidden; }")
    box = page.locator("#fig-heads-map .picture")
    for width, left, plain in (
        (300, 0, [True, False]),
        (300, 40, [False, False]),
        (300, 9999, [False, True]),
        (390, 0, [True, True]),  # here the picture is whole
    ):
        page.set_viewport_size({"width": width, "height": 844})
        box.evaluate("(box, left) => { box.scrollLeft = left; }", left)
        assert plain_edges(box) == plain, (width, left)
    page.close()
