"""What must stay true of the tool that runs the chapters and stores their outputs."""

import json
import re
import sys
from pathlib import Path

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st

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
TIES = """\
import os
from IPython.display import clear_output, display

open("early.ipynb", "a").write(" ")
open("left", "w").close()
os.mkdir("../folder")
display(1, display_id="here").update(2)
clear_output()
exit()"""
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


def test_chapters_run_in_the_order_of_the_book_and_see_the_files_around_them(book):
    book.early.write_text(notebook(cell("print(1 + 1)", "one")))
    reads = "print(open('early.ipynb').read().count('2\\\\n'))"
    reads += "\nprint(open('../../_toc.yml').readline())"
    book.late.write_text(notebook(cell(reads, "two")))
    assert execute.main(book.root, ["one/late", str(book.early)]) == 0
    assert "".join(book.outputs(book.late)[1][0]["text"]) == "1\nroot: book/index\n\n"


PIECES = st.lists(st.tuples(st.sampled_from(["stdout", "other"]), st.text("ab\r\n\b")))


def ran(*outputs: dict) -> nbformat.NotebookNode:
    """A chapter whose only cell gave this."""
    return nbformat.from_dict(
        json.loads(notebook(cell("x", "one") | {"outputs": outputs}))
    )


@given(PIECES)
def test_what_is_printed_in_pieces_is_stored_whole(pieces):
    outputs = [{"output_type": "stream", "name": n, "text": text} for n, text in pieces]
    outputs.insert(1, {"output_type": "display_data", "data": {}, "metadata": {}})
    merged = execute.normal(ran(*outputs)).cells[1].outputs
    texts = {output.name: output.text for output in merged if "name" in output}
    whole = {name: "" for name, _ in pieces}
    for name, text in pieces:
        whole[name] += text
    # A carriage return takes the line back, as nbclient has it.
    assert texts == {n: re.sub(r".*\r(?=[^\n])", "", t) for n, t in whole.items()}
    assert len(merged) == len(texts) + 1


def test_a_chapter_that_is_a_link_stays_one(tmp_path):
    path, real = tmp_path / "late.ipynb", tmp_path / "real.ipynb"
    real.write_text(notebook(cell("x", "one")))
    path.symlink_to(real)
    assert execute.store(path, ran()) == "stored"
    assert path.is_symlink()
    assert json.loads(real.read_text())["metadata"] == {
        "language_info": {"name": "python", "version": "2.7"},
        "author": "me",
    }


def test_a_chapter_that_is_read_only_is_kept(tmp_path):
    path = tmp_path / "late.ipynb"
    path.write_text(notebook(cell("x", "one")))
    path.chmod(0o444)
    before = path.read_bytes()
    with pytest.raises(execute.Refusal, match=r"cannot be written: it is read-only"):
        execute.store(path, ran())
    assert path.read_bytes() == before


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


def test_a_chapter_sees_a_copy_of_its_folder_and_the_rest_as_it_is(book, tmp_path):
    (book.root / "book/one/.late.ipynb.77").write_text("the draft of another run")
    (book.root / "_build").mkdir()
    with execute.TemporaryDirectory() as folder:
        copy = Path(folder)
        execute.mirror(book.root, copy, Path("book/one"))
        held = execute.holdings(copy)
        assert (copy / "_toc.yml").read_text() == TOC
        assert {path.name for path in (copy / "book/one").iterdir()} == {
            "early.ipynb",
            "late.ipynb",
        }
        (book.root / "_build").rmdir()  # what happens elsewhere is no cell's deed
        (book.root / "_toc.yml").write_text("")
        assert execute.holdings(copy) == held
        (copy / "book/one/late.ipynb").unlink()
        assert execute.holdings(copy) != held
    assert book.late.is_file()


def test_what_a_cell_leaves_behind_or_takes_back_fails(book, failed):
    prints = cell("print('x' * 3_000_000)", "prints")
    book.late.write_text(notebook(prints, cell(TIES, "ties")))
    assert failed() == (
        "failed: book/one/late.ipynb, cell 3 (ties): must not "
        "display what can be updated, nor update a display, nor clear its output, "
        "nor end the kernel, nor leave '../folder' beside the chapter, "
        "nor change 'early.ipynb' beside the chapter, "
        "nor leave 'left' beside the chapter"
    )


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("", "must hold code, is empty"),
        (" \n", "must hold code, is empty"),
        ("1 + 1;", "must not end in `;`"),
        ("x = 1 ;  # a comment\n\n", "must not end in `;`"),
        ("'''\n1;'''\n# one; two;", None),
        ("print(", None),
        ("  x\n y;", None),
        ("# only words", None),
    ],
)
def test_a_cell_that_cannot_give_the_same_to_the_verifier_is_refused(source, why):
    assert execute.unfit(source).startswith(why) if why else not execute.unfit(source)


def test_a_cell_that_cannot_give_the_same_fails_before_the_chapter_runs(book, failed):
    book.late.write_text(notebook(cell("1 / 0", "fails"), cell("", "empty")))
    why = "must hold code, is empty"
    assert failed() == f"failed: book/one/late.ipynb, cell 3 (empty): {why}"


def test_what_differs_between_two_runs_fails_when_asked(book, capfd):
    close = "import os\nprint(2 + os.getpid() * 1e-12)"
    prints = "print({str(i) for i in range(20)})"
    timing = cell(TIMING, "timing", tags=["nbval-ignore-output"])
    book.late.write_text(notebook(timing, cell(close, "close"), cell(prints, "prints")))
    before = book.files()
    assert execute.main(book.root, ["one/late"], twice=True) == 1
    assert book.files() == before
    must = "must give what a second run gives: stdout: stored is "
    said = capfd.readouterr().err
    assert said.startswith(f"failed: book/one/late.ipynb, cell 4 (prints): {must}")


def test_a_picture_that_the_verifier_cannot_compare_fails():
    data = {"image/png": "AAAA", "text/plain": "A picture."}
    late = ran({"output_type": "display_data", "data": data, "metadata": {}})
    with pytest.raises(execute.Refusal, match=r"late, cell 2 \(one\): .* must be SVG"):
        execute.compare(late, late, Path("late"))


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


def test_a_chapter_whose_needs_are_not_met_is_passed_over_and_told(
    book, monkeypatch, capsys
):
    def lacking(name):
        return "needs more" if name == "late.ipynb" else ""

    monkeypatch.setattr(execute.verifier, "lacking", lacking)
    was = book.late.read_bytes()
    assert execute.main(book.root) == 0
    assert book.late.read_bytes() == was
    told = "skipped: book/one/late.ipynb keeps the outputs it had: it needs more\n"
    assert capsys.readouterr().err == told
    assert execute.main(book.root, ["one/late"]) == 1
