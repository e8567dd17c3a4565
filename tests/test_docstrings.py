"""What a public docstring says of the errors of its function, class or method."""

import ast
import inspect
import re
from functools import cache
from pathlib import Path

import pytest
from test_wrong_calls import CALLS

import attention
from conformance import names

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "attention").glob("*/*.py"))
MAKES = {"expected": "ValueError", "second_derivative": "RuntimeError"}
Function = ast.FunctionDef


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text("utf-8"))


@cache
def known(file: Path) -> dict[str, tuple[Path, ast.AST]]:
    """The functions and classes that a module makes or imports from another."""
    found = {}
    for node in tree(file).body:
        if isinstance(node, Function | ast.ClassDef):
            found[node.name] = file, node
        if isinstance(node, ast.ImportFrom) and node.module.startswith("attention."):
            there = ROOT / f"{node.module.replace('.', '/')}.py"
            for alias in node.names:
                if alias.name in known(there):
                    found[alias.asname or alias.name] = known(there)[alias.name]
    return found


def methods(owner: ast.ClassDef | None) -> dict[str, Function]:
    body = owner.body if owner else []
    return {node.name: node for node in body if isinstance(node, Function)}


def named(node: ast.AST | None) -> list[ast.Name]:
    return [n for n in ast.walk(node) if isinstance(n, ast.Name)] if node else []


def errors(file, node, owner=None, seen=()) -> set[str]:
    """The kinds that a function raises and does not catch, or that its helpers do.

    A helper is a `check_...` of any module, or a private function or method of its own.
    """
    kinds = set()
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
        kind = getattr(node.exc.func, "id", "")
        if kind in MAKES or kind[:1].isupper():
            kinds.add(MAKES.get(kind, kind))
    if isinstance(node, ast.Call):
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        helper = None, None
        if name not in seen and isinstance(node.func, ast.Name):
            helper = known(file).get(name, helper)
        if name not in seen and isinstance(node.func, ast.Attribute):
            helper = file, methods(owner).get(name)
        if re.match(r"check_|_[a-z]", name) and isinstance(helper[1], Function):
            of = owner if isinstance(node.func, ast.Attribute) else None
            kinds |= errors(*helper, of, (*seen, name))
    children = list(ast.iter_child_nodes(node))
    if isinstance(node, ast.Try):
        caught = {n.id for each in node.handlers for n in named(each.type)}
        body = set().union(*(errors(file, each, owner, seen) for each in node.body))
        kinds |= body - caught
        children = [each for each in children if each not in node.body]
    for child in children:
        kinds |= errors(file, child, owner, seen)
    return kinds - {"TypeError"}


def exported(file: Path) -> list[str]:
    for node in tree(file).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == "__all__":
            return ast.literal_eval(node.value)
    return []


def public() -> dict[str, tuple[set[str], str]]:
    """Of all that is exported, its methods too: what it raises, and its docstring."""
    found = {}
    for file in FILES:
        for name in set(exported(file)) & known(file).keys():
            where, node = known(file)[name]
            if isinstance(node, Function):
                found[name] = errors(where, node), ast.get_docstring(node) or ""
                continue
            for each, method in methods(node).items():
                if each[0] != "_" or each in ("__init__", "__post_init__", "__call__"):
                    both = [ast.get_docstring(of) or "" for of in (node, method)]
                    found[f"{name}.{each}"] = (
                        errors(where, method, node),
                        " ".join(both),
                    )
    return dict(sorted(found.items()))


PUBLIC = public()
NAMES = names.public()
EMPTY = {
    *("a", "an", "and", "are", "argument", "arguments", "bad", "be", "does", "error"),
    *(
        "for",
        "given",
        "if",
        "in",
        "input",
        "inputs",
        "invalid",
        "is",
        "it",
        "may",
        "of",
    ),
    *("raise", "raised", "raises", "something", "that", "the", "this", "unless"),
    *("value", "values", "what", "when", "with", "wrong"),
}


def says(docstring: str, kind: str) -> bool:
    """Whether a sentence names this kind of error, and what it is raised for."""
    told = " ".join(docstring.split())
    for sentence in re.split(r"(?<=[.;])\s+", told):
        if re.search(rf"\b{kind}\b", sentence):
            words = re.findall(r"\w+", sentence.replace(kind, " ").lower())
            if set(words) - EMPTY:
                return True
    return False


@pytest.mark.parametrize("name", PUBLIC)
def test_a_docstring_names_the_errors_that_are_raised_and_what_for(name):
    kinds, docstring = PUBLIC[name]
    for kind in kinds:
        assert says(docstring, kind), f"{name}: must say what it raises {kind} for"


@pytest.mark.parametrize(
    ("told", "enough"),
    [
        ("ValueError.", False),
        ("Raises ValueError if the input is wrong.", False),
        ("Raises ValueError for a bad value. Heads are cut.", False),
        ("RuntimeError for a second derivative.", False),
        ("ValueError for a size below 1.", True),
        ("A text that finds too few blocks is refused (ValueError).", True),
    ],
)
def test_a_sentence_that_says_nothing_of_the_error_is_not_enough(told, enough):
    assert says(f"Heads of a layer. {told}", "ValueError") == enough


def called(call: str) -> list[str]:
    """The names before the brackets: of `GPT(3).forward(x)`, GPT and forward."""
    found, node = [], ast.parse(call, mode="eval").body
    while isinstance(node, ast.Call | ast.Attribute | ast.Subscript):
        found += [node.attr] if isinstance(node, ast.Attribute) else []
        node = node.func if isinstance(node, ast.Call) else node.value
    return [*([node.id] if isinstance(node, ast.Name) else []), *reversed(found)]


WRONG = sorted({(*called(call)[:2],) for call, _ in CALLS if called(call)})


@pytest.mark.parametrize("chain", WRONG, ids=".".join)
def test_a_docstring_names_the_error_of_a_call_that_is_refused(chain):
    thing = NAMES[chain[0]]
    of = [thing, getattr(thing, chain[-1], None)]
    told = " ".join(inspect.getdoc(each) or "" for each in of if each is not None)
    assert says(told, "ValueError"), f"{'.'.join(chain)}: must say what it refuses"


def test_the_package_says_once_what_is_a_type_error(as_importer):
    """Then no docstring has to say it of each tensor that it takes."""
    assert says(attention.__doc__, "TypeError")
    for thing in ([[1.0]], "text", None):
        with pytest.raises(TypeError, match=r"^scores: expected a torch\.Tensor"):
            attention.softmax(thing)
