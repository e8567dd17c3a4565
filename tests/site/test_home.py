"""The home page shows all that there is, as the chapters and the package say it."""

import json
import re
import sys
from pathlib import Path

import pytest
from bs4 import BeautifulSoup, Tag
from fonts import FONTS

import attention

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "book" / "_ext"))

import overview  # noqa: E402

HOME = ROOT / "_build" / "html" / "index.html"
TOLD = re.findall(r"\bfile: *(\S+)", (ROOT / "_toc.yml").read_text("utf-8"))
PARTS = list(overview.parts(ROOT))
CHAPTERS = [page for _, pages in PARTS for page in pages]


@pytest.fixture(scope="module")
def home() -> Tag:
    return BeautifulSoup(HOME.read_text("utf-8"), "html.parser").article


@pytest.fixture(scope="module")
def stations(home: Tag) -> dict[str, Tag]:
    """The places on the path, by the chapter that each leads to."""
    return {page_of(item.p.a): item for item in home.select("ol.path > li")}


def page_of(link: Tag) -> str:
    path = (HOME.parent / link["href"].partition("#")[0]).resolve()
    path = HOME if path == HOME.parent else path
    return str(path.relative_to(HOME.parent).with_suffix(""))


def words(element: Tag) -> str:
    return " ".join(element.get_text().split())


def straight(text: str) -> str:
    """As it is written, not as it is set: without marks and curly quotes."""
    return re.sub("[`*]", "", text).translate(str.maketrans("‘’“”", "''\"\""))


def first_lines(page: str) -> tuple[str, str]:
    cell = json.loads((ROOT / f"{page}.ipynb").read_text("utf-8"))["cells"][0]
    title, lead = "".join(cell["source"]).split("\n\n", 1)
    return title.removeprefix("# "), " ".join(lead.replace("> ", "").split())


def test_every_page_of_the_book_is_linked_from_home(home):
    linked = {page_of(a) for a in home.select("a[href]") if "//" not in a["href"]}
    assert set(TOLD) - linked == set()


def test_the_path_leads_through_all_chapters_in_their_order(home, stations):
    assert list(stations) == CHAPTERS
    assert set(CHAPTERS) == {
        page for page in TOLD if (ROOT / f"{page}.ipynb").exists()
    } - {page for page in TOLD if "/reference/" in page}
    headings = home.select("#the-path section > h3")
    captions = [heading.contents[0] for heading in headings]
    assert captions == [caption for caption, _ in PARTS]


@pytest.mark.parametrize("page", CHAPTERS)
def test_a_chapter_is_told_by_its_title_and_its_lead(page, stations):
    title, lead = first_lines(page)
    said = [straight(words(p)) for p in stations[page].select("p")]
    assert said[:2] == [straight(title), straight(lead)]


@pytest.mark.parametrize("page", CHAPTERS)
def test_a_chapter_is_told_by_what_its_module_adds_and_builds_on(page, stations):
    module = ROOT / f"{page.replace('book/', 'attention/', 1)}.py"
    said = stations[page].select("p")[2:]
    assert len(said) == module.exists()
    for line in said:
        source = module.read_text("utf-8")
        names = {code.get_text() for code in line.select("code")}
        assert names
        assert all(
            re.search(rf"(?m)^(?:def|class) {n}\b|^{n} =", source) for n in names
        )
        linked = {code.get_text() for code in line.select("a code")}
        assert linked == names & set(attention.__all__)
        bases = [page_of(a) for a in line.select("a:not(:has(code))")]
        imports = re.findall(r"(?m)^from attention\.(\S+) import", source)
        imports = [f"book/{name.replace('.', '/')}" for name in imports]
        assert bases == [
            each
            for each in dict.fromkeys(imports)
            if not each.startswith(overview.ASIDE)
        ]


def test_a_public_name_stands_where_its_chapter_does(stations):
    told = [code.get_text() for s in stations.values() for code in s.select("a code")]
    assert sorted(told) == sorted(attention.__all__)


@pytest.mark.parametrize("page", CHAPTERS)
def test_a_chapter_shows_its_first_map_and_a_dot_where_it_draws_none(page, stations):
    cells = overview.first_map(ROOT, page)
    is_map = {cell[4] for cell in cells} == {overview.INK}
    glyph = stations[page].select_one("svg.glyph")
    assert glyph["aria-hidden"] == "true"  # the words beside it say what it is
    assert len(glyph.select("circle")) == (not is_map)
    paths = {path["fill-opacity"]: path["d"] for path in glyph.select("path")}
    drawn = [cell for cell in cells if round(20 * cell[5])] if is_map else []
    assert sum(d.count("M") for d in paths.values()) == len(drawn) + is_map


def test_a_chapter_that_stores_a_map_of_weights_shows_one():
    draw = {
        page
        for page in CHAPTERS
        for cell in overview.cells(ROOT, page)
        if "show_weights(" in cell["source"] and cell.get("outputs")
    }
    dots = {
        page for page in draw if "dot" in overview.glyph(overview.first_map(ROOT, page))
    }
    assert not dots


def test_the_map_is_the_one_that_its_chapter_stores(home):
    directive = (ROOT / "book/index.md").read_text("utf-8")
    page, name = re.search(r"```\{stored\} (\S+) (\S+)", directive).groups()
    (cell,) = (
        cell
        for cell in json.loads((ROOT / f"{page}.ipynb").read_text("utf-8"))["cells"]
        if cell["id"] == name
    )
    (output,) = cell["outputs"]
    html = "".join(output["data"]["text/html"])
    assert html in HOME.read_text("utf-8")
    assert len(home.select(".attention-explorer")) == 1


# A name: is any of it cut off, and does it take another line without need?
NAMES = """names => names.map(name => {
    const line = document.createRange();
    line.selectNodeContents(name);
    const room = name.getBoundingClientRect();
    const cut = name.scrollWidth > name.clientWidth
        || name.scrollHeight > name.clientHeight;
    name.style.whiteSpace = "pre";
    const {width, height} = line.getBoundingClientRect();
    name.style.whiteSpace = "";
    return [name.textContent, cut, room.height > 1.5 * height, width + 1 < room.width];
})"""


@pytest.mark.parametrize("browser", FONTS, indirect=True)
def test_the_names_beside_the_map_are_read_whole_on_a_phone(browser, read):
    page = browser.new_page(viewport={"width": 390, "height": 844})
    read(page, HOME.as_uri())
    names = page.locator(".attention-explorer tbody bdi").evaluate_all(NAMES)
    room = page.locator(".attention-explorer .room")
    assert room.evaluate("room => room.scrollWidth <= room.clientWidth")
    page.close()
    assert [name for name, cut, _, _ in names if cut] == []
    assert [name for name, _, broken, fits in names if broken and fits] == []
    broken = [name for name, _, broken, _ in names if broken]
    assert len(broken) <= len(names) / 5, "most names keep to one line"


def test_what_home_says_of_importing_it_runs(home):
    (code,) = home.select("#import-it .highlight-python pre")
    space = {}
    exec(code.get_text(), space)
    assert space["context"].shape == (2, 6, 768)
