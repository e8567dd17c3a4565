"""The API page knows every public name, and it and the cells lead to each other."""

import ast
import doctest
import json
import re
import sys
from pathlib import Path

import pytest
from bs4 import BeautifulSoup
from visits import soup

import attention
from attention.reading.language_model import language_model_path

ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / "_build" / "html"
API = SITE / "book" / "reference" / "api.html"
TOLD = re.findall(r"\bfile: *(\S+)", (ROOT / "_toc.yml").read_text())
CHAPTERS = [page for page in TOLD if (ROOT / f"{page}.ipynb").exists()]


sys.path.insert(0, str(ROOT / "book/_ext"))

import reference  # noqa: E402

TOLD_NAMES = reference.told_names(ROOT)
EXAMPLES = reference.examples(ROOT)
DEFINED = {
    node.name: ast.get_docstring(node)
    for module in (ROOT / "attention").rglob("*.py")
    for node in ast.parse(module.read_text("utf-8")).body
    if getattr(node, "name", None) in TOLD_NAMES
}
BEFORE = re.search(
    r"```pycon\n(.*?)```", (ROOT / f"{reference.PAGE}.md").read_text(), re.S
)


@pytest.fixture(scope="module")
def api() -> BeautifulSoup:
    return soup(API)


@pytest.fixture(scope="module")
def entries(api: BeautifulSoup) -> dict[str, BeautifulSoup]:
    """The sections that are about one name."""
    found = {}
    for section in api.select("article section:has(> h3)"):
        found[section.h3.code.get_text()] = section
    return found


def test_every_public_name_has_an_entry_and_every_entry_a_name(entries):
    assert sorted(entries) == sorted(TOLD_NAMES)
    assert set(attention.__all__) <= set(TOLD_NAMES)


def test_an_entry_holds_its_own_example_and_no_example_is_left_over(entries):
    assert sorted(EXAMPLES) == sorted(entries)
    for name, section in entries.items():
        if name in attention.__all__:
            assert name.lower() in EXAMPLES[name].lower(), name
        shown = section.select_one(".highlight-pycon pre").get_text().strip()
        assert (
            shown == EXAMPLES[name].removeprefix("```pycon").removesuffix("```").strip()
        )


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs_and_gives_what_it_says(name, tmp_path, monkeypatch):
    there = language_model_path().is_file()
    if name == "load_language_model" and not there:
        pytest.skip("needs the language model: `make model` fetches it")
    monkeypatch.chdir(tmp_path)
    session = BEFORE[1] + EXAMPLES[name].partition("\n")[2].removesuffix("```")
    test = doctest.DocTestParser().get_doctest(session, {}, name, None, None)
    told = []
    doctest.DocTestRunner(verbose=False).run(test, out=told.append)
    assert "".join(told) == ""


def test_a_default_is_a_value_and_a_string_has_its_quotes(entries):
    signatures = {name: section.pre.get_text() for name, section in entries.items()}
    for name, text in signatures.items():
        assert not re.search(r"= ?_\w", text), name
    assert (
        'caption: str = "Rows are queries, columns are keys."' in signatures["explore"]
    )
    assert 'direction: str = "enpt"' in signatures["load_translator"]


def test_a_private_default_is_told_by_its_value():
    source = '_TILE = 64\n\ndef f(a, *, tile: int = _TILE, kind="a.b"): ...'
    node = reference.definitions(source)["f"]
    told = reference.signature("f", node, source)
    assert told == 'f(a, *, tile: int = 64, kind="a.b")'


def test_all_names_at_a_glance_look_alike(browser, read):
    page = browser.new_page()
    read(page, API.as_uri())
    inks = "codes => [...new Set(codes.map(e => getComputedStyle(e).color))]"
    names = page.locator('article a[href^="#api-"] code')
    assert names.count() == len(TOLD_NAMES)
    assert len(names.evaluate_all(inks)) == 1
    source = page.get_by_role("link", name="Source of softmax")
    assert names.evaluate_all(inks) == source.evaluate_all(inks)
    page.close()


def test_an_entry_leads_to_the_cell_that_defines_its_name(entries):
    for name, section in entries.items():
        (link,) = [a for a in section.select("a") if a.text.startswith("Source of ")]
        path, _, anchor = link["href"].partition("#")
        cell = soup((API.parent / path).resolve()).find(id=anchor)
        assert cell is not None, link["href"]
        code = cell.select_one(".cell_input pre").get_text()
        assert re.search(rf"(?m)^(def|class) {name}\b|^{name} = ", code), name


def test_an_entry_shows_how_its_name_is_called_and_what_it_does(entries):
    for name, section in entries.items():
        assert section.pre.get_text().startswith(f"{name}("), name
        words = DEFINED[name].split("\n")[0]
        shown = section.select_one("div.highlight-python + p").get_text()
        shown = shown.replace("’", "'")
        assert shown.split()[0] == words.replace("`", "").split()[0], name


def test_shapes_are_written_as_in_the_chapters(api):
    signatures = " ".join(block.get_text() for block in api.select("article pre"))
    assert 'Float[Tensor, "' in signatures
    assert re.findall(r"jaxtyping|<class|dtype\[|typing\.", signatures) == []


@pytest.mark.parametrize("page", CHAPTERS)
def test_an_exported_cell_leads_to_what_it_defines(page: str, entries, api):
    cells = json.loads((ROOT / f"{page}.ipynb").read_text("utf-8"))["cells"]
    exported = [c for c in cells if "export" in c["metadata"].get("tags", [])]
    shown = soup(SITE / f"{page}.html")
    labels = shown.select(".tag_export .in-package")
    for cell, label in zip(exported, labels, strict=True):
        assert label.get_text().startswith("in the package")
        tree = ast.parse("".join(cell["source"])).body
        defined = {getattr(node, "name", None) for node in tree} & set(entries)
        linked = {a["href"].partition("#")[2] for a in label.select("a")}
        assert linked
        assert all(api.find(id=anchor) for anchor in linked)
        assert {a.text for a in label.select("a")} >= defined
        if defined:
            told = {part.h3.get_text()[:-1] for part in sections(api, linked)}
            assert told == defined


def sections(api, anchors):
    """What these addresses lead to; the address may be that of the section itself."""
    for found in (api.find(id=anchor) for anchor in anchors):
        yield found if found.name == "section" else found.find_parent("section")
