"""What the tools' markup gets wrong is put right in the finished pages."""

import re

from docutils import nodes
from sphinx.application import Sphinx

# A number and its unit, and (16, 0), stay on one line.
UNIT = r"%|[kMGT]B\b|[mµ]s\b|· "
PAIR = r"(?<=\d,)\s(?=\d+\))"
SPACE = re.compile(rf"(?<=\d)\s(?={UNIT})|(?<=\d\s·)\s(?=\d)|{PAIR}")
LITERAL = nodes.literal, nodes.literal_block, nodes.math, nodes.math_block, nodes.raw

# A browser may begin a line before or after any formula, so with the comma behind one.
FORMULA = r'<span class="math notranslate(?:(?!</span>)[\s\S])*</span>'
OPENING, CLOSING = r"[(\[“‘]", r"[,.;:!?)\]”’…-]"
TOUCHED = re.compile(f"{OPENING}+{FORMULA}{CLOSING}*|{FORMULA}{CLOSING}+")

# Pygments wraps every name, bracket and comma. In the book's two styles they have the
# ink of all code, so their marks are three in five of a chapter's elements for nothing.
PLAIN = ("n", "nn", "nx", "p", "w")  # names, modules, others, punctuation, space
MARKED = re.compile(rf'<span class="(?:{"|".join(PLAIN)})">([^<]*)</span>')


def keep_units(app: Sphinx, doctree: nodes.document) -> None:
    for text in [*doctree.findall(nodes.Text)]:
        if not isinstance(text.parent, LITERAL):
            text.parent.replace(text, nodes.Text(SPACE.sub("\u00a0", text)))


def mend(app: Sphinx, page: str, template: str, context: dict, doctree) -> None:
    body = MARKED.sub(r"\1", context.get("body", ""))
    body = TOUCHED.sub(r'<span class="text-nowrap">\g<0></span>', body)
    # A fold is called what it shows, not all alike.
    body = body.replace(' aria-label="Toggle hidden content"', "")
    # The items of a list are its items; their other role is deprecated.
    context["body"] = body.replace("doc-biblioentry", "listitem")


def setup(app: Sphinx) -> None:
    app.connect("doctree-read", keep_units)
    app.connect("html-page-context", mend)
