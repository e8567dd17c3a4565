"""Search without a server, in place of Sphinx's: what the search page looks through.

Sphinx's own search fetches every page it finds to quote from it, which a browser
refuses in a folder, and it splits √d into nothing. Here each section is one record:
its address, its titles, its prose with formulas as text (√d), its code. They lie in a
script that only the search page loads, together with `search.js`, which looks.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from docutils import nodes
from pylatexenc.latex2text import LatexNodes2Text
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx

INDEX = "search-index.js"
UNSEEN = ("cell_output", "in-package", "toctree-wrapper")
as_text = LatexNodes2Text(math_mode="text", fill_text=False).latex_to_text


def plain(formula: str) -> str:
    """A formula in one line of text: 1/√d for `\\frac{1}{\\sqrt{d}}`."""
    text = re.sub(r"√\(([^()]*)\)", r"√\1", as_text(formula))
    return " ".join(text.split())


def sections(doctree: nodes.document) -> Iterator[tuple[str, str, str, str]]:
    """Anchor, title, prose and code of each section, without those below it."""
    for section in doctree.findall(nodes.section):
        prose, code = [], []
        for child in section.children:
            if not isinstance(child, nodes.section | nodes.title):
                gather(child, prose, code)
        parent = section.parent
        anchor = "" if isinstance(parent, nodes.document) else section["ids"][0]
        words, lines = " ".join("".join(prose).split()), "\n".join(code)
        yield anchor, section.next_node(nodes.title).astext(), words, lines


def gather(node: nodes.Node, prose: list[str], code: list[str]) -> None:
    """Sort the text below `node` into prose and code."""
    match node:
        case nodes.math():
            prose.append(plain(node.astext()))
        case nodes.math_block():
            prose.append(f" {plain(node.astext())} ")
        case nodes.literal_block():
            code.append(node.astext())
        case nodes.comment() | nodes.raw():
            pass
        case pending_xref(attributes={"refdomain": "cite"}):
            pass  # the key of a source
        case nodes.Text():
            prose.append(node.astext())
        case nodes.container() if any(name in UNSEEN for name in node["classes"]):
            for caption in node.findall(nodes.caption):
                gather_all(caption, prose, code)
        case _:
            gather_all(node, prose, code)


def gather_all(node: nodes.Node, prose: list[str], code: list[str]) -> None:
    for child in node.children:
        gather(child, prose, code)
    if not isinstance(node, nodes.Inline):
        prose.append(" ")


def records(app: Sphinx) -> list[list[str]]:
    """All sections of the book: address, page, title, prose, code."""
    found = []
    for page in sorted(app.env.found_docs):
        name = app.env.titles[page].astext()
        for anchor, title, prose, code in sections(app.env.get_doctree(page)):
            address = app.builder.get_target_uri(page) + (anchor and f"#{anchor}")
            found.append([address, name, title, prose, code])
    return found


def leave_out_sphinx_search(app: Sphinx) -> None:
    app.builder.search = False


def search_page(app: Sphinx) -> Iterator[tuple[str, dict, str]]:
    yield "search", {"title": "Search"}, "search.html"


def write_index(app: Sphinx, error: Exception | None) -> None:
    if error is None and app.builder.format == "html":
        text = json.dumps(records(app), ensure_ascii=False, separators=(",", ":"))
        path = Path(app.outdir, "_static", INDEX)
        path.write_text(f"const SECTIONS = {text};\n", encoding="utf-8")


def setup(app: Sphinx) -> dict:
    app.connect("builder-inited", leave_out_sphinx_search)
    app.connect("html-collect-pages", search_page)
    app.connect("build-finished", write_index)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
