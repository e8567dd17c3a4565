"""The API page, and the links between it and the cells that write the package.

The chapters are the source, as they are for `book/tangle.py`: no module is imported.
On the page that holds `% api` stands, for every public name of `attention`, and for
those named behind the mark, its signature as written, its docstring, an example that
runs and a link to its cell. The cell carries a label that leads back.
"""

import ast
import re
import textwrap
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from docutils import nodes
from overview import address, cells, exported, tangle
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.errors import SphinxError

PAGE = "book/reference/api"
MARK = re.compile(r"(?m)^% api *(.*)$")
EXAMPLES = "book/reference/examples.md"


def exported_cells(root: Path, page: str) -> dict[str, list[str]]:
    """What each exported cell of a chapter defines for others; none on other pages."""
    found = cells(root, page) if (root / f"{page}.ipynb").exists() else []
    return {
        cell["id"]: [n for n in definitions(cell["source"]) if not n.startswith("_")]
        for cell in found
        if "export" in tangle.tags(cell)
    }


def definitions(source: str) -> dict[str, ast.stmt]:
    """What code defines, by name."""
    found = {}
    for node in ast.parse(source).body:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                found[name] = node
            case ast.Assign(targets=[ast.Name(id=name)]):
                found[name] = node
    return found


def told_names(root: Path) -> list[str]:
    """The names that have an entry."""
    page = (root / f"{PAGE}.md").read_text("utf-8")
    return exported(root / "attention" / "__init__.py") + MARK.search(page)[1].split()


def examples(root: Path) -> dict[str, str]:
    """A session for each name, as `examples.md` has them; a test runs them."""
    page = (root / EXAMPLES).read_text("utf-8")
    return dict(re.findall(r"(?ms)^## `(\w+)`\n+(```pycon\n.*?^```)$", page))


# The page


def fill_page(app: Sphinx, docname: str, source: list[str]) -> None:
    """Put the reference where the page holds the mark."""
    if docname == PAGE:
        app.env.note_reread()  # in every build, for any chapter may have changed
        source[0] = MARK.sub(lambda _: markdown(Path(app.srcdir)), source[0])


def markdown(root: Path) -> str:
    """The reference: all names at a glance, then one section a chapter."""
    public = told_names(root)
    links = (f"[`{name}`](#{address(name, public)})" for name in public)
    glance = "\N{NO-BREAK SPACE}· ".join(links)
    chapters = (chapter(root, page, public) for page in tangle.contents(root))
    return "\n".join([glance, "", *chain.from_iterable(chapters)])


def chapter(root: Path, page: str, public: list[str]) -> Iterator[str]:
    """A chapter's public names, each an entry, after a line on its module."""
    writes = exported_cells(root, f"book/{page}")
    if not writes:
        return
    yield f"(module-{page.replace('/', '-')})="
    yield from (f"## {tangle.read_chapter(root, page).title}", "")
    found = {n: f"book/{page}/{cell}" for cell in writes for n in writes[cell]}
    others = [f"{{ref}}`{n} <{cell}>`" for n, cell in found.items() if n not in public]
    module = f"`attention.{page.replace('/', '.')}`"
    holds = f", which also holds {', '.join(others)}" if others else ""
    yield from (f"{{doc}}`The chapter </book/{page}>` writes {module}{holds}.", "")
    shown = examples(root)
    source = (root / f"attention/{page}.py").read_text("utf-8")
    written = definitions(source)
    for name, cell in found.items():
        if name in public:
            if name not in shown:
                raise SphinxError(f"{EXAMPLES} has no example of {name}")
            yield f"({address(name, public)})="
            yield from entry(name, written[name], source)
            yield from (shown[name], "", f"{{ref}}`Source of {name} <{cell}>`", "")


def entry(name: str, node: ast.stmt, source: str) -> Iterator[str]:
    """A name: its signature and what it does; of a class, its methods too."""
    yield from (f"### `{name}`", "")
    methods = {}
    if isinstance(node, ast.ClassDef):
        methods = {n.name: n for n in node.body if isinstance(n, ast.FunctionDef)}
        # of a protocol, how it is called
        initial = methods.get("__init__") or methods.get("__call__")
        yield from block(signature(name, initial, source) if initial else f"{name}()")
    else:
        yield from block(signature(name, node, source))
    yield from (ast.get_docstring(node) or "", "")
    for method, part in methods.items():
        if not method.startswith("_"):
            yield from block(signature(f".{method}", part, source))
            yield from (ast.get_docstring(part) or "", "")


def block(code: str) -> list[str]:
    return ["```python", code, "```", ""]


def signature(name: str, node: ast.FunctionDef, source: str) -> str:
    """How `name` is called, as `source` has it, but for what only the tools need."""
    *lines, last = source.splitlines()[node.lineno - 1 : node.body[0].lineno]
    head = textwrap.dedent("\n".join([*lines, last[: node.body[0].col_offset]]))
    head = re.sub(r"\Adef \w+\((\s*)(?:(?:self|cls)\b(?:,\s*)?)?", rf"{name}(\1", head)
    head = re.sub(r"(?: -> None)?:\s*\Z", "", head)
    head = re.sub(r'(: |-> )"([\w.]+)"', r"\1\2", head)  # a type's name
    head = head.replace('Tensor, " ', 'Tensor, "')  # as ruff wants a single axis
    if "property" in map(ast.unparse, node.decorator_list):
        return head.replace("() ->", ":")
    return re.sub(r"(?<==)( ?)(_\w+)", lambda m: m[1] + value(m[2], source), head)


def value(name: str, source: str) -> str:
    """A constant that a module keeps to itself, as the default of what it offers."""
    node = definitions(source).get(name)
    constant = isinstance(node, ast.Assign)
    return ast.get_source_segment(source, node.value) if constant else name


# The cells


def name_cells(app: Sphinx, doctree: nodes.document) -> None:
    """Give every exported cell an address, and say in its corner what it writes."""
    page, root = app.env.docname, Path(app.srcdir)
    public, module = told_names(root), page.removeprefix("book/").replace("/", "-")
    shown = doctree.findall(nodes.container)
    shown = [cell for cell in shown if "tag_export" in cell["classes"]]
    written = exported_cells(root, page).items()
    for container, (cell, defines) in zip(shown, written, strict=True):
        anchor = f"cell-{cell}"
        container["ids"].append(anchor)
        target = f"{page}/{cell}"
        app.env.get_domain("std").note_hyperlink_target(target, page, anchor)
        label = nodes.paragraph(classes=["in-package"])
        names = [name for name in defines if name in public]
        for name in names:
            before = nodes.Text(", " if label.children else "in the package: ")
            label += [before, link(page, address(name, public).lower(), name)]
        if not names:
            label += link(page, f"module-{module}", "in the package")
        container[0].insert(0, label)


def link(page: str, target: str, text: str = "", kind: str = "ref") -> pending_xref:
    """A link on `page`, to a label or to a page ("doc"), by default with its title."""
    about = {"refdomain": "std", "reftype": kind, "reftarget": target}
    about |= {"refdoc": page, "refexplicit": bool(text), "refwarn": True}
    return pending_xref("", nodes.inline("", text), **about)


def setup(app: Sphinx) -> None:
    app.connect("source-read", fill_page)
    app.connect("doctree-read", name_cells)
