"""The directive `{overview}`: each part's chapters, what they say and what they build.

It reads what is written once elsewhere: the order in `_toc.yml`, the lead sentence in
the chapter's first cell, and the names in `__all__`: those of the chapter's module that
the package hands on, or all of them where it hands on none.
"""

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import yaml
from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class Overview(SphinxDirective):
    def run(self) -> list[nodes.Node]:
        root = Path(self.env.srcdir)
        lines = []
        for caption, pages in parts(root):
            lines += [f"**{caption}**", ""]
            for page in pages:
                self.env.note_dependency(str(root / f"{page}.ipynb"))
                lines += [entry(root, page), ""]
        container = nodes.container(classes=["overview"])
        self.state.nested_parse(StringList(lines, "_toc.yml"), 0, container)
        return [container]


def parts(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Each part with its chapters: the notebooks of the book but for its reference."""
    for part in yaml.safe_load((root / "_toc.yml").read_text("utf-8"))["parts"]:
        pages = [page["file"] for page in part["chapters"]]
        pages = [page for page in pages if not page.startswith("book/reference/")]
        if pages := [page for page in pages if (root / f"{page}.ipynb").exists()]:
            yield part["caption"], pages


def entry(root: Path, page: str) -> str:
    """A list item: the chapter's title, its lead sentence and the names it writes."""
    cell = json.loads((root / f"{page}.ipynb").read_text(encoding="utf-8"))["cells"][0]
    lines = "".join(cell["source"]).splitlines()
    lead = " ".join(line.lstrip("> ") for line in lines if line.startswith(">"))
    module = root / f"{page.replace('book/', 'attention/', 1)}.py"
    names, public = exported(module), exported(root / "attention" / "__init__.py")
    names = [name for name in names if name in public] or names
    names = ", ".join(f"`{name}`" for name in names)
    builds = f" *Builds* {names}." if names else ""
    return f"* {{doc}}`/{page}`: {lead}{builds}"


def exported(module: Path) -> list[str]:
    """What `__all__` lists in `module`; nothing where a chapter writes no module."""
    if not module.exists():
        return []
    for node in ast.parse(module.read_text(encoding="utf-8")).body:
        match node:
            case ast.Assign(targets=[ast.Name(id="__all__")], value=value):
                return ast.literal_eval(value)
    return []


def setup(app: Sphinx) -> dict:
    app.add_directive("overview", Overview)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
