"""What must stay true of the whole book: in step, in order, executed, described."""

import ast
import builtins
import importlib
import json
import keyword
import re
import socket
import statistics
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "book"))

import tangle  # noqa: E402
from nbval.plugin import comment_markers, metadata_tags  # noqa: E402

# Cells whose output is not compared with a fresh run, each with the reason.
UNCHECKED = {
    ("history/additive", "bottleneck"): "trained: no two machines agree to 4 digits",
    ("history/additive", "map"): "trained, too: the cell `shares` checks what it shows",
    (
        "history/additive",
        "unseen-map",
    ): "trained, too: the cell `unseen-shares` checks it",
    ("idea/simple", "timing"): "times differ from run to run",
    ("speed/choosing", "devices"): "it asks the devices of one machine",
    ("speed/choosing", "linears"): "times and errors of one processor",
    ("speed/choosing", "speed"): "times differ from run to run",
    ("speed/cost", "ceilings"): "rates of one machine",
    ("speed/cost", "faults"): "how memory is handed out differs from system to system",
    ("speed/cost", "least-shown"): "times differ from run to run",
    ("speed/cost", "roofline"): "the heights are timed; `points-check` has the rest",
    ("speed/cost", "slopes"): "times differ from run to run",
    (
        "speed/cost",
        "growth",
    ): "the upper half is timed; `exponents-counted` has the lower",
    ("speed/flash", "timing"): "times differ from run to run",
}
# Chapters that owe the reader fewer than three exercises, each with the reason.
HOW_TO = {
    "tools/workbench": "it teaches how to use the book: one exercise, few cells",
    "tools/checks": "it looks at arguments, and computes nothing of attention",
}
# Names in backticks that neither Python nor the tree defines, each with the reason.
WORDS = {
    "bdi output scope td th tr w": "the explorer's words of HTML and variable of CSS",
    "corner draw grid light lit placeOf shares": "the explorer's names, not Python's",
    "make": "the program that knows the verbs of the Makefile",
    "meta": "torch's device that has shapes but no memory",
}

HOST = socket.gethostname()
HOST = "(?!)" if HOST.isalpha() else re.escape(HOST)  # letters alone may be a word
KINDS = {"text/plain", "text/html", "image/svg+xml"}
TELLTALE = {
    "a path of one machine": r"/(home|root|tmp|usr|opt|mnt|var|Users)/|[A-Z]:\\|\bfile://",
    "where a package is installed": r"site-packages|dist-packages",
    "an address in memory": r"\b0x[0-9a-fA-F]{6,}",
    "the name of a device": r"(?i)\bcuda\b|\bNVIDIA\b|\bGeForce\b|\bXeon\b|\bEPYC\b",
    "the name of this machine": rf"(?<![\w-]){HOST}(?![\w-])",
}


def notebooks() -> list[str]:
    """All that is run: the chapters, and the pages of the reference that compute."""
    names = tangle.contents(ROOT)
    return [name for name in names if (ROOT / f"book/{name}.ipynb").is_file()]


def chapters() -> list[str]:
    return [name for name in notebooks() if not name.startswith("reference/")]


def pages() -> list[str]:
    """What is text alone."""
    names = tangle.contents(ROOT)
    return [name for name in names if (ROOT / f"book/{name}.md").is_file()]


class Chapter:
    def __init__(self, name: str):
        self.name = name
        self.cells = tangle.load(ROOT / f"book/{name}.ipynb", ROOT)["cells"]
        self.code = [cell for cell in self.cells if cell["cell_type"] == "code"]
        self.prose = [cell for cell in self.cells if cell["cell_type"] == "markdown"]

        # What a reader has in view: not folded, and not an exercise to be opened.
        unseen = {"hide-input", "exercise", "solution"}
        self.shown = [c for c in self.code if not unseen & set(tangle.tags(c))]

    def tagged(self, tag: str) -> list[dict]:
        return [cell for cell in self.code if tag in tangle.tags(cell)]


@pytest.fixture(params=chapters())
def chapter(request):
    return Chapter(request.param)


@pytest.fixture(params=notebooks())
def notebook(request):
    return Chapter(request.param)


def pieces(cell: dict) -> list[tuple[str, str]]:
    """What a cell gave: MIME type or stream, and text."""
    found = []
    for output in cell["outputs"]:
        if output["output_type"] == "stream":
            found.append((output["name"], "".join(output["text"])))
        for kind, value in output.get("data", {}).items():
            found.append(
                (kind, "".join(value) if isinstance(value, list) else str(value))
            )
    return found


def printed(cell: dict) -> str:
    return "".join(text for kind, text in pieces(cell) if kind == "stdout")


def lines(cell: dict) -> int:
    return sum(bool(line.strip()) for line in cell["source"].splitlines())


# In step


def test_the_package_is_what_the_chapters_write(capsys):
    assert tangle.main(ROOT, check=True) == 0, capsys.readouterr().err


def test_every_notebook_is_in_the_toc():
    found = {path.relative_to(ROOT) for path in (ROOT / "book").rglob("*.ipynb")}
    found = {path for path in found if ".ipynb_checkpoints" not in path.parts}
    assert found == {Path(f"book/{name}.ipynb") for name in notebooks()}


# Executed


def test_every_code_cell_was_executed_in_order(notebook):
    counts = [cell["execution_count"] for cell in notebook.code]
    assert counts == list(range(1, len(counts) + 1))


def test_a_result_carries_the_count_of_its_cell(notebook):
    for cell in notebook.code:
        for output in cell["outputs"]:
            if output["output_type"] == "execute_result":
                assert output["execution_count"] == cell["execution_count"], cell["id"]


def test_no_cell_failed(notebook):
    for cell in notebook.code:
        kinds = [output["output_type"] for output in cell["outputs"]]
        assert "error" not in kinds, cell["id"]


def test_no_cell_wrote_to_stderr(notebook):
    for cell in notebook.code:
        assert "stderr" not in dict(pieces(cell)), (cell["id"], pieces(cell))


def test_only_listed_cells_are_unchecked():
    marks = {tag for tag in metadata_tags if tag != "nbval-check-output"}
    found = {
        (name, cell["id"])
        for name in notebooks()
        for cell in Chapter(name).code
        if marks & set(tangle.tags(cell))
    }
    assert found == set(UNCHECKED)


def test_no_comment_tells_the_verifier_to_look_away(notebook):
    for cell in notebook.code:
        for mark in comment_markers:
            assert mark not in cell["source"], cell["id"]


def test_outputs_are_of_kinds_that_can_be_compared_and_read(notebook):
    for cell in notebook.code:
        for output in cell["outputs"]:
            assert set(output.get("data", {})) <= KINDS, cell["id"]


@pytest.mark.parametrize("telltale", TELLTALE)
def test_no_output_tells_where_it_was_made_by(telltale, notebook):
    for cell in notebook.code:
        for kind, text in pieces(cell):
            found = re.search(TELLTALE[telltale], text)
            assert not found, (cell["id"], kind, found)


def test_the_notebook_says_no_more_of_its_maker_than_python_3(notebook):
    book = json.loads((ROOT / f"book/{notebook.name}.ipynb").read_text("utf-8"))
    assert book["metadata"] == {
        "kernelspec": {
            "display_name": "Python 3",
            "language": "python",
            "name": "python3",
        },
        "language_info": {"name": "python"},
    }
    for cell in notebook.cells:
        assert "execution" not in cell["metadata"], cell["id"]


# Described


def test_every_figure_says_what_it_shows_and_what_to_conclude(notebook):
    for cell in notebook.code:
        shown = [output.get("data", {}) for output in cell["outputs"]]
        shown = [data for data in shown if "image/svg+xml" in data]
        figure = cell["metadata"].get("mystnb", {}).get("figure", {})
        assert bool(shown) == bool(figure), (
            f"{cell['id']}: figure and caption go together"
        )
        if shown:
            assert len(shown) == 1, f"{cell['id']}: one figure a cell"
            alt = cell["metadata"]["mystnb"].get("image", {}).get("alt")
            assert alt == "".join(shown[0]["text/plain"]), cell["id"]
            assert len(alt.split()) > 5, f"{cell['id']}: {alt!r} describes nothing"
            assert len(figure["caption"].split()) > 5, cell["id"]


def test_the_names_of_figures_are_unique_in_the_book():
    cells = [cell for name in notebooks() for cell in Chapter(name).code]
    figures = [cell["metadata"].get("mystnb", {}).get("figure") for cell in cells]
    names = [figure["name"] for figure in figures if figure]
    assert sorted(set(names)) == sorted(names)
    assert all(re.fullmatch(r"fig(-[a-z0-9]+)+", name) for name in names)


def test_cells_have_readable_names_of_their_own(notebook):
    names = [cell["id"] for cell in notebook.cells]
    assert sorted(set(names)) == sorted(names)
    for name in names:
        assert re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name), name
        assert not re.fullmatch(r"[0-9a-f]{8}(-.*)?", name), (
            f"{name}: made by a machine"
        )


# Told


def test_a_chapter_ends_in_exercises_and_sources(chapter):
    words = "\n".join(cell["source"] for cell in chapter.prose)
    headings = re.findall(r"(?m)^## +(.+?) *$", words)
    assert headings[-2:] == ["Exercises", "Sources"]
    assert len(re.findall(r"(?m)^# ", words)) == 1


def test_an_exercise_fails_until_it_is_solved(chapter):
    exercises, solutions = chapter.tagged("exercise"), chapter.tagged("solution")
    assert len(exercises) == len(solutions)
    assert len(exercises) >= (1 if chapter.name in HOW_TO else 3)
    for cell in exercises:
        assert printed(cell).startswith("not yet"), cell["id"]
        assert "passed" not in printed(cell), cell["id"]
    for cell in solutions:
        assert "passed" in printed(cell), cell["id"]
        assert "not yet" not in printed(cell), cell["id"]
        assert "hide-cell" in tangle.tags(cell), cell["id"]


def test_each_solution_follows_its_exercise(chapter):
    tags = {"exercise", "solution"}
    story = [tags & set(tangle.tags(cell)) for cell in chapter.code]
    story = [found for found in story if found]
    assert story == [{"exercise"}, {"solution"}] * (len(story) // 2)


def test_code_cells_are_short(chapter):
    lengths = [lines(cell) for cell in chapter.shown]
    assert statistics.median(lengths) <= (9 if chapter.name.startswith("tools/") else 5)
    assert sum(length <= 20 for length in lengths) >= 0.9 * len(lengths)


def test_lines_of_code_fit_the_page(notebook):
    for cell in notebook.code:
        for line in cell["source"].splitlines():
            assert len(line) <= 88, (cell["id"], line)


def test_prose_and_code_keep_their_balance(chapter):
    words = sum(len(cell["source"].split()) for cell in chapter.prose)
    code = sum(map(lines, chapter.shown))
    assert 8 <= words / code <= 20, f"{words} words, {code} lines in view"
    code = sum(len(cell["source"].splitlines()) for cell in chapter.code)
    least = 3 if chapter.name.startswith("tools/") else 6
    assert words / code >= least, f"{words} words, {code} lines, folded ones too"


# Names in backticks


def spans(prose: list[str]) -> list[str]:
    """What the prose sets in backticks, but for blocks and roles such as {doc}`...`."""
    found = []
    for text in prose:
        text = re.sub(r"(?ms)^ *(```+)(?!\{glossary).*?^ *\1", "", text)
        found += re.findall(r"(?<![`}])`([^`\n]+)`(?!`)", text)
    return found


def texts(name: str) -> list[str]:
    """The prose of a chapter or page."""
    if name in pages():
        return [(ROOT / f"book/{name}.md").read_text("utf-8")]
    return [cell["source"] for cell in Chapter(name).prose]


def vocabulary(name: str) -> set[str]:
    """Every name that the code of this page, the package, torch or Python knows."""
    import torch

    import attention

    known = {*dir(builtins), *keyword.kwlist, *" ".join(WORDS).split(), "attention"}
    for space in (attention, torch, torch.nn, torch.nn.functional, torch.Tensor):
        known |= set(dir(space))
    known |= set(dir(torch.nn.Module())) | {
        part for each in notebooks() for part in each.split("/")
    }
    sources = []
    if name in notebooks():
        sources += [cell["source"] for cell in Chapter(name).code]
    sources += [path.read_text("utf-8") for path in (ROOT / "attention").rglob("*.py")]
    for source in sources:
        for node in ast.walk(ast.parse(source)):
            for field in ("id", "attr", "arg", "name", "asname"):
                if isinstance(word := getattr(node, field, None), str):
                    known |= set(word.split("."))
            match node:  # the axes in a shape: Float[Tensor, "length d_in"]
                case ast.Subscript(slice=ast.Tuple(elts=[_, ast.Constant(str(axes))])):
                    known |= set(re.findall(r"\w+", axes))
    return known


def unresolved(span: str, known: set[str]) -> set[str]:
    """The names in `span` that mean nothing; none if it does not look like code."""
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)+/?|[\w-]+\.(ipynb|md|py|toml|txt|yml)", span):
        return set() if (ROOT / span).exists() else {span}
    try:
        tree = ast.parse(span, mode="eval")
    except SyntaxError:
        return set()
    if re.fullmatch(r"attention(\.\w+)+", span):
        return set() if resolves(span) else {span}
    names = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name)]
    names += [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    return set(names) - known


def resolves(dotted: str) -> bool:
    module, _, name = dotted.rpartition(".")
    try:
        importlib.import_module(dotted)
    except ImportError:
        return hasattr(importlib.import_module(module), name)
    return True


@pytest.mark.parametrize("name", [*notebooks(), *pages()])
def test_every_name_in_backticks_exists(name):
    known = vocabulary(name)
    missing = {span: unresolved(span, known) for span in spans(texts(name))}
    assert not {span: names for span, names in missing.items() if names}


def test_every_listed_exception_is_needed():
    assert set(HOW_TO) <= set(chapters())
    used = {
        name
        for each in [*notebooks(), *pages()]
        for span in spans(texts(each))
        for name in re.findall(r"\w+", span)
    }
    for words, reason in WORDS.items():
        assert used & set(words.split()), f"no page needs {words!r} ({reason})"


@pytest.mark.parametrize(
    "path", ["README.md", *(f"book/{name}.md" for name in pages())]
)
def test_every_verb_of_make_exists(path):
    named = re.findall(r"(?m)(?:^ *|`)make ([a-z-]+)", (ROOT / path).read_text("utf-8"))
    verbs = re.findall(r"(?m)^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"))
    assert set(named) <= set(verbs)
