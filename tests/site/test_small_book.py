"""What the build makes of a small book: right pages, or no book and the reason why."""

import base64
import json
import re
import shutil
import subprocess
import sys
from copy import deepcopy
from io import BytesIO
from pathlib import Path

import pytest
import yaml
from fontTools.ttLib import TTFont

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "book/_ext"))

import formulas  # noqa: E402

CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text())
USED = ["cells", "citations", "formulas", "inline_svg"]  # of the local extensions
SQUARE = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 9 9">'
    '<rect width="9" height="9"/></svg>'
)
# The page's cells: a list of lines, with metadata and outputs where it is code.
SOUND = {
    "title": ["# Page", "", "> One sentence."],
    "link": ["See [the home page](index.md) and [this one](#page)."],
    "reference": ["See {numref}`fig-square` and {cite:p}`vaswani2017`."],
    "formula": [
        "With $d$ as in {eq}`eq-root`,",
        "",
        r"$$s = \frac{q^\top k}{\sqrt{d}}$$ (eq-root)",
        "",
        r"\begin{align}a &= b \\ c &= d\end{align}",
    ],
    "code": ["x = 1", "y = 2"],
    "sources": ["```{bibliography}", ":filter: docname in docnames", "```"],
    "picture": ["described(figure, 'A square.')"],
}
METADATA = {"mystnb": {"figure": {"caption": "A square.", "name": "fig-square"}}}
# Each broken copy: the cell that is at fault, its lines now (None: its picture has no
# alt text), and what is said of which line.
FAULTS = {
    "a picture without alt text": ("picture", None, {1: "no alt text"}),
    "an image without alt text": (
        "link",
        ["![ ](/book/_static/favicon.svg)"],
        {1: "no alt text"},
    ),
    "broken links": (
        "link",
        ["[a](no.md)", "", "[b](#nowhere)", "", "[c](index.md#never)"],
        {1: "'no.md'", 3: "'nowhere'", 5: "'never'"},
    ),
    "missing references": (
        "reference",
        ["{numref}`no`", "", "{cite:p}`nobody`", "", "{eq}`none`"],
        {1: "label: 'no'", 3: 'key "nobody"', 5: "equation not found: none"},
    ),
    "formulas that cannot be set": (
        "formula",
        ["With $d$", "", r"$$s = \foo$$ (eq-root)", "", r"$\text{한}$"],
        {3: r"cannot set s = \foo", 5: "the font lacks 한"},
    ),
}
# Each build has a process of its own, forked when all that it imports is loaded.
BUILD = """
import importlib, os, pathlib, sys
import jupyter_book.sphinx
from jupyter_book.cli.main import main

for name in {extensions}:
    importlib.import_module(name)
for folder in map(pathlib.Path, sys.argv[1:]):
    if os.fork() == 0:
        sys.stderr = open(folder / "log", "w")
        try:
            main(["build", str(folder), "-W", "-n", "--keep-going", "--quiet"])
        except SystemExit as end:
            (folder / "code").write_text(str(end.code))
        os._exit(0)
for folder in sys.argv[1:]:
    os.wait()
"""


def extensions() -> list[str]:
    """Those that the book uses and does not bring."""
    local = CONFIG["sphinx"]["local_extensions"]
    return [e for e in CONFIG["sphinx"]["config"]["extensions"] if e not in local]


def write(folder: Path, cells: dict[str, list[str]], alt: str = "A square.") -> None:
    """A book of a home page and one page, with the settings of this one."""
    pages = folder / "book"
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("_ext", "_static", "_templates"):
        shutil.copytree(ROOT / "book" / name, pages / name, ignore=ignored)
    (pages / "references.bib").write_text(
        "@article{vaswani2017, author={A}, title={B}, journal={C}, year={2017}}"
    )
    config = deepcopy(CONFIG)
    config["sphinx"]["local_extensions"] = dict.fromkeys(USED, "book/_ext")
    config["sphinx"]["config"]["extensions"] = extensions() + USED
    (folder / "_config.yml").write_text(yaml.safe_dump(config))
    (folder / "_toc.yml").write_text(
        "format: jb-book\nroot: book/index\nchapters:\n- file: book/page\n"
    )
    (pages / "index.md").write_text("# Home\n")
    page = {
        "cells": [cell(name, lines, alt) for name, lines in cells.items()],
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    (pages / "page.ipynb").write_text(json.dumps(page))


def cell(name: str, lines: list[str], alt: str) -> dict:
    made = {"id": name, "metadata": {}, "source": "\n".join(lines)}
    if name not in ("code", "picture"):
        return made | {"cell_type": "markdown"}
    made |= {"cell_type": "code", "execution_count": 1, "outputs": []}
    if name == "picture":
        data = {"image/svg+xml": SQUARE, "text/plain": "A square."}
        made["metadata"] = {"mystnb": METADATA["mystnb"] | {"image": {"alt": alt}}}
        made["outputs"] = [
            {"output_type": "display_data", "data": data, "metadata": {}}
        ]
    return made


@pytest.fixture(scope="module")
def books(tmp_path_factory) -> dict[str, Path]:
    """The sound book and a copy with each fault, all built in one process."""
    folders = {name: tmp_path_factory.mktemp("book") for name in ("sound", *FAULTS)}
    write(folders["sound"], SOUND)
    for name, (broken, lines, _) in FAULTS.items():
        if lines is None:
            write(folders[name], SOUND, alt="")
        else:
            write(folders[name], SOUND | {broken: lines})
    script = BUILD.format(extensions=extensions())
    command = [sys.executable, "-c", script, *map(str, folders.values())]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folders


@pytest.fixture(scope="module")
def page(books) -> str:
    return (books["sound"] / "_build/html/book/page.html").read_text("utf-8")


def test_a_sound_book_is_built(books):
    assert (books["sound"] / "log").read_text() == ""
    assert (books["sound"] / "code").read_text() == "0"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_fails_the_build_and_is_told_with_file_and_cell(fault, books):
    broken, _, expected = FAULTS[fault]
    assert (books[fault] / "code").read_text() == "1"
    told = (books[fault] / "log").read_text().splitlines()
    assert len(told) == len(expected), told
    for line, words in expected.items():
        place = f"book/page.ipynb: cell {broken}, line {line}: WARNING: "
        assert [t for t in told if place in t and words in t], (place, words, told)


def test_a_formula_with_a_label_has_a_number_that_its_reference_leads_to(page):
    assert re.search(r'<div class="math[^>]* id="equation-eq-root"', page)
    assert re.search(r'<span class="eqno">\(1\)', page)
    assert re.search(r'href="#equation-eq-root">\(1\)</a>', page)


def test_rows_of_an_environment_are_one_numbered_formula(page):
    assert re.search(r'<span class="eqno">\(2\)', page)
    rows = page[page.index("<mtable") : page.index("</mtable>")]
    assert rows.count("<mtr>") == 2
    assert "<mtext>(" not in rows, "math-core numbered them, too"


def test_a_picture_is_part_of_the_page_and_labelled(page):
    assert re.search(r'<svg [^>]*aria-label="A square\."', page)


def test_a_font_that_was_cut_keeps_its_date_so_that_two_builds_are_one(books):
    css = (books["sound"] / "_build/html/_static/formulas.css").read_text("utf-8")
    fonts = re.findall(r"font/woff2;base64,([\w+/=]+)", css)
    assert fonts
    for data in fonts:
        cut = TTFont(BytesIO(base64.b64decode(data)))
        assert cut["head"].modified == formulas.load()["head"].modified
