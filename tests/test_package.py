"""What an importer of the package can rely on."""

import importlib.metadata
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Protocol

import pytest
from examples import said

import attention

ROOT = Path(__file__).parent.parent
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in (ROOT / "attention").glob("*/*.py")
    if path.stem != "__init__"
)


def loaded_by(statement):
    code = f"import sys; {statement}; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return {name.split(".")[0] for name in run.stdout.split()}


def test_importing_attention_loads_little_more_than_torch():
    more = loaded_by("import attention") - loaded_by("import torch, fractions, secrets")
    assert {"attention", "einops", "jaxtyping"} <= more
    assert more <= {
        "attention",
        "difflib",
        "_wadler_lindig",
        "einops",
        "html",
        "jaxtyping",
        "unicodedata",
        "wadler_lindig",
    }


def test_its_version_is_that_of_what_is_installed_and_costs_nothing_until_asked():
    with open(ROOT / "pyproject.toml", "rb") as file:
        assert attention.__version__ == tomllib.load(file)["project"]["version"]
    assert (
        "metadata" not in (ROOT / "attention/__init__.py").read_text().split("def ")[0]
    )


def test_of_a_package_that_is_not_installed_the_version_is_told_to_be_unknown(
    monkeypatch,
):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(AttributeError, match=said("installed", "version is unknown")):
        attention.__version__  # noqa: B018
    assert not hasattr(attention, "__version__")
    with pytest.raises(
        AttributeError, match=said("attention", "no attribute", "Atend")
    ):
        attention.Atend  # noqa: B018


def test_without_triton_all_can_be_imported_and_one_function_says_what_it_needs():
    code = """
import sys
import torch
sys.modules["triton"] = None  # as if it were not installed
from attention import *
try:
    triton_attend(*torch.zeros(3, 5, 16))
except ModuleNotFoundError as error:
    print(error)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    need = "triton_attend needs Triton: pip install 'building-attention[triton]'"
    assert (run.returncode, run.stdout) == (0, need + "\n"), run.stderr


def test_triton_is_imported_on_use_alone():
    assert "triton" not in loaded_by("from attention import triton_attend")


def test_all_public_names_can_be_imported():
    assert attention.__all__ == sorted(attention.__all__)
    for name in attention.__all__:
        assert getattr(attention, name).__doc__, f"{name} says nothing of itself"


# Too general for a package that others import: each was renamed before publication.
OLD_NAMES = {
    "merge": "merge_states",
    "combine": "and_masks",
    "fill": "load_weights",
    "convert": "convert_state_dict",
    "describe": "describe_weights",
    "entropy": "attention_entropy",
}


@pytest.mark.parametrize("old", OLD_NAMES)
def test_an_old_name_is_left_over_nowhere(old):
    assert hasattr(attention, OLD_NAMES[old])
    modules = map(importlib.import_module, MODULES)
    exports = {name for module in modules for name in vars(module)}
    assert not hasattr(attention, old)
    assert old not in exports
    marks = re.compile(rf"`(attention\.)?{old}(\(.*?\))?`|attention\.{old}\b")
    told = ROOT / "CHANGELOG.md"
    places = (
        "*.md",
        "book/**/*.md",
        "book/**/*.ipynb",
        "book/**/*.py",
        "attention/*/*.py",
    )
    for path in {path for place in places for path in ROOT.glob(place)} - {told}:
        text = path.read_text("utf-8")
        found = marks.search(text)
        local = f"def {old}(" in text  # of an exercise: then it is the reader's
        assert not found or local, f"{path.relative_to(ROOT)}: {found[0]}"


def test_every_public_name_comes_from_a_chapter():
    for name in attention.__all__:
        assert getattr(attention, name).__module__ in MODULES


def made_by(kind: type):
    """What makes one of this kind, if not inherited; of a protocol, its method."""
    if Protocol in kind.__bases__:
        own = {n: m for n, m in vars(kind).items() if inspect.isfunction(m)}
        return next(m for n, m in own.items() if n == "__call__" or n[0] != "_")
    return vars(kind).get("__init__", lambda self: None)


def test_every_exported_function_and_class_has_a_docstring_and_hints():
    for module in map(importlib.import_module, MODULES):
        for name in module.__all__:
            thing = getattr(module, name)
            if not callable(thing):  # a colour, or a machine
                continue
            assert inspect.getdoc(thing), f"{module.__name__}.{name}"
            target = made_by(thing) if inspect.isclass(thing) else thing
            hints = inspect.signature(target).parameters.values()
            bare = [p.name for p in hints if p.annotation is p.empty]
            assert bare in ([], ["self"]), f"{module.__name__}.{name}: {bare}"


def test_the_package_is_marked_as_typed():
    assert (ROOT / "attention" / "py.typed").exists()


def test_the_legend_explains_each_letter():
    legend = attention.__doc__
    for letter in "bhgijde":
        assert re.search(rf"\b{letter}  \w", legend), letter


def test_every_module_has_a_test_in_the_same_room():
    for module in MODULES:
        _, part, chapter = module.split(".")
        assert (ROOT / "tests" / part / f"test_{chapter}.py").exists(), module
