"""Begin a chapter: write a skeleton that passes every test as it is.

    python book/new.py position/rotary "Rotary positions"
    python book/new.py position/rotary "Rotary positions" "Where tokens stand"
    python book/new.py --left position/rotary   tells what is the skeleton's still

It writes the chapter with its outputs, its module, its tests and the answers to its
exercises, and enters it in `_toc.yml` at the end of its part (a new part gets the last
argument for its caption) and in `tests/conformance/names.py`. If anything fails, all is
as it was. The texts stand in `book/_new/`.
"""

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import execute
import nbformat
import tangle
from tangle import ROOT, RUFF, Refusal

TEXTS = Path(__file__).with_name("_new")
LAST = ("tools", "reference")  # parts that stand aside, after the story
NAMES = "tests/conformance/names.py"
REASON = "counts steps, and mixes no values"
PROMPTS = {
    "code_prompt_show": "Show the solution",
    "code_prompt_hide": "Hide the solution",
}


def main(root: Path, asked: str, title: str = "", caption: str = "") -> int:
    """Write the skeleton and say what to do next; 0 if all is well."""
    try:
        name = named(asked)
        part, stem = name.split("/")
        title = heading("TITLE", title or stem.replace("_", " ").capitalize())
        caption = heading("CAPTION", caption or part.replace("_", " ").capitalize())
        new, written = fresh(root, name), texts(root, name, title, caption)
        package = root / f"attention/{part}/__init__.py"
        with all_or_nothing([*new, *written, package]):
            tangle.write(written)
            tidy(new[:3])
            if tangle.main(root):
                raise Refusal("the book would not make a sound package, see above")
            execute.store(new[0], execute.run(new[0], root))
    except (Refusal, OSError) as refusal:
        print("refused:", refusal, file=sys.stderr)
        return 1
    print(
        f"wrote: book/{name}.ipynb, tests/{part}/test_{stem}.py and\n"
        f"tests/exercises/{stem}.py, and entered it in _toc.yml and\n"
        f"tests/conformance/names.py. Now make it yours: change a cell, run\n"
        f"'make execute CHAPTERS={name}' and 'make check CHAPTER={name}'."
    )
    return 0


def left(root: Path, asked: str) -> int:
    """Say where a chapter still holds words of the skeleton, which no test refuses."""
    try:
        name = named(asked)
        if found := unchanged(root, name):
            file = f"book/{name}.ipynb"
            print(f"{file}: the skeleton's words still stand in {', '.join(found)}.")
    except Refusal as refusal:
        print("refused:", refusal, file=sys.stderr)
        return 1
    return 0


def unchanged(root: Path, name: str) -> list[str]:
    """The cells, captions and entries that say what the skeleton says."""
    skeleton = nbformat.reads(notebook(filled("chapter.md", name, ""), ""), 4)
    old = {words for cell in skeleton.cells for _, words in said(cell)}
    found = [
        f"{cell['id']}{where}"
        for cell in tangle.load(root / f"book/{name}.ipynb", root)["cells"]
        for where, words in said(cell)
        if words in old
    ]
    entry = f'"{name.split("/")[1]}": "{REASON}"'
    if entry in (root / NAMES).read_text("utf-8"):
        found.append(f"{NAMES} ({entry})")
    return list(dict.fromkeys(found))


def said(cell: dict) -> Iterator[tuple[str, str]]:
    """Each paragraph of a cell of text, but no heading; and the caption of a figure."""
    if cell["cell_type"] == "markdown":
        for words in cell["source"].split("\n\n"):
            if not words.startswith("#"):
                yield "", words.strip()
    if figure := cell["metadata"].get("mystnb", {}).get("figure"):
        yield " (its caption, in the cell's metadata)", figure["caption"]


# What is asked for


def named(asked: str) -> str:
    """The chapter's name, like position/rotary, however its path is written."""
    name = re.sub(r"^(\./)?(book/)?|\.ipynb$", "", asked.strip())
    if not tangle.importable(name) or name != name.lower():
        must = "<part>/<chapter>, two names in small letters that Python can import"
        raise Refusal(f"CHAPTER: expected {must}, like position/rotary, got {asked!r}")
    if name.startswith("reference/"):
        raise Refusal("CHAPTER: expected a part that tells the story, got reference")
    return name


def heading(what: str, text: str) -> str:
    if not text.strip() or re.search(r"[\n`]|\"\"\"", text):
        raise Refusal(f"{what}: expected a few plain words on one line, got {text!r}")
    return text.strip()


def fresh(root: Path, name: str) -> list[Path]:
    """The files that will be new: chapter, tests, answers and module."""
    part, stem = name.split("/")
    rooms = [f"book/{name}.ipynb", f"tests/{part}/test_{stem}.py"]
    rooms += [f"tests/exercises/{stem}.py", f"attention/{name}.py"]
    for room in [*rooms, f"book/{name}.md"]:
        if (root / room).exists():
            raise Refusal(f"CHAPTER: expected a name that is free, but there is {room}")
    if name in tangle.contents(root):
        raise Refusal(f"CHAPTER: expected a new name, but _toc.yml lists book/{name}")
    return [root / room for room in rooms]


@contextmanager
def all_or_nothing(paths: list[Path]) -> Iterator[None]:
    """Give back what these files held, and take away what is new, if it fails."""
    held = {path: path.read_bytes() if path.exists() else None for path in paths}
    try:
        yield
    except BaseException:
        for path, text in held.items():
            if text is not None:
                path.write_bytes(text)
            else:
                path.unlink(missing_ok=True)
                with suppress(OSError):  # others live there
                    path.parent.rmdir()
        raise


# What is written


def texts(root: Path, name: str, title: str, caption: str) -> dict[Path, str]:
    """What is written, but for the module."""
    stem = name.split("/")[1]
    chapter, test, answers, _ = fresh(root, name)
    toc, names = root / "_toc.yml", root / NAMES
    return {
        chapter: notebook(filled("chapter.md", name, title), stem),
        test: filled("properties.py", name, title),
        answers: filled("answers.py", name, title),
        toc: listed(toc.read_text("utf-8"), name, caption),
        names: accounted(names.read_text("utf-8"), stem),
    }


def filled(file: str, name: str, title: str) -> str:
    part, stem = name.split("/")
    text = (TEXTS / file).read_text("utf-8").replace("Some title", title)
    return text.replace("some_part", part).replace("some_name", stem)


def notebook(text: str, stem: str) -> str:
    """A notebook of a text whose cells begin with `%% kind id tags`."""
    book = nbformat.v4.new_notebook()
    for cell in re.split(r"(?m)^%% ", text)[1:]:
        head, _, source = cell.partition("\n")
        head, _, caption = head.partition(" caption=")
        kind, name, *tags = head.split()
        make = getattr(nbformat.v4, f"new_{kind}_cell")
        new = make(source.strip("\n"), id=name)
        if tags:
            new.metadata["tags"] = tags
        if "solution" in tags:
            new.metadata["mystnb"] = PROMPTS
        if caption:
            figure = {"caption": caption, "name": f"fig-{stem.replace('_', '-')}"}
            new.metadata["mystnb"] = {"figure": figure}
        book.cells.append(new)
    return nbformat.writes(execute.normal(book)) + "\n"


def listed(toc: str, name: str, caption: str) -> str:
    """The table of contents with the chapter at the end of its part."""
    lines, part = toc.splitlines(), name.split("/")[0]
    entry = f"      - file: book/{name}"

    def of(*parts: str) -> list[int]:
        files = re.compile(rf" *- file: book/({'|'.join(parts)})/")
        return [n for n, line in enumerate(lines) if files.match(line)]

    if chapters := of(part):
        lines.insert(chapters[-1] + 1, entry)
    else:
        first = min(of(*LAST), default=len(lines))
        heads = [n for n, line in enumerate(lines[:first]) if line.startswith("  - ")]
        place = heads[-1] if first < len(lines) else first
        lines[place:place] = [f"  - caption: {caption}", "    chapters:", entry]
    return "\n".join(lines) + "\n"


def accounted(names: str, stem: str) -> str:
    """The table of public names that do not attend, with the chapter's."""
    start = names.index("\nOTHERS = {")
    end = names.index("\n}", start)
    return f'{names[:end]}\n    "{stem}": "{REASON}",{names[end:]}'


def tidy(paths: list[Path]) -> None:
    """Names are longer or shorter than in the texts, and lines break elsewhere."""
    for command in (["check", "--fix-only", "--select=I"], ["format"]):
        run = [*RUFF, *command, "--no-cache", "--quiet", *paths]
        subprocess.run(run, cwd=paths[0].parents[2], check=True, capture_output=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("chapter", help="like position/rotary")
    parser.add_argument("title", nargs="?", default="", help="its title")
    parser.add_argument("caption", nargs="?", default="", help="of its part, if new")
    parser.add_argument("--left", action="store_true", help="tell what is unchanged")
    asked = parser.parse_args()
    if asked.left:
        sys.exit(left(ROOT, asked.chapter))
    sys.exit(main(ROOT, asked.chapter, asked.title, asked.caption))
