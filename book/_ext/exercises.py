"""What `{exercises}` shows: every exercise of the book, and where its solution is.

It reads the chapters, where both are written. A task is the paragraph above a cell with
the tag `exercise`; it begins with its name in bold and may tell how hard it is.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from docutils import nodes
from overview import cells, parts
from sphinx.application import Sphinx

TASK = re.compile(r"(?m)^\*\*(.+?)\.?\*\*(?: \((\w+)\))?")


def markdown(root: Path) -> Iterator[str]:
    for _, pages in parts(root):
        for page in pages:
            yield from (f"{{doc}}`/{page}`", "")
            for number, (name, level) in enumerate(tasks(root, page), start=1):
                task, solution = address(page, number)
                level = f", {level}" if level else ""
                yield f"* [{name}](#{task}){level}: [solution](#{solution})"
            yield ""


def tasks(root: Path, page: str) -> list[tuple[str, str]]:
    """Name and level of each exercise, as the text before its cell has them."""
    prose, found = "", []
    for cell in cells(root, page):
        if cell["cell_type"] == "markdown":
            prose += cell["source"] + "\n"
        elif "exercise" in cell["metadata"].get("tags", []):
            found.append(TASK.findall(prose)[-1])
    return found


def address(page: str, number: int) -> tuple[str, str]:
    """Where a task and its solution can be linked to."""
    chapter = re.sub(r"\W|_", "-", page.removeprefix("book/"))
    return f"{chapter}-exercise-{number}", f"{chapter}-solution-{number}"


def give_addresses(app: Sphinx, doctree: nodes.document) -> None:
    """Let tasks and solutions be linked to."""
    labels = app.env.get_domain("std").anonlabels
    for kind, tag in enumerate(("tag_exercise", "tag_solution")):
        found = [c for c in doctree.findall(nodes.container) if tag in c["classes"]]
        for number, cell in enumerate(found, start=1):
            name = address(app.env.docname, number)[kind]
            place = task_of(cell) if kind == 0 else cell
            place["ids"].append(name)
            labels[name] = (app.env.docname, name)


def task_of(cell: nodes.container) -> nodes.Element:
    """The paragraph above an exercise that begins with a name in bold."""
    *_, task = filter(is_named, cell.parent[: cell.parent.index(cell)])
    return task


def is_named(node: nodes.Node) -> bool:
    bold = node.findall(nodes.strong)
    return any(node.astext().startswith(name.astext()) for name in bold)


def setup(app: Sphinx) -> None:
    app.connect("doctree-read", give_addresses)
