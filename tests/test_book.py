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
from functools import cache
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
    ("core/cross", "map"): "trained: the cell `mirror-check` checks what it shows",
    ("core/cross", "explore"): "trained, too: it shows the same map",
    ("core/multi_head", "talk-after"): "trained: `talk-shares` checks what it shows",
    ("core/multi_head", "talk-explore"): "trained, too: it shows the same maps",
    ("idea/simple", "timing"): "times differ from run to run",
    ("memory/grouped_query", "courses-drawn"): "trained; `convert-check` checks it",
    ("memory/bounded", "rests"): "trained: `rests-check` checks what it shows",
    ("memory/bounded", "stream-drawn"): "trained: `stream-check` has the bounds",
    ("memory/bounded", "stream-table"): "the same numbers",
    ("memory/kv_cache", "speed"): "times differ from run to run",
    ("memory/quantised", "shares"): "trained: the cell `shares-check` has the bounds",
    ("memory/speculative", "measured"): "trained: `measured-check` has the bounds",
    ("memory/speculative", "sure"): "trained, too: `rollback-check` compares it",
    ("position/absolute", "beyond"): "trained; the cell `beyond-check` has the bounds",
    ("position/order", "looks"): "trained; the cell `looks-check` has what holds",
    ("position/relative", "learned"): "trained; the cell `learned-check` checks it",
    ("position/relative", "longer"): "trained, too: `longer-check` has the bounds",
    ("position/rotary", "trap-drawn"): "trained: the cell `trap-check` checks it",
    ("position/longer", "decides"): "trained: the cell `decides-check` checks it",
    ("position/longer", "short"): "trained: the cell `short-check` checks it",
    ("position/longer", "table"): "the same numbers",
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
    ("training/induction", "early"): "trained: the text tells of this one training",
    ("training/induction", "rows"): "trained: the text tells of this one training",
    ("training/induction", "jump"): "trained: `jump-check` has the bounds",
    ("training/induction", "maps"): "trained: `maps-check` checks what it shows",
    ("training/induction", "match"): "trained: `match-check` has the bounds",
    ("training/induction", "needs"): "trained: `needs-check` has the bounds",
    ("training/induction", "paths-shown"): "trained: `paths-check` has the bounds",
    ("training/induction", "removed"): "trained: `removed-check` has the bounds",
    ("training/induction", "windows-drawn"): "trained: `windows` says what holds",
    ("training/small_gpt", "before"): "drawn: one rounding changes all that follows",
    ("training/small_gpt", "hundred-drawn"): "trained: `hundred-check` has the bounds",
    ("training/small_gpt", "after"): "written by what was trained, too",
    ("speed/flash_cpp", "timing"): "times differ from run to run",
}
# Chapters that owe the reader fewer than three exercises, each with the reason.
HOW_TO = {
    "scale/demo": "it measures what context_parallel computes, and computes nothing",
    "tools/workbench": "it teaches how to use the book: one exercise, few cells",
    "tools/gguf": "it reads a file, and computes nothing of attention",
    "tools/checks": "it looks at arguments, and computes nothing of attention",
    "tools/ranks": "it starts processes, and computes nothing of attention",
}
# Names in backticks that neither Python nor the tree defines, each with the reason.
WORDS = {
    "bdi output scope td th tr w": "the explorer's words of HTML and variable of CSS",
    "corner draw grid light lit placeOf shares": "the explorer's names, not Python's",
    "GLOO_SOCKET_IFNAME LOCAL_RANK MASTER_ADDR MASTER_PORT NCCL_SOCKET_IFNAME "
    "OMP_NUM_THREADS RANK WORLD_SIZE": "variables of the environment of ranks",
    "VmHWM VmRSS": "what Linux calls sizes of a process",
    "malloc_trim": "a function of the C library",
    "conf endpoint local nnodes rdzv standalone": "options of torchrun",
    "make": "the program that knows the verbs of the Makefile",
    "meta": "torch's device that has shapes but no memory",
}

CAPTION = '{"name": "fig-near", "caption": "Near tokens get more than far ones."}'

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

    def at(self, cell: dict) -> str:
        """Where a cell stands, as every refusal names it."""
        file = Path(f"book/{self.name}.ipynb")
        return tangle.place(file, self.cells.index(cell) + 1, cell)

    @property
    def file(self) -> str:
        return f"book/{self.name}.ipynb"

    @property
    def again(self) -> str:
        return f"make execute CHAPTERS={self.name}"

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
    lost = found ^ {Path(f"book/{name}.ipynb") for name in notebooks()}
    assert not lost, f"{sorted(map(str, lost))}: must be a file and a line of _toc.yml"


# Executed


def test_every_code_cell_was_executed_in_order(notebook):
    for count, cell in enumerate(notebook.code, start=1):
        got = cell["execution_count"]
        must = f"must have been run as number {count}, not {got}: {notebook.again}"
        assert got == count, f"{notebook.at(cell)}: {must}"


def test_a_result_carries_the_count_of_its_cell(notebook):
    for cell in notebook.code:
        for output in cell["outputs"]:
            if output["output_type"] == "execute_result":
                must = f"its result must carry its own count: {notebook.again}"
                same = output["execution_count"] == cell["execution_count"]
                assert same, f"{notebook.at(cell)}: {must}"


def test_no_cell_failed(notebook):
    for cell in notebook.code:
        kinds = [output["output_type"] for output in cell["outputs"]]
        assert "error" not in kinds, f"{notebook.at(cell)}: must not fail"


def test_no_cell_wrote_to_stderr(notebook):
    for cell in notebook.code:
        said = dict(pieces(cell)).get("stderr")
        assert said is None, f"{notebook.at(cell)}: must not write to stderr: {said}"


def test_only_listed_cells_are_unchecked():
    marks = {tag for tag in metadata_tags if tag != "nbval-check-output"}
    found = {
        (name, cell["id"])
        for name in notebooks()
        for cell in Chapter(name).code
        if marks & set(tangle.tags(cell))
    }
    new, gone = found - set(UNCHECKED), set(UNCHECKED) - found
    why = (
        "print what does not change, or give a reason in UNCHECKED, tests/test_book.py"
    )
    assert not new, f"{new}: must be compared with a fresh run: {why}"
    assert not gone, f"{gone}: must leave UNCHECKED: the cell is gone, or checked again"


def test_no_comment_tells_the_verifier_to_look_away(notebook):
    for cell in notebook.code:
        for mark in comment_markers:
            must = f"must not hold {mark!r}: tag the cell instead, or let it be checked"
            assert mark not in cell["source"], f"{notebook.at(cell)}: {must}"


def test_outputs_are_of_kinds_that_can_be_compared_and_read(notebook):
    for cell in notebook.code:
        for output in cell["outputs"]:
            odd = set(output.get("data", {})) - KINDS
            must = f"must give text, HTML or SVG, not {odd}; `described` makes SVG"
            assert not odd, f"{notebook.at(cell)}: {must}"


@pytest.mark.parametrize("telltale", TELLTALE)
def test_no_output_tells_where_it_was_made_by(telltale, notebook):
    for cell in notebook.code:
        for kind, text in pieces(cell):
            found = re.search(TELLTALE[telltale], text)
            must = f"its {kind} must not tell {telltale}: {found and found[0]!r}"
            assert not found, f"{notebook.at(cell)}: {must}"


def test_no_output_counts_one_thing_as_many(notebook):
    """Neither in its text nor in a picture: "ranks 1" or "1 rank", not "1 ranks"."""
    for cell in notebook.code:
        for kind, text in pieces(cell):
            told = re.sub(r"<!--|-->|<[^>]*>", "\n", text)
            found = re.findall(
                r"(?m)(?:^|[,;:(]) *(1 (?:(?:key|query) )?[a-z]+s\b)", told
            )
            must = f"its {kind} must count one thing as one: {found}"
            assert not found, f"{notebook.at(cell)}: {must}"


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
        must = f"must not keep when it ran: {notebook.again}"
        assert "execution" not in cell["metadata"], f"{notebook.at(cell)}: {must}"


# Described


def test_every_figure_says_what_it_shows_and_what_to_conclude(notebook):
    for cell in notebook.code:
        shown = [output.get("data", {}) for output in cell["outputs"]]
        shown = [data for data in shown if "image/svg+xml" in data]
        figure = cell["metadata"].get("mystnb", {}).get("figure", {})
        where = notebook.at(cell)
        assert bool(shown) == bool(figure), (
            f"{where}: a figure must have a caption, and a caption a figure; in the "
            f'metadata of the cell: "mystnb": {{"figure": {CAPTION}}}'
        )
        if shown:
            assert len(shown) == 1, f"{where}: must show one figure, not {len(shown)}"
            alt = cell["metadata"]["mystnb"].get("image", {}).get("alt")
            same = alt == "".join(shown[0]["text/plain"])
            assert same, f"{where}: its alt text must be its own: {notebook.again}"
            must = (
                "must describe it: `show_weights` does, or `described(figure, words)`"
            )
            assert len(alt.split()) > 5, f"{where}: its alt text {must}, not {alt!r}"
            must = (
                f"must say what to conclude, like {CAPTION}, not {figure['caption']!r}"
            )
            assert len(figure["caption"].split()) > 5, f"{where}: its caption {must}"


def test_the_names_of_figures_are_unique_in_the_book():
    cells = [cell for name in notebooks() for cell in Chapter(name).code]
    figures = [cell["metadata"].get("mystnb", {}).get("figure") for cell in cells]
    names = [figure["name"] for figure in figures if figure]
    twice = {name for name in names if names.count(name) > 1}
    assert not twice, f"{twice}: a figure must have a name that no other has"
    odd = [name for name in names if not re.fullmatch(r"fig(-[a-z0-9]+)+", name)]
    assert not odd, f"{odd}: a figure must have a name like fig-near"


def test_a_solution_is_folded_under_a_line_that_says_so(notebook):
    for cell in notebook.code:
        if "solution" in cell["metadata"].get("tags", []):
            told = cell["metadata"].get("mystnb", {}).get("code_prompt_show")
            must = '"mystnb": {"code_prompt_show": "Show the solution", …}'
            assert told == "Show the solution", (
                f"{notebook.at(cell)}: the metadata of a solution must hold {must}"
            )


def test_cells_have_readable_names_of_their_own(notebook):
    for cell in notebook.cells:
        by_machine = re.fullmatch(r"[0-9a-f]{8}(-.*)?", cell["id"])
        good = (
            re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", cell["id"]) and not by_machine
        )
        must = "must have an id of words, like by-hand-text; it is `id` in the file"
        assert good, f"{notebook.at(cell)}: {must}"


# Told


def test_a_chapter_ends_in_exercises_and_sources(chapter):
    words = "\n".join(cell["source"] for cell in chapter.prose)
    last = re.findall(r"(?m)^## +(.+?) *$", words)[-2:]
    must = "must end with `## Exercises` and `## Sources`"
    assert last == ["Exercises", "Sources"], f"{chapter.file}: {must}, not {last}"
    titles = re.findall(r"(?m)^# .*", words)
    assert len(titles) == 1, f"{chapter.file}: must have one `# Title`, not {titles}"


def test_an_exercise_fails_until_it_is_solved(chapter):
    exercises, solutions = chapter.tagged("exercise"), chapter.tagged("solution")
    least, counts = 1 if chapter.name in HOW_TO else 3, (len(exercises), len(solutions))
    assert least <= counts[0] == counts[1], (
        f"{chapter.file}: must have at least {least} cells tagged `exercise`, as many "
        f"tagged `solution`, not {counts}; like ex-window in book/core/masks.ipynb"
    )
    for cell in exercises:
        said = printed(cell)
        must = (
            f"the stub must fail its check, and `grade` print `not yet`, not {said!r}"
        )
        fails = said.startswith("not yet") and "passed" not in said
        assert fails, f"{chapter.at(cell)}: {must}"
        must = "must find its names before the solution is there: import them earlier"
        lacks = re.search(r"name '\w+' is not defined", said)
        assert not lacks, f"{chapter.at(cell)}: {must}, not {said!r}"
    for cell in solutions:
        said = printed(cell)
        must = f"the solution must pass its check, and `grade` say so, not {said!r}"
        passes = "passed" in said and "not yet" not in said
        assert passes, f"{chapter.at(cell)}: {must}"
        must = "a solution must be folded, by the tag `hide-cell`"
        assert "hide-cell" in tangle.tags(cell), f"{chapter.at(cell)}: {must}"


def bound_and_used(source: str) -> tuple[set[str], set[str]]:
    """The names that a cell gives to something, and those that it reads."""
    bound, used = set(), set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Name(id=name, ctx=ast.Load()):
                used.add(name)
            case ast.Name(id=name) | ast.arg(arg=name):
                bound.add(name)
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                bound.add(name)
            case ast.alias(name=name, asname=other):
                bound.add(other or name.partition(".")[0])
    return bound, used


def test_an_exercise_can_be_done_without_those_before_it(chapter):
    """A learner skips one, or comes back for the last alone."""
    tags = {"exercise", "solution"}
    text = [cell for cell in chapter.code if not tags & set(tangle.tags(cell))]
    known = set().union(*(bound_and_used(cell["source"])[0] for cell in text))
    earlier: set[str] = set()
    both = chapter.tagged("exercise"), chapter.tagged("solution")
    for exercise, solution in zip(*both, strict=True):
        bound, used = bound_and_used(f"{exercise['source']}\n{solution['source']}")
        lacks = sorted(earlier & used - bound - known)
        must = "must import or define what it uses; an earlier exercise alone has"
        assert not lacks, f"{chapter.at(exercise)}: {must} {lacks}"
        earlier |= bound


def test_each_solution_follows_its_exercise(chapter):
    kinds, expected = {"exercise", "solution"}, "exercise"
    for cell in chapter.code:
        if found := kinds & set(tangle.tags(cell)):
            must = f"must be tagged `{expected}`: each solution follows its exercise"
            assert found == {expected}, f"{chapter.at(cell)}: {must}"
            (expected,) = kinds - found


def test_code_cells_are_short(chapter):
    lengths = [lines(cell) for cell in chapter.shown]
    most, median = 9 if is_tool(chapter) else 5, statistics.median(lengths)
    longest = sorted(chapter.shown, key=lines, reverse=True)[:5]
    longest = ", ".join(f"{cell['id']} has {lines(cell)}" for cell in longest)
    how = f"{longest}. Cut a cell at each idea, or fold what is no idea: `hide-input`"
    must = f"half of the code cells in view must have at most {most} lines"
    assert median <= most, f"{chapter.file}: {must}, not {median}; {how}"
    must = "nine in ten code cells in view must have at most 20 lines"
    short = sum(length <= 20 for length in lengths)
    assert short >= 0.9 * len(lengths), f"{chapter.file}: {must}; {how}"


def is_tool(chapter: Chapter) -> bool:
    """Tools have long checks and drawings, and less to say of each line."""
    return chapter.name.startswith("tools/")


GROWS = {"add", "append", "extend", "update"}  # of lists, sets and dictionaries


def made_and_grown(source: str) -> tuple[set[str], set[str]]:
    """The names that a cell makes, and those that its own lines add to."""
    made, grown, queue = set(), set(), [ast.parse(source)]
    while queue:
        node = queue.pop()
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda):
            continue  # what runs when it is called
        if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
            grown.add(node.target.id)
            queue.append(node.value)
            continue
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            of, method = node.func.value, node.func.attr
            if isinstance(of, ast.Name) and method in GROWS and len(node.args) == 1:
                grown.add(of.id)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            made.add(node.id)
        queue += ast.iter_child_nodes(node)
    return made, grown


def test_a_cell_adds_only_to_what_it_makes(notebook):
    """Run a second time, as learners do, it would hold everything twice."""
    for cell in notebook.code:
        if "export" in tangle.tags(cell):
            continue  # the module is written in order, and once
        made, grown = made_and_grown(cell["source"])
        must = "must add to nothing that an earlier cell has made: make it in this cell"
        assert grown <= made, f"{notebook.at(cell)}: {must}: {sorted(grown - made)}"


def test_a_chapter_that_trains_asks_for_one_thread(chapter):
    """On a busy machine two wait for each other: measured, ten times as long a step."""
    if chapter.name.startswith("core/"):
        return  # a second or two of training, before there is a word about threads
    code = "\n".join(cell["source"] for cell in chapter.code)
    if re.search(r"\b(adam|optimizer)\.step\(\)", code):
        must = "a chapter that trains small models must torch.set_num_threads(1)"
        assert "torch.set_num_threads(1)" in code, f"{chapter.file}: {must}"


def test_imports_do_not_stand_between_a_reader_and_the_question(notebook):
    for cell in notebook.code:
        alone = all(
            isinstance(line, ast.Import | ast.ImportFrom)
            for line in ast.parse(cell["source"]).body
        )
        if alone and lines(cell) > 5:
            must = "a cell of imports alone must be folded: tag it `hide-input`"
            folded = "hide-input" in cell["metadata"].get("tags", [])
            assert folded, f"{notebook.at(cell)}: {must}"


def test_no_words_are_said_twice_in_a_row(notebook):
    for cell in notebook.cells:
        if cell["cell_type"] == "markdown":
            again = re.search(
                r"\b((?:[a-z]+ ){2,}[a-z]+),?( and)? \1\b", cell["source"]
            )
            must = f"must not say twice in a row: {again and again[0]!r}"
            assert not again, f"{notebook.at(cell)}: {must}"


def test_lines_of_code_fit_the_page(notebook):
    for cell in notebook.code:
        for line in cell["source"].splitlines():
            must = f"a line must have at most 88 characters, not {len(line)}: {line}"
            assert len(line) <= 88, f"{notebook.at(cell)}: {must}"


def test_prose_and_code_keep_their_balance(chapter):
    words = sum(len(cell["source"].split()) for cell in chapter.prose)
    shown = sum(map(lines, chapter.shown))
    code = sum(len(cell["source"].splitlines()) for cell in chapter.code)
    # Folded code is told of, too, so the two rules bound one number of words.
    each, most = (3, 35) if is_tool(chapter) else (6, 20)
    least = max(8 * shown, each * code)
    told = (
        f"{chapter.file}: expected at least {least} words and at most {most * shown}, "
        f"got {words}: 8 to {most} for each of {shown} lines of code in view, and at "
        f"least {each} for each of {code} lines with folded ones"
    )
    both = "show more of what is folded (`hide-input`), or do it in fewer lines"
    assert least <= most * shown, f"{told}. No text can do that: {both}"
    less = f"say less, or {both}"
    more = "say what the code does, fold what is no idea, or do it in fewer lines"
    assert least <= words <= most * shown, f"{told}: {more if words < least else less}"


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


@cache
def everywhere() -> set[str]:
    """Every name that the package, torch or Python knows."""
    import torch

    import attention

    known = {*dir(builtins), *keyword.kwlist, *" ".join(WORDS).split(), "attention"}
    for space in (attention, torch, torch.nn, torch.nn.functional, torch.Tensor):
        known |= set(dir(space))
    known |= set(dir(torch.nn.Module())) | {
        part for each in notebooks() for part in each.split("/")
    }
    for path in (ROOT / "attention").rglob("*.cpp"):
        known |= set(re.findall(r"\w+", path.read_text("utf-8")))
    for path in (ROOT / "attention").rglob("*.py"):
        known |= names_in(path.read_text("utf-8"))
    return known


def names_in(source: str) -> set[str]:
    """The names that a text of Python holds, those of its axes too."""
    known = set()
    for node in ast.walk(ast.parse(source)):
        for field in ("id", "attr", "arg", "name", "asname"):
            if isinstance(word := getattr(node, field, None), str):
                known |= set(word.split("."))
        match node:  # the axes in a shape: Float[Tensor, "length d_in"]
            case ast.Subscript(slice=ast.Tuple(elts=[_, ast.Constant(str(axes))])):
                known |= set(re.findall(r"\w+", axes))
    return known


def vocabulary(name: str) -> set[str]:
    """Every name that the code of this page, the package, torch or Python knows."""
    own = Chapter(name).code if name in notebooks() else []
    return everywhere().union(*(names_in(cell["source"]) for cell in own))


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
    missing = {span: sorted(names) for span, names in missing.items() if names}
    assert not missing, (
        f"book/{name}: what stands in backticks must exist in the chapter's code, the "
        f"package, PyTorch or Python, and these do not: {missing}. Mend the name, "
        "write it without backticks, or give a reason in WORDS, tests/test_book.py"
    )


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
    odd = set(named) - set(verbs)
    assert not odd, f"{path}: names `make {odd}`; plain `make` lists the verbs"
