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
UNSEEN = {"in-package", "toctree-wrapper"}
as_text = LatexNodes2Text(math_mode="text", fill_text=False).latex_to_text


def plain(formula: str) -> str:
    """A formula in one line of text: 1/√d for `\\frac{1}{\\sqrt{d}}`."""
    text = re.sub(r"√\(([^()]*)\)", r"√\1", as_text(formula))
    return " ".join(text.split())


def sections(doctree: nodes.document) -> Iterator[tuple[str, str, str, str]]:
    """Anchor, title, prose and code of each section, without those below it."""
    keep_words(doctree)
    for section in doctree.findall(nodes.section):
        parts = [n for n in section if not isinstance(n, nodes.section | nodes.title)]
        blocks = [
            block for part in parts for block in part.findall(nodes.literal_block)
        ]
        code = "\n".join(block.astext() for block in blocks)
        for block in blocks:
            block.clear()
        prose = " ".join(part.astext() for part in parts)
        top = isinstance(section.parent, nodes.document)
        anchor = "" if top else section["ids"][0]
        title = section.next_node(nodes.title).astext()
        yield anchor, title, " ".join(prose.split()), code


def keep_words(doctree: nodes.document) -> None:
    """Leave of a page what its reader may ask for: of a picture, only the caption."""
    for node in [*doctree.findall(unseen)]:
        node.parent.remove(node)
    for node in doctree.findall(nodes.container):
        if "cell_output" in node["classes"]:
            node.children = [*node.findall(nodes.caption)]
    for node in [*doctree.findall(nodes.math), *doctree.findall(nodes.math_block)]:
        node[:] = [nodes.Text(plain(node.astext()))]


def unseen(node: nodes.Node) -> bool:
    if isinstance(node, pending_xref) and node["refdomain"] == "cite":
        return True  # the key of a source
    hidden = isinstance(node, nodes.Element) and UNSEEN & {*node["classes"]}
    return bool(hidden) or isinstance(node, nodes.comment | nodes.raw)


def records(app: Sphinx) -> list[list[str]]:
    """All sections of the book: address, page, title, prose, code."""
    found = []
    for page in sorted(app.env.found_docs):
        name = app.env.titles[page].astext()
        for anchor, title, prose, code in sections(app.env.get_doctree(page)):
            address = app.builder.get_target_uri(page) + (anchor and f"#{anchor}")
            found.append([address, name, title, prose, code])
    return found


def write_index(app: Sphinx, error: Exception | None) -> None:
    if error is None:
        text = json.dumps(records(app), ensure_ascii=False, separators=(",", ":"))
        path = Path(app.outdir, "_static", INDEX)
        path.write_text(f"const SECTIONS = {text};\n", encoding="utf-8")


def setup(app: Sphinx) -> None:
    app.connect("build-finished", write_index)
