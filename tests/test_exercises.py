"""The checks of exercises refuse typical mistakes, in words, and nothing else.

`exercises/` has a file for each chapter, and in it a class for each exercise, with
`right` answers in other words than the solution's and `wrong` ones, named by what they
do. They are run where a reader would write them: among the names of the chapter.
"""

import ast
import functools
import inspect
import linecache
import os
import re
import shlex
import subprocess
import symtable
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import nbformat
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
ANSWERS = Path(__file__).parent / "exercises"
sys.path.insert(0, str(ROOT / "book"))

import tangle  # noqa: E402

VERDICT = {"wrong": "refuse", "right": "take"}
# How messages begin that others wrote: they compare numbers and name no property.
NOT_OURS = ("Tensor-likes", "Scalars are not", "Booleans are not", "The values for")


# The chapters


@functools.cache
def code(chapter: str) -> list[dict]:
    cells = tangle.load(ROOT / f"book/{chapter}.ipynb", ROOT)["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def tagged(chapter: str, tag: str) -> list[dict]:
    return [cell for cell in code(chapter) if tag in tangle.tags(cell)]


def chapters() -> list[str]:
    names = [
        name
        for name in tangle.contents(ROOT)
        if (ROOT / f"book/{name}.ipynb").is_file()
    ]
    return [name for name in names if tagged(name, "exercise")]


def exercise(cell: dict) -> tuple[str, str]:
    """The names of the check and of the answer that a cell hands to `grade`."""
    call = ast.parse(cell["source"]).body[-1].value
    assert call.func.id == "grade"
    check, answer = (argument.id for argument in call.args)
    return check, answer


def exercises() -> list[tuple[str, str]]:
    """Chapter and name of each exercise of the book."""
    return [
        (c, exercise(cell)[1]) for c in chapters() for cell in tagged(c, "exercise")
    ]


# Their names


def scopes(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    yield table
    for child in table.get_children():
        yield from scopes(child)


@functools.cache
def names_of(source: str) -> tuple[set[str], set[str]]:
    """The names of a chapter that a cell gives a value, and those that it reads."""
    table = symtable.symtable(source, "cell", "exec")
    own = table.get_symbols()
    given = {s.get_name() for s in own if s.is_assigned() or s.is_imported()}
    read = {s.get_name() for s in own if s.is_referenced()}
    for scope in [*scopes(table)][1:]:
        read |= {s.get_name() for s in scope.get_symbols() if s.is_global()}
    return given, read


def needed(chapter: str, answers: str) -> list[dict]:
    """The cells that the exercises of a chapter and their answers stand on.

    A function may read what an exported cell defines later; all else comes before.
    """
    cells = [c for c in code(chapter) if "solution" not in tangle.tags(c)]
    readers = {len(cells): names_of(answers)[1]}
    for place, cell in enumerate(cells):
        if "exercise" in tangle.tags(cell):
            readers[place] = names_of(cell["source"])[1]
    while True:
        known = len(readers)
        for place, cell in reversed([*enumerate(cells)]):
            given, read = names_of(cell["source"])
            anywhere = "export" in tangle.tags(cell)
            if any(given & r for p, r in readers.items() if anywhere or p > place):
                readers[place] = read
        if len(readers) == known:
            return [cells[place] for place in sorted(readers)[:-1]]


def run(source: str, name: str, space: dict) -> None:
    """Execute a text; its functions know their source, as `triton.jit` asks."""
    linecache.cache[name] = (len(source), None, source.splitlines(True), name)
    exec(compile(source, name, "exec"), space)


def file_of(chapter: str) -> Path:
    return ANSWERS / f"{Path(chapter).name}.py"


@functools.cache
def space(chapter: str) -> dict:
    """The names of a chapter at its end, those of its solutions left out."""
    names, answers = {"__name__": "__main__"}, file_of(chapter).read_text("utf-8")
    with torch.enable_grad():  # a chapter may turn them off, for itself
        for cell in needed(chapter, answers):
            run(cell["source"], f"{chapter}:{cell['id']}", names)
        run(answers, str(file_of(chapter)), names)
    return names


# The answers


@functools.cache
def written(file: Path) -> ast.Module:
    return ast.parse(file.read_text("utf-8"))


def answers(chapter: str, name: str, kind: str) -> list[str]:
    """The names of the answers of a kind; none if the exercise has no entry."""
    if not file_of(chapter).is_file():
        return []
    found = written(file_of(chapter)).body
    for part in (name, kind):
        of_class = (node for node in found if isinstance(node, ast.ClassDef))
        found = next((node.body for node in of_class if node.name == part), [])
    return [node.name for node in found if isinstance(node, ast.FunctionDef)]


def cases(kind: str) -> list:
    return [
        pytest.param(chapter, name, answer, id=f"{chapter}-{name}-{answer}")
        for chapter, name in exercises()
        for answer in answers(chapter, name, kind)
    ]


@contextmanager
def missing_names_told(chapter: str, name: str) -> Iterator[None]:
    """Say of a missing name where it is given: a reader has no solution yet."""
    try:
        yield
    except NameError as error:
        cells = code(chapter)
        ids = [c["id"] for c in cells if error.name in names_of(c["source"])[0]]
        given = f"by {', '.join(ids)}" if ids else "by no cell"
        answers = file_of(chapter).relative_to(ROOT)
        raise NameError(
            f"book/{chapter}.ipynb: {name}: expected names that are there before its "
            f"solution is, got `{error.name}`, given {given}: import it in an earlier "
            f"cell or, if an answer alone needs it, in {answers}"
        ) from error


def check_and_answer(chapter: str, name: str, kind: str, answer: str) -> tuple:
    with missing_names_told(chapter, name):
        names = space(chapter)
    pairs = map(exercise, tagged(chapter, "exercise"))
    check = next(check for check, answered in pairs if answered == name)

    def checked(given) -> None:
        with missing_names_told(chapter, name):
            names[check](given)

    return checked, vars(getattr(names[name], kind))[answer]


@pytest.mark.parametrize(("chapter", "name"), exercises())
def test_every_exercise_has_three_wrong_answers_and_two_right_ones(chapter, name):
    file = file_of(chapter).relative_to(ROOT)
    for kind, least in (("wrong", 3), ("right", 2)):
        got = answers(chapter, name, kind)
        assert len(got) >= least, (
            f"{file}: class {name}, class {kind}: must hold at least {least} answers "
            f"that the check must {VERDICT[kind]}, holds {got}; like those in "
            "tests/exercises/masks.py"
        )


def test_every_answer_belongs_to_an_exercise():
    known = {(file_of(chapter).name, name) for chapter, name in exercises()}
    found = {
        (path.name, node.name)
        for path in ANSWERS.glob("*.py")
        for node in written(path).body
        if isinstance(node, ast.ClassDef)
    }
    assert found <= known, f"{found - known}: tests/exercises answers no such exercise"
    assert known <= found, f"{known - found}: must be answered in tests/exercises"


@pytest.mark.parametrize(("chapter", "name", "answer"), cases("right"))
def test_a_right_answer_passes_in_other_words_too(chapter, name, answer):
    check, given = check_and_answer(chapter, name, "right", answer)
    check(given)


@pytest.mark.parametrize(("chapter", "name", "answer"), cases("wrong"))
def test_a_typical_mistake_is_refused_and_told_in_words(chapter, name, answer):
    check, given = check_and_answer(chapter, name, "wrong", answer)
    with pytest.raises(AssertionError) as refused:
        check(given)
    words = str(refused.value)
    where = (
        f"book/{chapter}.ipynb: the check of {name} must tell {answer} what is wrong"
    )
    told = len(words.split()) >= 3 and not words.startswith(NOT_OURS)
    assert told, f"{where}, in words of its own, not {words!r}"


@pytest.mark.parametrize(("chapter", "name"), exercises())
def test_an_answer_that_forgets_to_return_is_refused(chapter, name):
    names = space(chapter)
    pairs = map(exercise, tagged(chapter, "exercise"))
    check = next(check for check, answered in pairs if answered == name)
    with pytest.raises(Exception):  # noqa: B017, PT011  grade takes any
        names[check](lambda *inputs, **options: None)


def tensors(things: object) -> list[torch.Tensor]:
    """All tensors among these, however deep in lists, tuples and dictionaries."""
    if isinstance(things, torch.Tensor):
        return [things] if things.device.type != "meta" else []
    if isinstance(things, dict):
        things = list(things.values())
    inner = things if isinstance(things, list | tuple) else ()
    return [tensor for thing in inner for tensor in tensors(thing)]


@pytest.mark.parametrize(("chapter", "name"), exercises())
def test_an_answer_that_works_in_place_leaves_the_chapter_as_it_was(chapter, name):
    """Or no right answer would pass any more, until all cells above are run again."""
    names = space(chapter)
    pairs = map(exercise, tagged(chapter, "exercise"))
    check = next(check for check, answered in pairs if answered == name)
    own = tensors(names)
    before = [tensor.detach().clone() for tensor in own]

    def spoils(*inputs, **options):
        for tensor in tensors([inputs, options]):
            with torch.no_grad(), suppress(RuntimeError):  # of an expanded one
                tensor.zero_()

    with suppress(Exception):
        names[check](spoils)
    spoiled = [
        (tensor, old)
        for tensor, old in zip(own, before, strict=True)
        if not torch.equal(tensor.nan_to_num(), old.nan_to_num())
    ]
    with torch.no_grad():
        for tensor, old in spoiled:  # for the tests that come after
            tensor.copy_(old)
    must = f"the check of {name} must hand out copies of the chapter's tensors"
    assert not spoiled, f"book/{chapter}.ipynb: {must}"


def first_right(chapter: str, name: str) -> tuple:
    """The check of an exercise, and the first of its right answers."""
    return check_and_answer(chapter, name, "right", answers(chapter, name, "right")[0])


def place(tensor: torch.Tensor) -> int:
    """Where its numbers lie; a view of another tensor lies where that one does."""
    return tensor.untyped_storage().data_ptr()


def spoil(*things: object) -> None:
    """Write zeros over all tensors among these."""
    for tensor in tensors([*things]):
        if tensor.untyped_storage().nbytes() >= tensor.nbytes:  # no expanded one
            with torch.no_grad():
                tensor.zero_()


@pytest.mark.parametrize(("chapter", "name"), exercises())
def test_a_right_answer_may_spoil_what_it_was_given_or_is_told_to_leave_it(
    chapter, name
):
    """Else it is refused for numbers that are right."""
    check, right = first_right(chapter, name)
    if not inspect.isfunction(right):  # a kernel answers in place
        return

    def spoils(*inputs, **options):
        found = right(*inputs, **options)
        kept = {place(tensor) for tensor in tensors([found])}
        spoil(*(t for t in tensors([inputs, options]) if place(t) not in kept))
        return found

    refused = ""
    try:
        check(functools.wraps(right)(spoils))
    except AssertionError as error:
        refused = str(error)
    told = not refused or re.search("leave|stay|changed", refused)
    must = f"the check of {name} must hand out copies, or say: leave what you got"
    assert told, f"book/{chapter}.ipynb: {must}; not {refused}"


def doubled(things: object) -> object:
    """Its tensors in float64, in lists, tuples and dictionaries too."""
    if isinstance(things, torch.Tensor):
        return things.double() if things.is_floating_point() else things
    if isinstance(things, dict):
        return {name: doubled(thing) for name, thing in things.items()}
    if type(things) in (list, tuple):
        return type(things)(map(doubled, things))
    return things


@pytest.mark.parametrize(("chapter", "name"), exercises())
def test_a_right_answer_in_float64_is_taken_or_told_of_its_dtype(chapter, name):
    """Or whoever counts in NumPy hears that right numbers are wrong."""
    check, right = first_right(chapter, name)
    if not inspect.isfunction(right):  # a kernel answers in place
        return

    def in_float64(*inputs, **options):
        return doubled(right(*inputs, **options))

    refused = ""
    try:
        check(functools.wraps(right)(in_float64))
    except AssertionError as error:
        refused = str(error)
    told = not refused or "float64" in refused
    must = f"the check of {name} must take float64, or say that it is not asked for"
    assert told, f"book/{chapter}.ipynb: {must}, not {refused!r}"


@pytest.mark.parametrize(("chapter", "name"), exercises())
def test_an_axis_too_many_is_not_told_as_wrong_numbers(chapter, name):
    check, right = first_right(chapter, name)
    if not inspect.isfunction(right):  # a kernel answers in place
        return

    def told(change) -> str:
        """What the check says if the last tensor of the answer is changed."""

        def changed(*inputs, **options):
            found = right(*inputs, **options)
            several = isinstance(found, tuple)
            *first, last = found if several else (found,)
            if isinstance(last, torch.Tensor) and last.ndim:
                last = change(last)
            return (*first, last) if several else last

        try:
            check(functools.wraps(right)(changed))
        except Exception as error:
            return str(error)
        return ""

    longer = told(lambda tensor: tensor[..., None])
    other = told(lambda tensor: 7 - tensor.float())
    must = f"the check of {name} must look at the shape first, and tell it"
    assert not longer or longer != other, f"book/{chapter}.ipynb: {must}; not {longer}"


@pytest.mark.parametrize(("chapter", "name"), exercises())
def test_a_check_says_what_it_asks(chapter, name):
    """No bare assert, and no comparison that leaves the words to PyTorch."""
    cell = next(c for c in tagged(chapter, "exercise") if exercise(c)[1] == name)
    where = f"book/{chapter}.ipynb ({cell['id']})"
    for node in ast.walk(ast.parse(cell["source"])):
        if isinstance(node, ast.Assert):
            must = "must say what is wrong: assert ok, 'each row must sum to one'"
            assert node.msg, f"{where}: {must}; {ast.unparse(node)}"
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("_close"):
            options = {keyword.arg for keyword in node.keywords}
            must = "must say what is wrong: msg=lambda m: f'each row sums to one: {m}'"
            assert "msg" in options, f"{where}: {must}; {ast.unparse(node)}"


# The command that marks a notebook


def marking() -> str:
    """The command of the page, as a shell reads it."""
    words = (ROOT / "book/how_to_use.md").read_text("utf-8")
    (block,) = (b for b in re.findall(r"(?ms)```sh\n(.+?)```", words) if "grep" in b)
    return textwrap.dedent(block)


def test_the_command_that_marks_a_notebook_finds_every_answer_and_no_source():
    program, flag, pattern = shlex.split(marking())[-3:]
    assert (program, flag) == ("grep", "-E")
    wanted = re.compile(pattern)
    names = [name for _, name in exercises()] + ["<lambda>", "answer_2"]
    lost = [name for name in names if not wanted.match(f"    {name}: passed")]
    assert not lost, f"book/how_to_use.md: `grep` must find the answers to {lost}"
    cells = [cell for chapter in chapters() for cell in code(chapter)]
    lines = [line for cell in cells for line in cell["source"].splitlines()]
    taken = [line for line in lines if wanted.match(line)]
    assert not taken, f"book/how_to_use.md: `grep` must leave out the source {taken}"


def test_a_broken_answer_takes_no_marks_from_the_others(tmp_path):
    """As a class hands them in: one cannot be compiled, one is not written yet."""
    answers = [
        "from attention.tools.workbench import grade",
        "def told(answer):\n    assert answer(), 'must be true'",
        "def first():\n    return True\n\ngrade(told, first)",
        "def second(:\n    return True\n\ngrade(told, second)",
        "def third():\n    return False\n\ngrade(told, third)",
        "def fourth():\n    return True\n\ngrade(told, fourth)",
    ]
    book = nbformat.v4.new_notebook()
    book.cells = [nbformat.v4.new_code_cell(answer) for answer in answers]
    nbformat.write(book, tmp_path / "handed_in.ipynb")
    command = marking().replace("handout/causal", "handed_in")
    command = command.replace(".venv/bin/jupyter", f"{sys.executable} -m jupyter")
    space = os.environ | {"PYTHONPATH": str(ROOT)}
    made = subprocess.run(
        command, shell=True, cwd=tmp_path, env=space, capture_output=True, text=True
    )
    lines = [line.strip() for line in made.stdout.splitlines()]
    must = ["first: passed", "not yet: must be true", "fourth: passed"]
    assert lines == must, f"book/how_to_use.md: {lines}\n{made.stderr}"
