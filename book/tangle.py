"""Write the package from the book: book/core/causal.ipynb -> attention/core/causal.py.

    python book/tangle.py           write every module
    python book/tangle.py --check   write nothing; exit 1 unless every module is in step

A chapter's cells tagged `export`, in order, are its module. Nothing is rewritten:
imports rise to the top, the chapter's title and lead become the docstring, ruff
formats the result. What would not make a sound package is refused, by file and cell,
before any file changes.
"""

import argparse
import ast
import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import zip_longest
from keyword import iskeyword
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml
from nbformat.validator import iter_validate

ROOT = Path(__file__).resolve().parents[1]
# Modules are tidied outside the tree, so the settings that matter are stated here.
RUFF = [sys.executable, "-m", "ruff"]
SETTINGS = ["--isolated", "--no-cache", "--no-respect-gitignore", "--quiet"]
SETTINGS += ["--target-version=py311"]
SORT = ["--select=F401,I,RUF022", "--config=lint.isort.known-first-party=['attention']"]
LEAKS = ["--select=F821", "--ignore-noqa", "--output-format=json"]
KINDS = ["code", "markdown", "raw"]
# A closed list: others take cells out of a run, and leave what they seem to give.
TAGS = ["export", "exercise", "solution", "nbval-ignore-output"]
TAGS += ["hide-input", "hide-output", "hide-cell", "remove-input", "remove-cell"]
CONFLICT = re.compile(r"(?m)^(<{7}|>{7})( |$)")
# What nbval obeys as it obeys tags, and no other tool sees.
ORDER = re.compile(r"(?m)^\s*#+\s*((?:NBVAL|PYTEST_VALIDATE)_[A-Z_]+)\s*$")


class Refusal(Exception):
    """One line: where, and what must hold there."""


@dataclass
class Cell:
    """An exported cell; `place` is how a refusal names it."""

    place: str
    source: str
    tree: ast.Module


@dataclass
class Chapter:
    """What a module is made of; `name` is like core/causal."""

    name: str
    title: str
    lead: str
    cells: list[Cell]


def main(root: Path = ROOT, check: bool = False) -> int:
    """Write the package, or only check it; 0 if all is well."""
    try:
        modules, refusals = tangle(root)
        was = {path: path.read_bytes() if path.exists() else None for path in modules}
        stale = [path for path in modules if was[path] != modules[path].encode()]
        if not (check or refusals):
            write({path: modules[path] for path in stale})
    except (Refusal, OSError, UnicodeError) as error:
        refusals, stale = [str(error)], []
    for line in refusals:
        print("refused:", line, file=sys.stderr)
    for path in stale:
        if check:
            why = difference(was[path], modules[path])
            print(f"stale: {path.relative_to(root)}{why}", file=sys.stderr)
        elif not refusals:
            print("wrote:", path.relative_to(root))
    return int(bool(refusals or (check and stale)))


def tangle(root: Path) -> tuple[dict[Path, str], list[str]]:
    """The text of every module that the book writes, and all that speaks against it."""
    captions = contents(root)
    chapters, refusals = [], unlisted(root, captions)
    for name in captions:
        try:
            chapters.append(read_chapter(root, name))
        except Refusal as refusal:
            refusals.append(str(refusal))
    chapters = [chapter for chapter in chapters if chapter.cells]
    refusals += [*twice(chapters), *strays(chapters, list(captions)), *loops(chapters)]
    refusals += [*hidden(chapters), *leaks(chapters)]
    if refusals:
        return {}, refusals
    drafts = {}
    for chapter in chapters:
        part, caption = chapter.name.split("/")[0], captions[chapter.name]
        about = f"{caption}: one module for each chapter of `book/{part}`."
        drafts.setdefault(f"{part}/__init__.py", docstring(about))
        drafts[f"{chapter.name}.py"] = draft(chapter)
    modules = {root / "attention" / name: text for name, text in tidy(drafts).items()}
    return modules, orphans(root, modules)


# Reading the book


def contents(root: Path) -> dict[str, str]:
    """The pages that `_toc.yml` lists (core/causal), in order, with their captions."""

    def pages(node: object, caption: str) -> Iterator[tuple[str, str]]:
        for entry in node if isinstance(node, list) else [node]:
            if not isinstance(entry, dict):
                raise Refusal(f"_toc.yml: must hold `key: value`, holds {entry!r}")
            below = str(entry.get("caption", caption))
            if page := entry.get("root") or entry.get("file"):
                yield re.sub(r"^book/|\.(ipynb|md)$", "", str(page)), below
            for key in ("parts", "chapters", "sections"):
                yield from pages(entry.get(key) or [], below)

    try:
        toc = yaml.safe_load((root / "_toc.yml").read_text("utf-8"))
    except (yaml.YAMLError, UnicodeError) as error:
        raise Refusal(f"_toc.yml: not YAML: {' '.join(str(error).split())}") from None
    return dict(pages(toc, ""))


def unlisted(root: Path, listed: dict[str, str]) -> list[str]:
    """A refusal for each notebook that the story leaves out."""
    paths = [path.relative_to(root) for path in (root / "book").rglob("*.ipynb")]
    paths = [path for path in sorted(paths) if ".ipynb_checkpoints" not in path.parts]
    names = [path.relative_to("book").with_suffix("").as_posix() for path in paths]
    return [
        f"{path}: missing from _toc.yml"
        for path, name in zip(paths, names, strict=True)
        if name not in listed
    ]


def load(path: Path, root: Path = ROOT) -> dict:
    """The notebook at `path`, each source as one string; a Refusal if it is none."""
    file = path.relative_to(root)
    try:
        book = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise Refusal(f"{file}: not JSON: {error}") from None
    cells = book.get("cells") if isinstance(book, dict) else None
    if not isinstance(cells, list) or book.get("nbformat") != 4:
        raise Refusal(f"{file}: not a notebook: must be format 4 with a list of cells")
    if (minor := book.get("nbformat_minor")) != 5:
        must = "must be 4.5, whose cells have ids: `nbformat.v4.upgrade` adds them"
        raise Refusal(f"{file}: is format 4.{minor}, {must}")
    if why := malformed(book | {"cells": []}):
        raise Refusal(f"{file}: not a notebook: {why}")
    kinds = [
        cell.get("cell_type") if isinstance(cell, dict) else None for cell in cells
    ]
    # Cell by cell takes ten times as long: only to say which it is that is wrong.
    sound = all(kind in KINDS for kind in kinds) and not malformed(book)
    first = {}
    for number, (kind, cell) in enumerate(zip(kinds, cells, strict=True), start=1):
        why = f"its cell_type must be one of {', '.join(KINDS)}, is {kind!r}"
        known = kind in KINDS
        if not known or (not sound and (why := malformed(cell, f"{kind}_cell"))):
            raise Refusal(f"{file}, cell {number}: not a cell: {why}")
        cell["source"] = "".join(cell["source"])
        here = place(file, number, cell)
        if why := unsound(cell):
            raise Refusal(f"{here}: {why}")
        if (other := first.setdefault(cell["id"], here)) != here:
            raise Refusal(f"{here}: must have an id of its own, not that of {other}")
    return book


def malformed(part: dict, ref: str | None = None) -> str:
    """What nbformat has against it, in one line; nothing if all is well."""
    errors = list(iter_validate(part, ref=ref, version=4, version_minor=5))
    for error in sorted(errors, key=lambda error: error.validator != "required"):
        at = ".".join(map(str, error.relative_path))
        return f"{at and at + ': '}{' '.join(error.message.split())}"
    return ""


def unsound(cell: dict) -> str:
    """What speaks against a cell that nbformat takes; nothing if it will do."""
    for tag in tags(cell):
        if tag not in TAGS:
            meant = get_close_matches(tag.strip().lower(), TAGS, n=1)
            must = f"{meant[0]!r}" if meant else f"one of {', '.join(TAGS)}"
            return f"tagged {tag!r}, must be {must}"
    if found := ORDER.search(cell["source"]):
        return f"holds `# {found[1]}`: must be tagged instead, or be checked"
    return conflict(cell["source"])


def conflict(text: str) -> str:
    """Where a merge was left half done; nothing if it was not."""
    if found := CONFLICT.search(text):
        line = text.count("\n", 0, found.start()) + 1
        return f"holds a conflict marker, `{found[1]}`, line {line}"
    return ""


def tags(cell: dict) -> list[str]:
    return cell["metadata"].get("tags", [])


def place(file: Path, number: int, cell: dict) -> str:
    """How messages name a cell; cells are counted from 1, Markdown included."""
    return f"{file}, cell {number} ({cell['id']})"


def read_chapter(root: Path, name: str) -> Chapter:
    """The chapter `name`; without cells if it exports none."""
    path = root / f"book/{name}.ipynb"
    file = path.relative_to(root)
    if not path.is_file():
        page = path.with_suffix(".md")
        if page.is_file():
            if why := conflict(page.read_text("utf-8")):
                raise Refusal(f"{page.relative_to(root)}: {why}")
            return Chapter(name, "", "", [])
        raise Refusal(f"_toc.yml: lists book/{name}, but there is no such file")
    cells = load(path, root)["cells"]
    head = cells[0]["source"] if cells and cells[0]["cell_type"] == "markdown" else ""
    title = re.match(r"# +(.+)", head)
    lead = re.search(r"\n\n((?:> *\S.*(?:\n|$))+)", head)
    if not (title and lead and lead.start() == title.end()):
        must = "must begin with `# Title`, an empty line and a lead, `> one sentence`"
        raise Refusal(f"{file}, cell 1: {must}")
    exported = [
        exported_cell(place(file, number, cell), cell)
        for number, cell in enumerate(cells, start=1)
        if "export" in tags(cell)
    ]
    if exported and not importable(name):
        must = "must be book/<part>/<chapter>.ipynb, both names that Python can import"
        raise Refusal(f"{file}: exports, so {must}")
    lines = re.sub(r"(?m)^> *", "", lead[1])
    return Chapter(name, title[1].strip(), " ".join(lines.split()), exported)


def importable(name: str) -> bool:
    part, _, chapter = name.partition("/")
    shaped = re.fullmatch(r"[a-z]\w*/[a-z]\w*", name, re.ASCII)
    return bool(shaped) and not (iskeyword(part) or iskeyword(chapter))


def exported_cell(place: str, cell: dict) -> Cell:
    source = cell["source"]
    if cell["cell_type"] != "code":
        raise Refusal(f"{place}: tagged `export`, so must be a code cell")
    try:
        tree = ast.parse(source, place)
        compile(source, place, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError) as error:
        why = getattr(error, "msg", str(error))
        line = f", line {error.lineno}" if getattr(error, "lineno", None) else ""
        raise Refusal(f"{place}: does not parse: {why}{line}") from None
    rising = lines_of(filter(rises, tree.body))
    if rising & lines_of(node for node in tree.body if not rises(node)):
        raise Refusal(f"{place}: an import must not share its line with other code")
    return Cell(place, source, tree)


# Writing a module


def draft(chapter: Chapter) -> str:
    """The module as it goes to ruff."""
    edit = f"Written by `book/{chapter.name}.ipynb`: read and change it there."
    imports, guarded, body = [], [], []
    for cell in chapter.cells:
        lines = dict(enumerate(cell.source.split("\n"), start=1))
        for node in filter(rises, cell.tree.body):
            text = "\n".join(lines.pop(n, "") for n in sorted(lines_of([node])))
            (guarded if isinstance(node, ast.If) else imports).append(text)
        body.append("\n".join(lines.values()).strip("\n"))
    public = [name for _, name in names(chapter) if not name.startswith("_")]
    head = docstring(chapter.title, chapter.lead, edit)
    return "\n\n".join(
        [head, "\n".join(imports + guarded), f"__all__ = {public}", *body]
    )


def docstring(*paragraphs: str) -> str:
    filled = [textwrap.fill(text, 84, break_long_words=False) for text in paragraphs]
    text = "\n\n".join(filled) + ("\n" if len(filled) > 1 else "")
    raw = "r" if "\\" in text else ""
    if '"""' in text:  # which nothing can hold raw
        raw, text = "", text.replace("\\", r"\\").replace('"""', r"\"\"\"")
    return f'{raw}"""{text}"""\n'


def rises(node: ast.stmt) -> bool:
    """Does it go to the module's top: an import, or imports for the type checker?"""
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return all(map(rises, node.body)) and not node.orelse
    return isinstance(node, ast.Import | ast.ImportFrom)


def lines_of(nodes: Iterator[ast.stmt]) -> set[int]:
    return {n for node in nodes for n in range(node.lineno, node.end_lineno + 1)}


def names(chapter: Chapter) -> list[tuple[Cell, str]]:
    """What the module defines at its top level and keeps, imports aside."""
    kept = []
    for cell in chapter.cells:
        for node in cell.tree.body:
            new = [] if rises(node) else list(bound(node))
            gone = {name for name, stays in new if not stays}
            kept += [(cell, name) for name in dict(new)]
            kept = [(where, name) for where, name in kept if name not in gone]
    return kept


def bound(node: ast.AST) -> Iterator[tuple[str, bool]]:
    """What a statement binds where it stands; does it stay, and is it no import?"""
    inner = ast.iter_child_nodes(node)
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            yield node.name, True
            return
        case ast.AnnAssign(value=None) | ast.AugAssign() | ast.Lambda():
            return
        case ast.comprehension():  # its target is its own
            inner = [node.iter, *node.ifs]
        case ast.Name(ctx=ast.Store() | ast.Del()):
            yield node.id, isinstance(node.ctx, ast.Store)
        case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
            yield name, True
        case ast.MatchMapping(rest=str(name)):
            yield name, True
        case ast.ExceptHandler(name=str(name)):  # Python deletes it at the end
            yield name, False
        case ast.alias(name=name, asname=other):
            yield other or name.split(".")[0], False
    for child in inner:
        yield from bound(child)


def tidy(drafts: dict[str, str]) -> dict[str, str]:
    """The drafts with imports sorted, unused ones dropped, all of it formatted."""
    with TemporaryDirectory() as folder:
        write({Path(folder, "attention", name): text for name, text in drafts.items()})
        ruff("check", "--fix", *SORT, folder)
        ruff("format", folder)
        return {
            name: Path(folder, "attention", name).read_text("utf-8") for name in drafts
        }


def ruff(*arguments: str) -> str:
    command, *rest = arguments
    check = ["--exit-zero"] if command == "check" else []
    run = subprocess.run(
        [*RUFF, command, *SETTINGS, *check, *rest], capture_output=True, text=True
    )
    if run.returncode:
        raise Refusal(f"ruff {command}: {' '.join(run.stderr.split())}")
    return run.stdout


def write(texts: dict[Path, str]) -> None:
    """Write these files whole; if one cannot be written, write none. Links stay."""
    files = {path: path.resolve() for path in texts}
    drafts = {
        p: file.with_name(f".{file.name}.{os.getpid()}") for p, file in files.items()
    }
    try:
        for path, draft in drafts.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and not path.stat().st_mode & 0o222:
                raise PermissionError(0, "it is read-only")
            draft.write_bytes(texts[path].encode())
            if path.exists():
                shutil.copymode(path, draft)
        for path, draft in drafts.items():
            os.replace(draft, files[path])
    except OSError as error:
        raise Refusal(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        for draft in drafts.values():
            with suppress(OSError):  # what could not be written cannot be removed
                draft.unlink()


# What is refused


def twice(chapters: list[Chapter]) -> Iterator[str]:
    """A public name is exported once in the book, a private one once in its chapter."""
    first = {}
    for chapter in chapters:
        for cell, name in names(chapter):
            key = (chapter.name if name.startswith("_") else "", name)
            if key in first:
                yield f"{cell.place}: exports `{name}` again, after {first[key]}"
            first.setdefault(key, cell.place)


def strays(chapters: list[Chapter], order: list[str]) -> Iterator[str]:
    """Imports name what they take, and take it from earlier chapters, or from tools."""
    tools = [name for name in order if name.startswith("tools/")]
    for chapter in chapters:
        earlier = order[: order.index(chapter.name)]
        if chapter.name not in tools:  # they stand aside of the story, at its end
            earlier += tools
        for cell, module, names in imports(chapter):
            if "*" in names:
                yield f"{cell.place}: star import: must name what it takes"
            if must := unreachable(module, earlier, order):
                yield f"{cell.place}: imports `{module}`: must be {must}"


def loops(chapters: list[Chapter]) -> Iterator[str]:
    """Tools serve all chapters, so they import none that imports tools in turn."""
    needy = {}  # the cell of another chapter that needs tools, itself or through others
    for chapter in sorted(chapters, key=is_tool):
        for cell, module, _ in imports(chapter):
            name = module.removeprefix("attention.").replace(".", "/")
            if not is_tool(chapter) and (name.startswith("tools/") or name in needy):
                needy.setdefault(chapter.name, cell.place)
            elif is_tool(chapter) and name in needy:
                why = f"an import cycle: {needy[name]} imports what needs tools"
                yield f"{cell.place}: imports `{module}`: {why}"


def is_tool(chapter: Chapter) -> bool:
    return chapter.name.startswith("tools/")


def imports(chapter: Chapter) -> Iterator[tuple[Cell, str, list[str]]]:
    """The modules that it imports, wherever, with the names taken from them."""
    for cell in chapter.cells:
        for node in ast.walk(cell.tree):
            if isinstance(node, ast.Import):
                yield from ((cell, alias.name, []) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                names = [alias.name for alias in node.names]
                yield cell, "." * node.level + (node.module or ""), names


def hidden(chapters: list[Chapter]) -> Iterator[str]:
    """What ruff cannot see, `global` names and code in strings; and our `__all__`."""
    for chapter in chapters:
        nodes = [(cell, node) for cell in chapter.cells for node in ast.walk(cell.tree)]
        aliases = [node for _, node in nodes if isinstance(node, ast.alias)]
        own = {name for _, name in names(chapter)}
        own |= {name for alias in aliases for name, _ in bound(alias)}
        for cell, node in nodes:
            match node:
                case ast.Global(names=declared) if unknown := set(declared) - own:
                    which = ", ".join(f"`{name}`" for name in sorted(unknown))
                    why = f"global {which}, which no exported cell defines"
                case ast.Name(id="eval" | "exec" as name, ctx=ast.Load()):
                    why = f"uses `{name}`: no check sees what that reads"
                case ast.Name(id="__all__"):
                    why = "must not touch `__all__`, which is made of what is exported"
                case _:
                    continue
            yield f"{cell.place}: {why}"


def unreachable(module: str, earlier: list[str], order: list[str]) -> str:
    """What the imported module must be instead; nothing if it will do."""
    top, *path = module.split(".")
    name = "/".join(path)
    if top == "__main__":
        return "another: behind the package, there is no notebook"
    if top not in ("attention", "") or name in earlier:
        return ""
    if name in order:
        return "of an earlier chapter, in the order of _toc.yml"
    return "a chapter's, `attention.<part>.<chapter>`"


def leaks(chapters: list[Chapter]) -> Iterator[str]:
    """What exported cells read, exported cells define: no other cell, nor IPython."""
    with TemporaryDirectory() as folder:
        for number, chapter in enumerate(chapters):
            source = "\n".join(cell.source for cell in chapter.cells)
            Path(folder, f"{number}.py").write_text(source, "utf-8")
        faults = json.loads(ruff("check", *LEAKS, folder) or "[]")
    for fault in faults:
        cells = chapters[int(Path(fault["filename"]).stem)].cells
        row, message = fault["location"]["row"], fault["message"]
        for cell in cells:
            lines = cell.source.split("\n")
            if row <= len(lines):
                break
            row -= len(lines)
        if fault["code"] == "F821":
            name = message.split("`")[1]
            message = f"reads `{name}`, which no exported cell defines"
            if f'"{name}"' in lines[row - 1]:  # jaxtyping's way to tell it from a type
                message += f'; a shape of one axis starts with a space: " {name}"'
        yield f"{cell.place}: {message}"


def orphans(root: Path, modules: dict[Path, str]) -> list[str]:
    """Modules that no chapter writes."""
    package = root / "attention"
    known = {package / "__init__.py", *modules}  # the former is written by hand
    return [
        f"{path.relative_to(root)}: no chapter writes it: delete it, or add its chapter"
        for path in sorted(package.rglob("*.py"))
        if path not in known
    ]


def difference(was: bytes | None, text: str) -> str:
    """Where a stored module leaves its chapter, for the reader of an error."""
    if was is None:
        return ": missing"
    old, new = was.decode(errors="replace").split("\n"), text.split("\n")
    for number, (a, b) in enumerate(zip_longest(old, new), start=1):
        if a != b:
            return f", line {number}: is {a!r}, its chapter gives {b!r}"
    return ": differs in its line ends or encoding"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    sys.exit(main(check=parser.parse_args().check))
