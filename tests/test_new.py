"""What `make new` writes passes every test; what it refuses leaves no trace."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from examples import said

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "book"))

import execute  # noqa: E402
import new  # noqa: E402
import tangle  # noqa: E402

NAMES = "tests/conformance/names.py"
LEFT_OUT = [".git", ".venv", "_build", "__pycache__", ".*_cache", ".hypothesis"]


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    tree = tmp_path_factory.mktemp("copy") / "book"
    ignore = shutil.ignore_patterns(*LEFT_OUT, "benchmarks", "site")
    return shutil.copytree(ROOT, tree, ignore=ignore)


@pytest.fixture
def untouched(copy):
    """After the test, the tree holds what it held before."""
    before = held(copy)
    yield copy
    assert held(copy) == before


def held(tree: Path) -> dict[Path, bytes | None]:
    """All folders and files, with what these hold; bytecode comes and goes."""
    paths = (path for path in tree.rglob("*") if "__pycache__" not in path.parts)
    return {path: path.read_bytes() if path.is_file() else None for path in paths}


REFUSED = {
    "no part": ("rotary", "", said("CHAPTER", "<part>/<chapter>", "got 'rotary'")),
    "no name": ("", "", said("CHAPTER", "<part>/<chapter>", "got ''")),
    "too deep": ("a/b/c", "", said("CHAPTER", "<part>/<chapter>", "got 'a/b/c'")),
    "outside": ("../x", "", said("CHAPTER", "<part>/<chapter>", "got '../x'")),
    "a keyword": ("position/class", "", said("CHAPTER", "Python can import", "class")),
    "a part like that": ("for/rotary", "", said("CHAPTER", "can import", "for")),
    "a dash": ("position/al-ibi", "", said("CHAPTER", "can import", "al-ibi")),
    "capitals": ("position/Alibi", "", said("CHAPTER", "small letters", "Alibi")),
    "the reference": ("reference/x", "", said("CHAPTER", "expected", "got reference")),
    "a chapter": ("core/causal", "", said("CHAPTER", "book/core/causal.ipynb")),
    "its path": ("book/core/masks.ipynb", "", said("there is book/core/masks.ipynb")),
    "its answers": ("speed/causal", "", said("there is tests/exercises/causal.py")),
    "a public name": ("core/attend", "", said("core/attend", "exports `attend` again")),
    "two lines": ("nowhere/turning", "a\nb", said("TITLE", "one line", "a\\nb")),
    "no words": ("nowhere/turning", "  ", said("TITLE", "plain words")),
    "what hides torch": ("position/torch", "", said("position/torch", "cell")),
}


@pytest.mark.parametrize(
    ("chapter", "title", "message"), REFUSED.values(), ids=[*REFUSED]
)
def test_what_cannot_be_a_chapter_is_refused_in_a_sentence(
    chapter, title, message, untouched, capsys
):
    assert new.main(untouched, chapter, title) == 1
    told = capsys.readouterr().err
    assert "refused: " in told
    assert re.search(message, told), told


@pytest.mark.parametrize("fault", [KeyboardInterrupt, tangle.Refusal, OSError])
def test_a_run_that_fails_or_is_stopped_leaves_nothing_half_written(
    fault, untouched, monkeypatch
):
    def fail(*arguments):
        assert (untouched / "book/nowhere/turning.ipynb").exists()
        raise fault("as asked")

    monkeypatch.setattr(execute, "run", fail)
    if fault is KeyboardInterrupt:
        with pytest.raises(KeyboardInterrupt):
            new.main(untouched, "nowhere/turning")
    else:
        assert new.main(untouched, "nowhere/turning") == 1


def test_a_chapter_stands_at_the_end_of_its_part_a_new_part_before_the_tools():
    toc = (ROOT / "_toc.yml").read_text("utf-8")
    core = new.listed(toc, "core/rotary", "")
    assert core.replace("      - file: book/core/rotary\n", "") == toc
    assert set(tangle.contents(ROOT)) < set(contents(core))
    place = contents(core).index("core/rotary")
    assert contents(core)[place - 1].startswith("core/")
    assert not contents(core)[place + 1].startswith("core/")
    position = contents(new.listed(toc, "nowhere/turning", "Nowhere"))
    assert position[position.index("nowhere/turning") + 1].startswith("tools/")


def test_what_is_still_the_skeletons_is_told_until_it_is_changed(tmp_path, capsys):
    """No test refuses it, for the skeleton passes all of them."""
    name = "further/steps_back"
    for path, text in new.texts(ROOT, name, "Steps back", "Further").items():
        written = tmp_path / path.relative_to(ROOT)
        written.parent.mkdir(parents=True, exist_ok=True)
        written.write_text(text, "utf-8")
    assert new.left(tmp_path, name) == 0
    told = capsys.readouterr().out
    file = tmp_path / f"book/{name}.ipynb"
    for words in f"book/{name}.ipynb", "title, question", "map (its caption", NAMES:
        assert words in told
    page = execute.nbformat.read(file, 4)
    for cell in page.cells:
        if cell.cell_type == "markdown":
            cell.source = "## The question\n\nWhat else is far?"
    execute.nbformat.write(page, file)
    names = tmp_path / NAMES
    names.write_text(
        names.read_text("utf-8").replace(new.REASON, "is another"), "utf-8"
    )
    caption = "map (its caption, in the cell's metadata)"
    assert new.unchanged(tmp_path, name) == [caption]


def test_a_chapter_of_the_book_holds_no_words_of_the_skeleton(capsys):
    for name in "core/causal", "position/rotary", "tools/maps":
        assert new.left(ROOT, name) == 0
    assert capsys.readouterr().out == ""
    assert new.left(ROOT, "causal") == 1
    assert capsys.readouterr().err.startswith("refused: CHAPTER: expected")


def asked(chapter: str, *options: str) -> subprocess.CompletedProcess[str]:
    """`make check` of a chapter, without what it stands on."""
    command = ["make", "--no-print-directory", "--old-file=.venv/.ready", *options]
    command += ["check", f"PY={sys.executable}", f"CHAPTER={chapter}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(
    "spelling",
    [
        *("book/core/masks.ipynb", "./book/core/masks.ipynb", "core/masks.ipynb"),
        *("book/core/masks", "./core/masks", f"{ROOT}/book/core/masks.ipynb"),
    ],
)
def test_a_chapter_is_checked_however_its_path_is_written(spelling):
    one, other = (asked(name, "--dry-run").stdout for name in (spelling, "core/masks"))
    assert "tests/core/test_masks.py" in other
    assert one == other


def test_a_chapter_is_checked_for_the_examples_of_its_names():
    words = re.search(r'-k "(masks or [^"]+)"', asked("core/masks", "--dry-run").stdout)
    name = "test_every_name_of_the_package_has_an_example"
    assert any(word in name for word in words[1].split(" or "))


@pytest.mark.parametrize(
    ("chapter", "words"),
    [
        ("core/maskz", ["no chapter core/maskz", "core has", "causal", "masks"]),
        ("cor/masks", ["no chapter cor/masks", "no part cor"]),
        ("", ["Name a chapter"]),
    ],
)
def test_a_chapter_that_is_not_there_is_told_of_those_that_are(chapter, words):
    made = asked(chapter)
    assert made.returncode
    assert not made.stdout
    for word in words:
        assert word in made.stderr


def contents(toc: str) -> list[str]:
    return [line.split("book/")[1] for line in toc.splitlines() if "book/" in line]


def test_the_skeleton_passes_every_test_as_it_is(copy, capsys):
    """A short name and a long one: lines break elsewhere."""
    names = "ab/of", "somewhere/relative_positions_in_buckets"
    for name in names:
        assert new.main(copy, name, "Steps that count") == 0, capsys.readouterr().err
    own = ["tests/{}/test_{}.py".format(*name.split("/")) for name in names]
    asked = " or ".join((*names, "in_the_toc"))
    options = ["-q", "-p", "no:cacheprovider"]
    shapes = "--jaxtyping-packages=attention,beartype.beartype"
    gates = [f"tests/test_{each}.py" for each in ("book", "exercises", "reference")]
    for command in (
        ["book/tangle.py", "--check"],
        ["-m", "ruff", "format", "--check", "."],
        ["-m", "ruff", "check", "."],
        ["-m", "pytest", *options, *gates, "-k", asked],
        ["-m", "pytest", *options, *own, shapes],
        ["-c", "from conformance.names import *; assert not unaccounted()"],
        ["-m", "pytest", *options, "--nbval", *(f"book/{n}.ipynb" for n in names)],
    ):
        alone = os.environ | {"PYTHONPATH": f"{copy}:{copy / 'tests'}"}
        run = [sys.executable, *command]
        done = subprocess.run(run, cwd=copy, env=alone, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}{done.stderr}"
