"""Change the code in small ways, and see whether the tests notice.

    python tests/mutate.py attention/core/masks.py      every mutant of a file
    python tests/mutate.py --sample 50 book/tangle.py   some, chosen by a fixed seed

Each mutant is one change: another operator, comparison, number, truth value or branch.
A mutant that the file's own tests and the wrong calls let pass survives, and is
printed. All happens in a
copy of the tree. Modules are written from chapters, so a survivor is mended by a test.
"""

import argparse
import ast
import copy
import difflib
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
TESTS = {
    "book/tangle.py": "tests/test_tangle.py",
    "book/conftest.py": "tests/test_verifier.py",
}
TIMEOUT = 300  # seconds a mutant: one that never ends is noticed, too
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
    for field in ("op", "ops"):
        old = getattr(node, field, None)
        for place, op in enumerate(old if isinstance(old, list) else [old]):
            if type(op) in OTHER:
                new = copy.deepcopy(node)
                other = OTHER[type(op)]()
                if isinstance(old, list):
                    new.ops[place] = other
                else:
                    new.op = other
                yield new
    match node:
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


def mutants(source: str) -> Iterator[str]:
    """The source with one change, for each change."""
    tree = ast.parse(source)
    for parent, field, place in sites(tree):
        value = getattr(parent, field)
        node = value if place is None else value[place]
        for new in changes(node):
            if place is None:
                setattr(parent, field, new)
            else:
                value[place] = new
            yield ast.unparse(ast.fix_missing_locations(tree))
            if place is None:
                setattr(parent, field, node)
            else:
                value[place] = node


def passes(tree: Path, test: str) -> bool:
    """Do the tests pass in a fork, which has PyTorch loaded and the package not?"""
    if (child := os.fork()) == 0:
        os.setsid()
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1), os.dup2(silent, 2)
        os.chdir(tree)
        sys.path[:0] = [str(tree)]
        os.environ["PYTHONPATH"] = str(tree)
        options = ["-x", "-q", "-p", "no:cacheprovider", "--tb=no"]
        options += ["--jaxtyping-packages=attention,beartype.beartype"]
        os._exit(int(pytest.main([test, "tests/test_wrong_calls.py", *options])))
    end = time.monotonic() + TIMEOUT
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status == 0
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def run(file: str, sample: int | None) -> tuple[int, int]:
    """How many mutants of the file were killed, and of how many."""
    path = Path(file)
    test = TESTS.get(file, f"tests/{path.parent.name}/test_{path.stem}.py")
    with TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".git", "_build"))
        plain = ast.unparse(ast.parse((ROOT / file).read_text("utf-8")))
        all_mutants = [text for text in mutants(plain) if text != plain]
        random.Random(0).shuffle(all_mutants)
        (tree / file).write_text(plain, "utf-8")
        if not passes(tree, test):
            sys.exit(f"{test} fails without a change")
        chosen, killed = all_mutants[:sample], 0
        for text in chosen:
            (tree / file).write_text(text, "utf-8")
            if not passes(tree, test):
                killed += 1
                continue
            lines = difflib.unified_diff(plain.split("\n"), text.split("\n"), n=0)
            changed = [line for line in lines if line[:2] not in ("--", "++", "@@")]
            print(f"survives in {file}:", *changed, sep="\n  ", flush=True)
        print(f"{file}: {killed} of {len(chosen)} killed", flush=True)
    return killed, len(chosen)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sample", type=int, help="how many mutants; none means all")
    parser.add_argument("file", nargs="+", help="like attention/core/masks.py")
    asked = parser.parse_args()
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.dont_write_bytecode = True
    import matplotlib.pyplot  # noqa: F401
    import pytest
    import torch

    torch.set_num_threads(1)
    results = [run(file, asked.sample) for file in asked.file]
    killed, count = map(sum, zip(*results, strict=True))
    print(f"all: {killed} of {count} killed, {killed / count:.1%}")
    sys.exit(killed < 0.95 * count)
