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
from dataclasses import dataclass
from pathlib import Path

from docutils import nodes
from overview import address, cells, exported, tangle
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.errors import SphinxError

PAGE = "book/reference/api"
MARK = re.compile(r"(?m)^% api *(.*)$")
EXAMPLES = "book/reference/examples.md"


@dataclass
class Cell:
    """An exported cell: where it stands, and what it defines for others."""

    page: str
    name: str
    defines: list[str]

    @property
    def label(self) -> str:
        return f"{self.page}/{self.name}"


def exported_cells(root: Path, page: str) -> list[Cell]:
    """The cells of a chapter that the package is made of; none for other pages."""
    found = cells(root, page) if (root / f"{page}.ipynb").exists() else []
    found = [cell for cell in found if "export" in tangle.tags(cell)]
    return [Cell(page, cell["id"], [*definitions(cell["source"])]) for cell in found]


def definitions(source: str) -> dict[str, ast.stmt]:
    """What code defines, by name, but for names that begin with `_`."""
    found = {}
    for node in ast.parse(source).body:
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                found[name] = node
            case ast.Assign(targets=[ast.Name(id=name)]):
                found[name] = node
    return {name: node for name, node in found.items() if not name.startswith("_")}


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
        root = Path(app.srcdir)
        for page in tangle.contents(root):
            app.env.note_dependency(str(root / "book" / f"{page}.ipynb"))
        app.env.note_dependency(str(root / EXAMPLES))
        source[0] = MARK.sub(lambda _: markdown(root), source[0])


def markdown(root: Path) -> str:
    """The reference: all names at a glance, then one section a chapter."""
    public, lines = told_names(root), []
    links = (f"[`{name}`](#{address(name, public)})" for name in public)
    glance = "\N{NO-BREAK SPACE}· ".join(links)
    for page in tangle.contents(root):
        lines += chapter(root, page, public)
    missing = [name for name in public if f"({address(name, public)})=" not in lines]
    if missing:
        raise SphinxError(f"no exported cell defines {missing} of the API page")
    return "\n".join([glance, "", *lines])


def chapter(root: Path, page: str, public: list[str]) -> Iterator[str]:
    """A chapter's public names, each an entry, after a line on its module."""
    writes = exported_cells(root, f"book/{page}")
    if not writes:
        return
    yield f"(module-{page.replace('/', '-')})="
    yield from (f"## {tangle.read_chapter(root, page).title}", "")
    found = [(name, cell) for cell in writes for name in cell.defines]
    others = [f"{{ref}}`{n} <{cell.label}>`" for n, cell in found if n not in public]
    module = f"`attention.{page.replace('/', '.')}`"
    holds = f", which also holds {', '.join(others)}" if others else ""
    yield from (f"{{doc}}`The chapter </book/{page}>` writes {module}{holds}.", "")
    shown = examples(root)
    source = (root / f"attention/{page}.py").read_text("utf-8")
    written = definitions(source)
    for name, cell in found:
        if name in public:
            if name not in shown:
                raise SphinxError(f"{EXAMPLES} has no example of {name}")
            yield f"({address(name, public)})="
            yield from entry(name, written[name], source)
            source_of = f"{{ref}}`Source of {name} <{cell.label}>`"
            yield from (shown[name], "", source_of, "")


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
    values = private_values(source)
    return re.sub(r"(?<==)( ?)(_\w+)", lambda m: m[1] + values.get(m[2], m[2]), head)


def private_values(source: str) -> dict[str, str]:
    """The constants that a module keeps to itself, as defaults of what it offers."""
    return {
        target.id: ast.get_source_segment(source, node.value)
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and target.id.startswith("_")
    }


# The cells


def name_cells(app: Sphinx, doctree: nodes.document) -> None:
    """Give every exported cell an address, and say in its corner what it writes."""
    page, root = app.env.docname, Path(app.srcdir)
    public, module = told_names(root), page.removeprefix("book/").replace("/", "-")
    named = zip([*tagged(doctree)], exported_cells(root, page), strict=True)
    for container, cell in named:
        anchor = f"cell-{cell.name}"
        container["ids"].append(anchor)
        app.env.get_domain("std").note_hyperlink_target(cell.label, page, anchor)
        label = nodes.paragraph(classes=["in-package"])
        names = [name for name in cell.defines if name in public]
        for name in names:
            before = nodes.Text(", " if label.children else "in the package: ")
            label += [before, link(page, address(name, public), name)]
        if not names:
            label += link(page, f"module-{module}", "in the package")
        container[0].insert(0, label)


def link(page: str, label: str, text: str) -> pending_xref:
    about = {"refdomain": "std", "reftype": "ref", "reftarget": label.lower()}
    about |= {"refdoc": page, "refexplicit": True, "refwarn": True}
    return pending_xref("", nodes.inline("", text), **about)


def tagged(doctree: nodes.document) -> Iterator[nodes.container]:
    for node in doctree.findall(nodes.container):
        if node.get("nb_element") == "cell_code" and "tag_export" in node["classes"]:
            yield node


def setup(app: Sphinx) -> None:
    app.connect("source-read", fill_page)
    app.connect("doctree-read", name_cells)
