"""What must stay true of the tool that runs the chapters and stores their outputs."""

import json
import sys
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "book"))

import execute  # noqa: E402

TOC = """\
root: book/index
parts:
  - caption: A part
    chapters:
      - file: book/one/early
      - file: book/one/late
"""
PICTURE = """\
class Picture:
    def _repr_mimebundle_(self, include=None, exclude=None):
        return {"image/svg+xml": "<svg/>", "text/plain": "A small picture."}


Picture()"""
TIMING = """\
from time import perf_counter

print(f"after {perf_counter():.9f} s")"""


def cell(source: str, name: str, **metadata) -> dict:
    return {
        "cell_type": "code",
        "id": name,
        "metadata": metadata,
        "source": source,
        "outputs": [],
        "execution_count": 77,
    }


def notebook(*cells: dict) -> str:
    head = {"cell_type": "markdown", "id": "title", "metadata": {}, "source": "# Title"}
    metadata = {"language_info": {"name": "python", "version": "2.7"}, "author": "me"}
    book = {"nbformat": 4, "nbformat_minor": 5, "metadata": metadata}
    return json.dumps(book | {"cells": [head, *cells]})


class Book:
    """Two chapters in a folder of their own."""

    def __init__(self, root: Path):
        self.root = root
        (root / "book/one").mkdir(parents=True)
        (root / "_toc.yml").write_text(TOC)
        self.early, self.late = (
            root / f"book/one/{n}.ipynb" for n in ("early", "late")
        )
        self.early.write_text(notebook(cell("print(1)", "one")))
        self.late.write_text(notebook(cell("print(2)", "two")))

    def files(self) -> dict[Path, bytes]:
        files = [path for path in self.root.rglob("*") if path.is_file()]
        return {path: path.read_bytes() for path in files}

    def outputs(self, path: Path) -> list[list[dict]]:
        return [
            cell.get("outputs", []) for cell in json.loads(path.read_text())["cells"]
        ]


@pytest.fixture
def book(tmp_path, monkeypatch):
    monkeypatch.setattr(execute, "device", lambda: "cpu")
    return Book(tmp_path)


@pytest.fixture
def failed(book, capfd):
    """Run the late chapter: it must fail in one line, and keep what it held."""

    def failed() -> str:
        before = book.files()
        assert execute.main(book.root, ["one/late"]) == 1
        assert book.files() == before
        return capfd.readouterr().err.removesuffix("\n")

    return failed


# What is stored


def test_a_run_stores_what_the_chapter_gives_and_a_second_run_changes_nothing(
    book, capsys
):
    figure = {
        "image": {"alt": "An old text.", "classes": "wide"},
        "figure": {"name": "f"},
    }
    book.late.write_text(
        notebook(
            cell(
                "print(1, flush=True)\nprint('two')\n7",
                "one",
                execution={},
                tags=["export"],
            ),
            cell(PICTURE, "picture", mystnb=figure, scrolled=True),
            cell("x = 3", "no-picture", mystnb={"image": {"alt": "A picture gone."}}),
            cell(TIMING, "timing", tags=["nbval-ignore-output"]),
        )
    )
    assert execute.main(book.root) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said] == [
        "book/one/early.ipynb",
        "book/one/late.ipynb",
    ]
    assert all(line.endswith(" s on cpu, stored") for line in said)
    stored = book.late.read_text()
    assert stored.endswith("}\n")
    late = json.loads(stored)
    assert late["metadata"] == {
        "kernelspec": {
            "display_name": "Python 3",
            "language": "python",
            "name": "python3",
        },
        "language_info": {"name": "python"},
    }
    _, one, picture, gone, timing = late["cells"]
    assert [c["execution_count"] for c in (one, picture, gone, timing)] == [1, 2, 3, 4]
    assert one["metadata"] == {"tags": ["export"]}
    assert [output["output_type"] for output in one["outputs"]] == [
        "stream",
        "execute_result",
    ]
    assert "".join(one["outputs"][0]["text"]) == "1\ntwo\n"
    assert picture["metadata"] == {
        "mystnb": {
            "image": {"alt": "A small picture.", "classes": "wide"},
            "figure": {"name": "f"},
        }
    }
    assert gone["metadata"] == {}

    assert execute.main(book.root, ["book/one/late.ipynb"]) == 0
    assert capsys.readouterr().out.endswith(" s on cpu, unchanged\n")
    assert book.late.read_text() == stored


def test_chapters_run_in_the_order_of_the_book_and_in_their_own_folder(book):
    book.early.write_text(notebook(cell("open('trace', 'w').close()", "one")))
    book.late.write_text(notebook(cell("print(open('trace').name)", "two")))
    assert execute.main(book.root, ["one/late", str(book.early)]) == 0
    assert "".join(book.outputs(book.late)[1][0]["text"]) == "trace\n"
    assert (book.root / "book/one/trace").is_file()


@pytest.fixture
def fresh(tmp_path):
    """Store a run that printed `text` in an unchecked cell which held `stored`."""
    path = tmp_path / "late.ipynb"

    def page(said: str, source: str) -> dict:
        timing = cell("time_it()", "timing", tags=["nbval-ignore-output"])
        timing["outputs"] = [{"output_type": "stream", "name": "stdout", "text": said}]
        return nbformat.from_dict(json.loads(notebook(timing, cell(source, "other"))))

    def fresh(text: str, stored: str, other: str = "1") -> tuple[str, str]:
        path.write_text(nbformat.writes(page(stored, "1")) + "\n")
        done = execute.store(path, page(text, other))
        timing = json.loads(path.read_text())["cells"][1]
        return done, "".join(timing["outputs"][0]["text"])

    return fresh


def test_new_times_alone_are_not_worth_a_change(fresh):
    assert fresh("12.5 times", stored="9 times") == ("unchanged", "9 times")


def test_new_times_are_stored_with_other_words_or_with_another_change(fresh):
    assert fresh("12.5 s", stored="9 times") == ("stored", "12.5 s")
    assert fresh("12.5 s", stored="9 s", other="2") == ("stored", "12.5 s")


# What fails: in one line that names the file and the cell, and nothing is stored


def test_a_chapter_that_raises_keeps_its_outputs_and_the_others_still_run(book, capfd):
    fails = cell("print(1)\nraise ValueError('first\\nlast')", "fails")
    book.early.write_text(notebook(cell("x = 0", "works"), fails))
    before = book.early.read_bytes()
    assert execute.main(book.root) == 1
    out, err = capfd.readouterr()
    assert err == (
        "failed: book/one/early.ipynb, cell 3 (fails): ValueError: first last\n"
    )
    assert out.startswith("book/one/late.ipynb: ")
    assert book.early.read_bytes() == before
    assert book.outputs(book.late)[1]


def test_a_warning_fails(book, failed):
    source = "import warnings\n\nwarnings.warn('take care')"
    book.late.write_text(notebook(cell(source, "warns")))
    said = failed()
    assert (
        "failed: book/one/late.ipynb, cell 2 (warns): must not write to stderr" in said
    )
    assert "take care" in said


def test_a_kernel_that_dies_fails(book, failed):
    book.late.write_text(notebook(cell("import os\n\nos._exit(3)", "dies")))
    assert failed() == "failed: book/one/late.ipynb, cell 2 (dies): Kernel died"


def test_a_cell_that_never_ends_fails(book, failed, monkeypatch):
    monkeypatch.setattr(execute, "TIMEOUT", 1)
    book.late.write_text(notebook(cell("while True:\n    pass", "waits")))
    said = failed()
    assert said.startswith(
        "failed: book/one/late.ipynb, cell 2 (waits): A cell timed out"
    )
    assert "\n" not in said


def test_a_notebook_that_is_none_fails_like_in_tangle(book, failed):
    book.late.write_text("{")
    assert failed().startswith("failed: book/one/late.ipynb: not JSON: ")


def test_a_chapter_that_nobody_lists_is_refused(book, failed):
    assert execute.main(book.root, ["one/never"]) == 1
    (book.root / "_toc.yml").write_text(TOC.replace("late", "other"))
    assert failed().splitlines() == [
        "refused: no chapter 'one/never' in _toc.yml, which has one/early, one/late",
        "refused: no chapter 'one/late' in _toc.yml, which has one/early",
    ]


def test_a_kernel_that_is_not_installed_fails(book, failed, monkeypatch):
    monkeypatch.setitem(execute.KERNEL, "name", "no-such-kernel")
    said = failed()
    assert said.startswith("failed: book/one/late.ipynb: No such kernel")
    assert "\n" not in said
