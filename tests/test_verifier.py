"""What must stay true of the verifier: rounding passes, and nothing else does."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import test_book
import test_tangle

ROOT = Path(__file__).resolve().parents[1]
SPEC = importlib.util.spec_from_file_location("verifier", ROOT / "book/conftest.py")
verifier = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(verifier)

SVG = "image/svg+xml"


def differ(stored: str, given: str, kind: str = "text/plain") -> bool:
    """Are they told apart, whichever of the two is stored?"""
    answers = {
        verifier.difference(stored, given, kind) is not None,
        verifier.difference(given, stored, kind) is not None,
    }
    assert len(answers) == 1
    return answers.pop()


# What one text may differ in from another

CLOSE = {
    "the last digit of a float": ("0.1234", "0.1235"),
    "the last of four digits": ("11.12 1.115e+01", "11.11 1.116e+01"),
    "a float of any size, by 1 in 10,000": ("in all 12345.6 ms", "in all 12346.5 ms"),
    "many digits of a float, by 2 in 10,000": ("0.123400", "0.123590"),
    "how a float is written": ("1e-05 and 0.5000", "0.00001 and .5"),
    "the last digit of a small float": ("0.0001 1.0e-08", "0.0002 1.1e-08"),
    "the sign of zero": ("tensor([-0., 1.])", "tensor([0., 1.])"),
    "the width of a tensor's columns": (
        "tensor([[ 0.1000,  2.0000],\n        [ 0.3000, 10.0000]])",
        "tensor([[0.1, 2.],\n    [0.3, 10.]])",
    ),
    "the exponent that all of a tensor shares": (
        "tensor([1.0000e+00, 1.0000e-08])",
        "tensor([1., 0.])",
    ),
    "a float before its unit": (
        "12.5pt, 1.50x, 3.10 ms",
        "12.5001pt, 1.5001x, 3.1001 ms",
    ),
    "a float with matplotlib's minus": ("−0.25", "−0.25001"),
    "the ends of a range": ("0.1234-0.5678", "0.1235-0.5679"),
    "a float in HTML": (
        '<td style="opacity:0.1234">',
        '<td style="opacity:0.1235">',
    ),
}


@pytest.mark.parametrize(("stored", "given"), CLOSE.values(), ids=CLOSE)
def test_outputs_may_differ_in(stored, given):
    assert stored != given
    assert not differ(stored, given)


APART = {
    "a digit that rounding cannot change": ("0.1234", "0.1244"),
    "the last of three digits": ("1.25", "1.24"),
    "the last of four digits by two": ("11.12", "11.10"),
    "the sign of a float": ("0.1234", "-0.1234"),
    "an integer": ("2 heads, 0.5", "3 heads, 0.5"),
    "a large integer by one": ("2360064 of 0.5", "2360065 of 0.5"),
    "an integer at the end of a sentence": ("0.5 of 2360064.", "0.5 of 2360065."),
    "an integer that became a float": ("tensor([1, 0])", "tensor([1., 0.])"),
    "a size": ("torch.Size([2, 30000]) 0.5", "torch.Size([2, 30001]) 0.5"),
    "a word": ("cat 0.5", "mat 0.5"),
    "a number that became a word": ("0.5 1", "0.5 one"),
    "the sign of a small float": ("0.0001", "-0.0001"),
    "the sign of a tiny float": ("-1.0e-08", "1.0e-08"),
    "a small float by two": ("0.0001", "0.0003"),
    "the size of a tiny float": ("1e-08", "1.9e-04"),
    "a zero that became a small float": (
        "tensor([1., 0.])",
        "tensor([1.0e+00, 1.9e-04])",
    ),
    "the digits of a float with an exponent": ("1.25e-05", "1.27e-05"),
    "the digits of a larger float with an exponent": ("1.25e-02", "1.27e-02"),
    "a line in a text with floats": ("0.5\n0.25", "0.5 0.25"),
    "an empty line in a text with floats": ("0.5\n\n0.25", "0.5\n0.25"),
    "infinity": ("tensor([0.5, inf])", "tensor([0.5, -inf])"),
    "a number that is none": ("tensor([0.5, nan])", "tensor([0.5, 0.])"),
    "infinity and a large number": ("0.5 inf", "0.5 1e30"),
    "a colour": ("#3b3fa0 0.5", "#3b3fa1 0.5"),
    "a colour that could be a number": ("#0000e1 0.5", "#0000e2 0.5"),
    "a name with a number": ("DejaVuSans-30 0.5", "DejaVuSans-31 0.5"),
    "an address": ("0x7f1234 0.5", "0x7f1235 0.5"),
    "a version": ("1000.5.0 and 0.5", "1000.6.0 and 0.5"),
    "punctuation": ("[0.5, 0.5]", "[0.5 0.5]"),
    "how many numbers there are": ("0.5 0.5", "0.5 0.5 0.5"),
    "the space in a text without floats": ("if x:\n    y", "if x:\n  y"),
    "a line in a text without floats": ("a\nb", "a b"),
}


@pytest.mark.parametrize(("stored", "given"), APART.values(), ids=APART)
def test_outputs_must_not_differ_in(stored, given):
    assert not differ(stored, stored)
    assert differ(stored, given)


def test_a_picture_may_round_its_coordinates_to_integers():
    assert not differ('<path d="M 10 20"/>', '<path d="M 10.00001 19.99999"/>', SVG)
    assert not differ('<path d="M -0 2.5"/>', '<path d="M 0 2.5"/>', SVG)
    assert differ('<path d="M 10 20"/>', '<path d="M 10.1 20"/>', SVG)
    assert differ('<path d="M 10 20"/>', '<path d="M 11 20"/>', SVG)


def test_a_picture_may_name_its_parts_by_another_hash_but_not_mix_them_up():
    two = '<path id="m0123456789" d="M 0.5"/><path id="pabcdef0123"/><use href="#%s"/>'
    renamed = two.replace("m0123456789", "mfedcba9876")
    assert not differ(two % "m0123456789", renamed % "mfedcba9876", SVG)
    assert differ(two % "m0123456789", renamed % "pabcdef0123", SVG)


@pytest.mark.parametrize("change", [("#3b3fa0", "#3b3fa1"), (">cat<", ">mat<")])
def test_a_picture_must_keep_its_colours_and_words(change):
    picture = '<path style="fill: #3b3fa0" d="M 1.5"/><text>cat</text>'
    assert differ(picture, picture.replace(*change), SVG)


def test_what_is_not_text_must_be_equal():
    assert verifier.difference({"a": 1.0}, {"a": 1.0}) is None
    assert verifier.difference({"a": 1.0}, {"a": 1.00001}) is not None
    assert verifier.difference({"a": 1.0}, "1.0") is not None
    assert verifier.difference("1.0", {"a": 1.0}) is not None


def test_a_difference_is_shown_where_it_is():
    text = "x" * 99 + " 0.5 and 0.25."
    reason = verifier.difference(text, text.replace("0.25", "0.75"))
    before = "x" * 31 + " 0.5 and "
    assert reason == f"stored is '{before}0.25.'; the run gives '{before}0.75.'"


def test_a_difference_is_shown_with_forty_letters_on_each_side():
    assert verifier.difference("0.5", "0.75") == (
        "stored is '0.5'; the run gives '0.75'"
    )
    around = "x" * 40
    stored, given = (f"y{around} {n} {around}y" for n in (0.5, 0.7))
    half, cut = "x" * 39 + " ", " " + "x" * 36
    assert verifier.difference(stored, given) == (
        f"stored is '{half}0.5{cut}'; the run gives '{half}0.7{cut}'"
    )
    assert verifier.difference("the cat sat", "the mat sat") == (
        "stored is 'the cat sat'; the run gives 'the mat sat'"
    )
    stored, given = (f"{around}yy{word}" for word in ("cat", "mat"))
    assert verifier.difference(stored, given) == (
        f"stored is '{around[2:]}yycat'; the run gives '{around[2:]}yymat'"
    )


# What the outputs of a cell may differ in


def stream(text: str, name: str = "stdout") -> dict:
    return {"output_type": "stream", "name": name, "text": text}


def shown(**data: str) -> dict:
    kinds = {"plain": "text/plain", "svg": SVG, "png": "image/png"}
    data = {kinds[kind]: text for kind, text in data.items()}
    return {"output_type": "display_data", "metadata": {}, "data": data}


def reasons(stored: list[dict], given: list[dict]) -> list[str]:
    return list(verifier.differences(stored, given))


def test_equal_outputs_give_no_reason():
    outputs = [stream("0.5\n"), shown(plain="A map.", svg="<svg/>")]
    assert reasons(outputs, outputs) == reasons([], []) == []


def test_a_missing_output_is_told():
    assert reasons([], [stream("0.5")]) == [
        "stored are no outputs; the run gives stdout"
    ]
    assert reasons([stream("0.5")], []) == [
        "stored are stdout; the run gives no outputs"
    ]


def test_a_new_warning_is_told():
    warned = [stream("0.5"), stream("Warning!", "stderr")]
    assert reasons([stream("0.5")], warned) == [
        "stored are stdout; the run gives stdout, stderr"
    ]


def test_another_error_is_told():
    errors = [
        {"output_type": "error", "ename": name, "evalue": "no", "traceback": []}
        for name in ("ValueError", "TypeError")
    ]
    assert len(reasons(errors[:1], errors[1:])) == 1


def test_a_changed_picture_is_told():
    old, new = shown(svg='<path d="M 1.5"/>'), shown(svg='<path d="M 2.5"/>')
    assert reasons([old], [new])[0].startswith("image/svg+xml: stored is ")


def test_a_changed_description_is_told():
    old, new = shown(svg="<svg/>", plain="One."), shown(svg="<svg/>", plain="Two.")
    assert reasons([old], [new])[0].startswith("text/plain: stored is ")


def test_a_picture_that_cannot_be_compared_is_refused_even_if_equal():
    picture = [shown(png="iVBORw0KGgo=")]
    assert reasons(picture, picture) == [
        "image/png: a figure must be SVG, which can be compared: `show_weights` gives"
        " it, and `described(figure, words)` of attention.tools.workbench"
    ]


def test_nbval_is_told_yes_or_no_and_finds_the_reasons():
    cell, outputs = SimpleNamespace(), [stream("0.5")]
    assert verifier.compare_outputs(cell, outputs, outputs) is True
    assert cell.comparison_traceback == []
    assert verifier.compare_outputs(cell, [stream("0.7")], outputs) is False
    assert cell.comparison_traceback == ["stdout: stored is '0.5'; the run gives '0.7'"]


def test_a_cell_that_was_never_run_fails_and_another_does_not():
    item = object.__new__(verifier.IPyNbCell)
    item.path, item.cell = Path("core/causal.ipynb"), SimpleNamespace()
    item.cell.execution_count = None
    never = "never executed: run `make"
    with pytest.raises(pytest.fail.Exception, match=never) as failed:
        verifier.pytest_runtest_setup(item)
    assert not failed.value.pytrace  # the words say all
    item.cell.execution_count = 1
    verifier.pytest_runtest_setup(item)


def test_chapters_that_take_long_are_begun_first_and_the_others_keep_their_order():
    for name in verifier.LONG:
        (_,) = (ROOT / "book").glob(f"*/{name}.ipynb")  # there is one of this name
    names = ["masks", *verifier.LONG[:2], "causal"]
    items = [SimpleNamespace(path=Path(f"book/core/{name}.ipynb")) for name in names]
    verifier.pytest_collection_modifyitems(items)
    begun = [item.path.stem for item in items]
    assert begun == [*verifier.LONG[:2], "masks", "causal"]


@pytest.mark.parametrize(("dies", "starts"), [(0, 1), (1, 2), (2, 2)])
def test_a_kernel_that_dies_at_once_is_started_once_more(monkeypatch, dies, starts):
    tried = []

    def start(**options):
        tried.append(options)
        if len(tried) <= dies:
            raise RuntimeError("Kernel died before replying to kernel_info")
        return "manager", "client"

    monkeypatch.setattr(verifier, "START", start)
    if dies < 2:
        assert verifier.start_new_kernel(cwd="here") == ("manager", "client")
    else:
        with pytest.raises(RuntimeError, match="Kernel died"):
            verifier.start_new_kernel(cwd="here")
    assert tried == [{"cwd": "here"}] * starts


def test_a_kernel_that_has_ended_is_told_to_end_without_an_error(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "book")
    import warm

    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    kernel = warm.Kernel(ended.pid)
    kernel.terminate()
    kernel.kill()
    assert kernel.poll() == kernel.wait() == 1


def test_another_nbval_is_refused(monkeypatch):
    monkeypatch.setattr(verifier, "NBVAL", "0.10.0")
    with pytest.raises(pytest.UsageError, match=r"replaces how nbval 0\.10\.0"):
        verifier.pytest_configure()


# The whole verifier, on a small chapter that is spoiled in one place of each cell

PICTURE = """\
class Square:
    def _repr_mimebundle_(self, **_):
        return {"image/svg+xml": '<svg><path d="M 1.5 2"/></svg>', "text/plain": "One."}


Square()"""
TABLE = """\
class Table:
    def _repr_html_(self):
        return "<table><caption>Rows look at columns.</caption></table>"

    def __repr__(self):
        return "A table."


Table()"""


def printed(text: str) -> list[dict]:
    return [stream(text + "\n")]


def result(**data: str) -> list[dict]:
    return [{"output_type": "execute_result", "metadata": {}, "data": data}]


def drawn(path: str = "M 1.5 2", words: str = "One.") -> list[dict]:
    return result(**{SVG: f'<svg><path d="{path}"/></svg>', "text/plain": words})


def captioned(words: str) -> list[dict]:
    html = f"<table><caption>{words}</caption></table>"
    return result(**{"text/html": html, "text/plain": "A table."})


# What each cell says, its outputs as they are, and as somebody has spoiled them (None:
# the cell was never run). The last two cells have changed places, too.
SPOILED = {
    "n = 0": ([], printed("0")),
    "print('added')": (printed("added"), []),
    "print(0.1234)": (printed("0.1234"), printed("0.1244")),
    "print('swapped')": (printed("swapped"), printed("with this")),
    "print('with this')": (printed("with this"), printed("swapped")),
    PICTURE: (drawn(), drawn(path="M 1.7 2")),
    f"{PICTURE}  # once more": (drawn(), drawn(words="Two.")),
    TABLE: (captioned("Rows look at columns."), captioned("Rows look at rows.")),
    "1 + 1": (result(**{"text/plain": "2"}), None),
    "n = n + 1\nprint(n)": (printed("1"), printed("1")),
    "n = n * 10\nprint(n)": (printed("10"), printed("10")),
}
REASONS = """\
stored are stdout; the run gives no outputs
stored are no outputs; the run gives stdout
stdout: stored is '0.1244\\n'; the run gives '0.1234\\n'
stdout: stored is 'with this\\n'; the run gives 'swapped\\n'
stdout: stored is 'swapped\\n'; the run gives 'with this\\n'
image/svg+xml: stored is '<svg><path d="M 1.7 2"/></svg>'; the run gives
text/plain: stored is 'Two.'; the run gives 'One.'
text/html: stored is
this cell was never executed: run `make execute`
stdout: stored is '10\\n'; the run gives '0\\n'
"""


def run(folder: Path, spoiled: bool) -> str:
    """What `make chapters` says of a chapter with these cells."""
    cells = []
    for source, (right, wrong) in SPOILED.items():
        outputs = wrong if spoiled else right
        made = {"cell_type": "code", "id": f"c{len(cells)}", "metadata": {}}
        made |= {"source": source, "outputs": outputs or []}
        cells.append(made | {"execution_count": None if outputs is None else 1})
    if spoiled:
        cells[-2:] = reversed(cells[-2:])
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    book = {"nbformat": 4, "nbformat_minor": 5, "metadata": kernel, "cells": cells}
    (folder / "chapter.ipynb").write_text(json.dumps(book))
    for name in ("conftest.py", "warm.py"):
        shutil.copy(ROOT / "book" / name, folder)
    command = ["-m", "pytest", "--nbval", "-rfE", "-p", "no:cacheprovider", folder]
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=env, capture_output=True, text=True
    )
    assert done.returncode == int(spoiled), done.stdout + done.stderr
    return done.stdout


def test_a_chapter_as_it_was_run_is_green(tmp_path):
    assert f"{len(SPOILED)} passed" in run(tmp_path, spoiled=False)


def test_every_cell_that_is_spoiled_is_red_and_says_why(tmp_path):
    said = run(tmp_path, spoiled=True)
    red = {
        int(cell) for cell in re.findall(r"(?m)^(?:FAILED|ERROR) .*::Cell (\d+)", said)
    }
    assert red >= set(range(len(SPOILED) - 1)), said  # the last could be right by luck
    for reason in REASONS.splitlines():
        assert reason in said


def test_a_moved_cell_is_out_of_order():
    moved = test_book.Chapter("core/causal")
    test_book.test_every_code_cell_was_executed_in_order(moved)
    moved.code[-2:] = reversed(moved.code[-2:])
    with pytest.raises(AssertionError):
        test_book.test_every_code_cell_was_executed_in_order(moved)


def test_an_edited_module_and_a_moved_definition_are_stale(tmp_path, capsys):
    book = test_tangle.Book(tmp_path)
    parts = "a = 1", "b = 2"
    book.put("book/one/late.ipynb", test_tangle.notebook(*parts))
    assert test_tangle.tangle.main(tmp_path) == 0
    module = tmp_path / "attention/one/late.py"
    right = module.read_text()
    module.write_text(right + "# edited by hand\n")
    assert test_tangle.tangle.main(tmp_path, check=True) == 1
    said = capsys.readouterr().err
    assert "stale: attention/one/late.py, line " in said
    assert "is '# edited by hand', its chapter gives ''" in said
    module.write_text(right)
    assert test_tangle.tangle.main(tmp_path, check=True) == 0
    book.put("book/one/late.ipynb", test_tangle.notebook(*reversed(parts)))
    assert test_tangle.tangle.main(tmp_path, check=True) == 1


# What a machine lacks


@pytest.mark.parametrize(
    ("name", "package"),
    [
        (name, package)
        for name, needed in verifier.NEEDS.items()
        for package in needed
        if package not in (verifier.MODEL, verifier.COMPILER)
    ],
)
def test_a_chapter_is_skipped_with_a_reason_without_its_package(
    monkeypatch, name, package
):
    (chapter,) = (ROOT / "book").glob(f"*/{name}")
    monkeypatch.setattr(verifier, "find_spec", lambda name: name != package)
    other = SimpleNamespace(path=Path("book/core/causal.ipynb"))
    try:
        verifier.pytest_runtest_setup(other)
    except pytest.skip.Exception:
        pytest.fail("a chapter that needs nothing is skipped")
    with pytest.raises(pytest.skip.Exception, match=f"needs {package}, which is not"):
        verifier.pytest_runtest_setup(SimpleNamespace(path=chapter))


def test_a_chapter_is_skipped_with_a_reason_without_a_compiler(monkeypatch):
    (chapter,) = (ROOT / "book").glob("*/flash_cpp.ipynb")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(pytest.skip.Exception, match="needs a C\\+\\+ compiler"):
        verifier.pytest_runtest_setup(SimpleNamespace(path=chapter))


READERS = [name for name, needed in verifier.NEEDS.items() if verifier.MODEL in needed]


@pytest.mark.parametrize("name", READERS)
def test_a_chapter_is_skipped_with_a_reason_without_the_language_model(
    monkeypatch, tmp_path, name
):
    (chapter,) = (ROOT / "book").glob(f"*/{name}")
    kept = tmp_path / "model.gguf"
    monkeypatch.setattr(verifier, "model_path", lambda: kept)
    with pytest.raises(pytest.skip.Exception, match="`make model` fetches it"):
        verifier.pytest_runtest_setup(SimpleNamespace(path=chapter))
    kept.touch()
    verifier.pytest_runtest_setup(SimpleNamespace(path=chapter))


def test_the_verifier_looks_for_the_model_where_it_is_fetched_to(monkeypatch, tmp_path):
    monkeypatch.setenv("BUILDING_ATTENTION_CACHE", str(tmp_path))
    assert verifier.model_path().parent == tmp_path


def test_a_chapter_that_loads_the_model_says_that_it_needs_it():
    for path in sorted((ROOT / "book").glob("*/*.ipynb")):
        cells = json.loads(path.read_text("utf-8"))["cells"]
        code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
        loads = any(re.search(r"(?<!def )load_language_model\(", c) for c in code)
        assert loads == (path.name in READERS), f"{path.name}: NEEDS, book/conftest.py"
