"""Change the code in small ways, and see whether the tests notice.

    python tests/mutate.py                              every mutant of every file
    python tests/mutate.py attention/core/masks.py      of one file
    python tests/mutate.py --sample 50 book/tangle.py   some, chosen by a fixed seed

Each mutant is one change: another operator, comparison, number, truth value or branch,
a call, return or error left out. Annotations and text (docstrings, the words of an
error, the order of `__all__`) are left as they are. A mutant is killed when the file's
own tests or the wrong calls fail. One that they let pass survives, and is printed: it
wants a test, unless it means the same, as another seed or another size of tile does.
One with which they take five times as long as without a change and half a minute more
is printed, too, as too slow: it may be a loop without an end, or a busy machine, and
counts for neither side. All happens in a copy of the tree, on Unix, whose processes can
be copied.
"""

import argparse
import ast
import contextlib
import copy
import difflib
import gc
import importlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

ROOT = Path(__file__).resolve().parents[1]
TESTS = {
    "book/tangle.py": ["tests/test_tangle.py"],
    "book/conftest.py": ["tests/test_verifier.py"],
}
WRONG_CALLS = "tests/test_wrong_calls.py"
CACHES = "tests/memory/test_caches.py"  # what all are asked
for chapter, cache in {
    "bounded": "RollingCache",
    "kv_cache": "KVCache",
    "paged": "PagedCache",
    "quantised": "QuantizedCache",
}.items():
    own, only = f"tests/memory/test_{chapter}.py", f"test_{chapter} or {cache}"
    TESTS[f"attention/memory/{chapter}.py"] = [own, CACHES, WRONG_CALLS, "-k", only]
FILES = [
    path.relative_to(ROOT).as_posix()
    for path in sorted(ROOT.glob("attention/*/*.py"))
    if path.stem != "__init__"
] + [file for file in TESTS if file.startswith("book/")]
LEFT_OUT = [".git", ".venv", "_build", "__pycache__", ".hypothesis"]
FIRST = 600  # seconds that the tests may take on the plain code
AROUND = 40  # letters that are shown on each side of a change
MEMORY = 8 * 2**30  # bytes for a mutant, which may ask for any
OTHER = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult, ast.Pow: ast.Mult, ast.MatMult: ast.Add,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.And: ast.Or, ast.Or: ast.And,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
    ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip


def changes(node: ast.AST) -> Iterator[ast.AST]:
    """The node, changed in each way that is known."""
    match node:
        case ast.BinOp() | ast.BoolOp() | ast.AugAssign() if type(node.op) in OTHER:
            new = copy.deepcopy(node)
            new.op = OTHER[type(node.op)]()
            yield new
        case ast.Compare():
            for place, op in enumerate(node.ops):
                new = copy.deepcopy(node)
                new.ops[place] = OTHER[type(op)]()
                yield new
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.Invert()):
            yield node.operand
        case ast.Constant(value=bool()):
            yield ast.Constant(not node.value)
        case ast.Constant(value=int() | float()):
            yield ast.Constant(node.value + 1)
        case ast.If() | ast.IfExp() | ast.While():
            new = copy.deepcopy(node)
            new.test = ast.UnaryOp(ast.Not(), new.test)
            yield new
        case ast.Return(value=ast.expr()):
            yield ast.Return(ast.Constant(None))
        case ast.Break():
            yield ast.Continue()
        case ast.Continue():
            yield ast.Break()
        case ast.Expr(value=ast.Call()) | ast.Raise():
            yield ast.Pass()


def sites(tree: ast.AST) -> list[tuple[ast.AST, str, int | None]]:
    """All (parent, field, place in the field) but annotations."""
    found = []
    for parent in ast.walk(tree):
        for field, value in ast.iter_fields(parent):
            if field in ("annotation", "returns", "decorator_list"):
                continue
            if isinstance(value, list):
                found += [
                    (parent, field, i)
                    for i, item in enumerate(value)
                    if isinstance(item, ast.AST)
                ]
            elif isinstance(value, ast.AST):
                found.append((parent, field, None))
    return [site for site in found if not annotates(tree, site[0])]


def annotates(tree: ast.AST, node: ast.AST) -> bool:
    """Does the node stand in an annotation, where it computes nothing?"""
    if not hasattr(tree, "in_annotations"):
        tree.in_annotations = {
            id(below)
            for each in ast.walk(tree)
            for name in ("annotation", "returns")
            if isinstance(getattr(each, name, None), ast.AST)
            for below in ast.walk(getattr(each, name))
        }
    return id(node) in tree.in_annotations


def mutants(source: str) -> Iterator[tuple[int, str]]:
    """The line that is changed and the changed source, for each change."""
    tree = ast.parse(source)
    seen = {ast.unparse(tree)}
    for parent, field, place in sites(tree):
        value = getattr(parent, field)
        node = value if place is None else value[place]
        for new in changes(node):
            put(new, parent, field, place)
            text = ast.unparse(ast.fix_missing_locations(tree))
            if text not in seen:
                seen.add(text)
                yield node.lineno, text
            put(node, parent, field, place)


def put(node: ast.AST, parent: ast.AST, field: str, place: int | None) -> None:
    """Let the node stand in this place of its parent."""
    if place is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[place] = node


def function(item: pytest.Item | pytest.TestReport) -> str:
    return item.nodeid.partition("[")[0]


class SoonRed:
    """The order of the tests, in which a mutant is noticed soon.

    Those are first that took few seconds for each mutant that they have noticed. A case
    is as slow as the slowest of its function: one may find what another has made.
    """

    def __init__(self):
        self.seconds, self.noticed, self.red = Counter(), Counter(), None

    def pytest_runtest_logreport(self, report):
        slowest = max(self.seconds[function(report)], report.duration)
        self.seconds[function(report)] = slowest
        if report.failed:
            self.red = report.nodeid

    def pytest_collection_modifyitems(self, items):
        items.sort(key=self.seconds_for_one)

    def seconds_for_one(self, item: pytest.Item) -> float:
        return self.seconds[function(item)] / (self.noticed[item.nodeid] + 0.02)

    def learn(self, red: Path) -> None:
        """Count what a fork has written: the test that has noticed its mutant."""
        if red.exists():
            self.noticed[red.read_text("utf-8")] += 1
            red.unlink()


def attempt(tree: Path, tests: list[str], order: SoonRed, report: Path | None) -> int:
    """Never returns: the exit status says whether the tests pass."""
    os.setsid()
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    silent = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        os.dup2(silent, stream)
    os.chdir(tree)
    sys.path[:0] = [str(tree)]
    os.environ["PYTHONPATH"] = str(tree)
    # The first run keeps bytecode for all others, even where a machine is told to keep
    # none. They keep none: a mutant's could be taken for the next one's.
    os.environ["PYTHONDONTWRITEBYTECODE"] = "" if report else "1"
    sys.dont_write_bytecode = not report
    options = ["-x", "-q", "-p", "no:cacheprovider", "--tb=no"]
    options += ["--jaxtyping-packages=attention,beartype.beartype"]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # loaded before
    status = int(pytest.main([*tests, *options], plugins=[order]))
    if order.red:
        (tree.parent / "red").write_text(order.red, "utf-8")
    if report is not None:
        loaded = [
            name
            for name, module in list(sys.modules.items())
            if (file := getattr(module, "__file__", None))
            and not Path(file).is_relative_to(tree)
        ]
        report.write_text(json.dumps({"seconds": order.seconds, "loaded": loaded}))
    os._exit(status)


def passes(*asked, limit: float) -> bool | None:
    """Do the tests pass in a fork with all but the tree loaded? None: too slow."""
    if (child := os.fork()) == 0:
        try:
            attempt(*asked)
        finally:
            os._exit(1)
    end = time.monotonic() + limit
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status == 0
        time.sleep(0.01)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def begin(tree: Path, tests: list[str], order: SoonRed, folder: Path) -> float:
    """Run the tests on the plain code, learn from them, and say how long they take."""
    report, start = folder / "report.json", time.monotonic()
    if not passes(tree, tests, order, report, limit=FIRST):
        sys.exit(f"{', '.join(tests)} must pass without a change")
    seconds = time.monotonic() - start
    learned = json.loads(report.read_text())
    order.seconds.update(learned["seconds"])
    for name in learned["loaded"]:  # once here, and not in each fork
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    gc.freeze()  # and is never swept in a fork
    return seconds


def shared(a: str, b: str) -> int:
    """How many letters both begin with."""
    pairs = zip(a, b, strict=False)
    return len([*takewhile(lambda pair: pair[0] == pair[1], pairs)])


def change(plain: str, text: str) -> str:
    """What differs, with a little of what stands around it."""
    lines = list(difflib.unified_diff(plain.split("\n"), text.split("\n"), n=0))[2:]
    old, new = (
        " ".join(line[1:].strip() for line in lines if line[0] == sign) for sign in "-+"
    )
    same = shared(old, new)
    tail = shared(old[same:][::-1], new[same:][::-1])
    start = max(same - AROUND, 0)
    sides = (side[start : len(side) - max(tail - AROUND, 0)] for side in (old, new))
    return " → ".join(f"`{side}`" for side in sides)


FATES = {False: "killed", True: "survived", None: "too slow"}  # do the tests pass?


def run(file: str, sample: int | None) -> Counter[str]:
    """How many mutants of the file were killed, survived or took too long."""
    path = Path(file)
    tests = TESTS.get(file) or [
        f"tests/{path.parent.name}/test_{path.stem}.py",
        WRONG_CALLS,
    ]
    order, fates = SoonRed(), Counter()
    with TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(*LEFT_OUT))
        source = (ROOT / file).read_text("utf-8")
        plain = ast.unparse(ast.parse(source))
        (tree / file).write_text(plain, "utf-8")
        seconds = begin(tree, tests, order, Path(folder))
        for stale in (tree / file).parent.glob(f"__pycache__/{path.stem}.*"):
            stale.unlink()
        if not passes(tree, tests, order, None, limit=FIRST):
            sys.exit(f"{', '.join(tests)} must pass in a fork, too")
        every = list(mutants(source))
        random.Random(0).shuffle(every)
        chosen = every[:sample]
        for line, text in chosen:
            (tree / file).write_text(text, "utf-8")
            fate = FATES[passes(tree, tests, order, None, limit=30 + 5 * seconds)]
            fates[fate] += 1
            order.learn(tree.parent / "red")
            if fate != "killed":
                print(f"{file}:{line}: {fate}: {change(plain, text)}", flush=True)
    print(f"{file}: {told(fates)}, of {len(every)}", flush=True)
    return fates


def told(fates: Counter[str]) -> str:
    return ", ".join(f"{fates[fate]} {fate}" for fate in FATES.values())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sample", type=int, help="how many mutants; none means all")
    parser.add_argument("file", nargs="*", help="like attention/core/masks.py")
    asked = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "TRITON_INTERPRET": "1"}
    os.nice(10)
    fates = sum((run(file, asked.sample) for file in asked.file or FILES), Counter())
    print(f"all: {told(fates)}")
    sys.exit(fates["killed"] < 0.95 * (fates["killed"] + fates["survived"]))
