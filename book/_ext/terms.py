"""Links between the glossary and the chapters.

A chapter writes `[queries](#term-query)`: a link on the page, and in Jupyter, where a
`{term}` role would show its source, still the word. On the page the link carries the
definition as its title, and the glossary names the chapters that introduce a term:
the first that links it, and those that set it in bold.
"""

import re
from collections import defaultdict
from pathlib import Path

from docutils import nodes
from overview import cells, parts
from reference import link
from sphinx.application import Sphinx

GLOSSARY = "book/reference/glossary"
LINK = re.compile(r"\[([^\]]*)\]\(#(term-[a-z0-9-]+)\)")


def read_glossary(app: Sphinx, doctree: nodes.document) -> None:
    """Give each term an address, keep its definition, and add its chapters."""
    if app.env.docname != GLOSSARY:
        return
    labels = app.env.get_domain("std").anonlabels
    app.env.definitions = {}
    app.env.note_reread()  # in every build, for any chapter may have changed
    chapters = introduced(Path(app.srcdir))
    for item in doctree.findall(nodes.definition_list_item):
        term, definition = item[0], item[-1]
        (name,) = term["ids"]
        labels[name.lower()] = (GLOSSARY, name)
        app.env.definitions[name] = definition[0].astext().replace("\n", " ")
        for number, page in enumerate(chapters.get(name.lower(), [])):
            definition[0] += nodes.Text(", " if number else " →\u00a0")
            definition[0] += link(GLOSSARY, f"/{page}", kind="doc")


def introduced(root: Path) -> dict[str, list[str]]:
    """Of each term, the chapters that introduce it."""
    linked, bold = defaultdict(list), defaultdict(list)
    for _, pages in parts(root):
        for page in pages:
            for cell in cells(root, page):
                for word, name in LINK.findall(cell["source"]):
                    linked[name].append(page)
                    bold[name] += [page] * word.startswith("**")
    return {
        name: [*dict.fromkeys(pages[:1] + bold[name])] for name, pages in linked.items()
    }


def tell_definitions(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Let a link to a term say what the term means."""
    definitions = getattr(app.env, "definitions", {})  # none in a book of few pages
    for node in doctree.findall(nodes.reference):
        page, _, name = node.get("refuri", f"#{node.get('refid')}").partition("#")
        if name in definitions and page.rpartition("/")[2] in ("", "glossary.html"):
            node["reftitle"] = definitions[name]
            node["classes"].append("term")


def setup(app: Sphinx) -> None:
    app.connect("doctree-read", read_glossary)
    app.connect("doctree-resolved", tell_definitions)
