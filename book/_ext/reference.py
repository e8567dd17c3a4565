"""The API page, and the links between it and the cells that write the package.

The chapters are the source, as they are for `book/tangle.py`: no module is imported.
On the page that holds `% api` stands, for every public name of `attention`, and for
those named behind the mark, its signature as written, its docstring, an example that
runs and a link to its cell. The cell carries a label that leads back.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from docutils import nodes
from overview import address, cells, exported, statements, tangle
from sphinx.application import Sphinx
from sphinx.errors import SphinxError

PAGE = "book/reference/api"
MARK = re.compile(r"(?m)^% api *(.*)$")
EXAMPLES = "book/reference/examples.md"
WIDTH = 80  # characters of a signature in one line
Defined = ast.FunctionDef | ast.ClassDef


@dataclass
class Cell:
    """An exported cell: where it stands, and what it defines for others."""

    page: str
    name: str
    defines: dict[str, ast.stmt]

    @property
    def label(self) -> str:
        return f"{self.page}/{self.name}"


def inlined(node: Defined, module: list[ast.stmt]) -> Defined:
    """The definition with the value of each private constant among its defaults."""
    values = {}
    for line in module:
        match line:
            case ast.Assign(targets=[ast.Name(id=name)]) if name.startswith("_"):
                values[name] = line.value
    for part in ast.walk(node):
        if isinstance(part, ast.arguments):
            for given in (part.defaults, part.kw_defaults):
                given[:] = [values.get(getattr(each, "id", ""), each) for each in given]
    return node


def exported_cells(root: Path, page: str) -> list[Cell]:
    """The cells of a chapter that the package is made of; none for other pages."""
    found = cells(root, page) if (root / f"{page}.ipynb").exists() else []
    found = [cell for cell in found if "export" in tangle.tags(cell)]
    return [Cell(page, cell["id"], definitions(cell["source"])) for cell in found]


def definitions(source: str) -> dict[str, ast.stmt]:
    """What a cell defines, by name, but for names that begin with `_`."""
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
    found = [
        (name, node, cell) for cell in writes for name, node in cell.defines.items()
    ]
    others = [f"{{ref}}`{n} <{cell.label}>`" for n, _, cell in found if n not in public]
    module = f"`attention.{page.replace('/', '.')}`"
    holds = f", which also holds {', '.join(others)}" if others else ""
    yield from (f"{{doc}}`The chapter </book/{page}>` writes {module}{holds}.", "")
    shown, source = examples(root), statements(root / f"attention/{page}.py")
    for name, node, cell in found:
        if name in public:
            if name not in shown:
                raise SphinxError(f"{EXAMPLES} has no example of {name}")
            yield f"({address(name, public)})="
            yield from entry(name, inlined(node, source), cell, shown[name])


def entry(name: str, node: Defined, cell: Cell, example: str) -> Iterator[str]:
    """A name: its signature, what it does, an example; of a class, its methods too."""
    yield from (f"### `{name}`", "")
    initial = node
    if isinstance(node, ast.ClassDef):  # of a protocol, how it is called
        initial = method(node, "__init__") or method(node, "__call__")
    yield from block(signature(name, initial))
    yield from (ast.get_docstring(node) or "", "")
    if isinstance(node, ast.ClassDef):
        for part in node.body:
            if isinstance(part, ast.FunctionDef) and not part.name.startswith("_"):
                yield from block(signature(f".{part.name}", part))
                yield from (ast.get_docstring(part) or "", "")
    yield from (example, "", f"{{ref}}`Source of {name} <{cell.label}>`", "")


def method(node: ast.ClassDef, name: str) -> ast.FunctionDef | None:
    found = (part for part in node.body if isinstance(part, ast.FunctionDef))
    return next((part for part in found if part.name == name), None)


def block(code: str) -> list[str]:
    return ["```python", code, "```", ""]


def signature(name: str, node: ast.FunctionDef | None) -> str:
    """How `name` is called, shapes as written; one argument a line where it is long."""
    if node and "property" in map(ast.unparse, node.decorator_list):
        return f"{name}: {written(node.returns)}"
    arguments = parameters(node.args) if node else []
    returns = f" -> {written(node.returns)}" if node and node.returns else ""
    returns = returns.replace(" -> None", "")
    line = f"{name}({', '.join(arguments)}){returns}"
    if len(line) <= WIDTH:
        return line
    rows = "".join(f"    {argument},\n" for argument in arguments)
    return f"{name}(\n{rows}){returns}"


def parameters(args: ast.arguments) -> list[str]:
    """The arguments as a caller sees them: without `self` or `cls`."""
    plain = [*args.posonlyargs, *args.args]
    values = [None] * (len(plain) - len(args.defaults)) + args.defaults
    found = [parameter(arg, value) for arg, value in zip(plain, values, strict=True)]
    if args.posonlyargs:
        found.insert(len(args.posonlyargs), "/")
    if args.vararg:
        found.append("*" + parameter(args.vararg))
    elif args.kwonlyargs:
        found.append("*")
    for arg, value in zip(args.kwonlyargs, args.kw_defaults, strict=True):
        found.append(parameter(arg, value))
    if args.kwarg:
        found.append("**" + parameter(args.kwarg))
    return found[1:] if plain and plain[0].arg in ("self", "cls") else found


def parameter(arg: ast.arg, value: ast.expr | None = None) -> str:
    text = arg.arg
    if arg.annotation:
        text += f": {written(arg.annotation)}"
    if value is not None:
        default = ast.unparse(value).replace("'", '"')
        text += f" = {default}" if arg.annotation else f"={default}"
    return text


def written(node: ast.expr) -> str:
    """An expression as the book writes it, but for what only the tools need."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value  # a type's name
    text = re.sub(r"'([^'\"]*)'", r'"\1"', ast.unparse(node))
    return re.sub(r'(Tensor, ") ', r"\1", text)  # ruff wants a space before one axis


# The cells


def name_cells(app: Sphinx, doctree: nodes.document) -> None:
    """Give every exported cell an address, for readers and for the API page."""
    page, root = app.env.docname, Path(app.srcdir)
    std = app.env.get_domain("std")
    containers = list(tagged(doctree))
    for container, cell in zip(containers, exported_cells(root, page), strict=True):
        anchor = f"cell-{cell.name}"
        container["ids"].append(anchor)
        container["defines"] = list(cell.defines)
        std.note_hyperlink_target(cell.label, page, anchor)


def label_cells(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Say in its corner that a cell is in the package, and as which name."""
    if app.builder.format != "html":
        return
    public = told_names(Path(app.srcdir))
    for container in tagged(doctree):
        names = [name for name in container["defines"] if name in public]
        module = docname.removeprefix("book/").replace("/", "-")
        source = next(
            node
            for node in container.findall(nodes.container)
            if "cell_input" in node["classes"]
        )
        label = nodes.paragraph(classes=["in-package"])
        if names:
            label += nodes.Text("in the package: ")
            for name in names:
                label += [
                    link(app, docname, address(name, public), name),
                    nodes.Text(", "),
                ]
            label.pop()
        else:
            label += link(app, docname, f"module-{module}", "in the package")
        source.insert(0, label)


def link(app: Sphinx, docname: str, target: str, text: str) -> nodes.reference:
    page = app.builder.get_relative_uri(docname, PAGE)
    uri = f"{page}#{nodes.make_id(target)}"
    return nodes.reference("", text, refuri=uri, internal=True)


def tagged(doctree: nodes.document) -> Iterator[nodes.container]:
    for node in doctree.findall(nodes.container):
        if node.get("nb_element") == "cell_code" and "tag_export" in node["classes"]:
            yield node


def setup(app: Sphinx) -> dict:
    app.connect("source-read", fill_page)
    app.connect("doctree-read", name_cells)
    app.connect("doctree-resolved", label_cells)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
