"""What stays on one line: a number and its unit, (16, 0), a formula and its comma.

A browser may begin a new line at any space, and before or after any formula: so a line
could end in "89" and the next begin with "%", or with the comma that follows a formula.
"""

import re

from docutils import nodes
from sphinx.application import Sphinx

UNIT = r"%|[kMGT]B\b|[mµ]s\b|· "
PAIR = r"(?<=\d,)\s(?=\d+\))"
SPACE = re.compile(rf"(?<=\d)\s(?={UNIT})|(?<=\d\s·)\s(?=\d)|{PAIR}")
OPENING = re.compile(r"[(\[“‘]+$")
CLOSING = re.compile(r"^[,.;:!?)\]”’…-]+")
LITERAL = nodes.literal, nodes.literal_block, nodes.math, nodes.math_block, nodes.raw


def keep(app: Sphinx, doctree: nodes.document) -> None:
    for text in [*doctree.findall(nodes.Text)]:
        if not isinstance(text.parent, LITERAL):
            text.parent.replace(text, nodes.Text(SPACE.sub("\u00a0", text)))
    for formula in [*doctree.findall(nodes.math)]:
        keep_marks(formula)


def keep_marks(formula: nodes.math) -> None:
    """Take a formula and the marks that touch it, "(" or ",", into one line."""
    parent = formula.parent
    place = parent.index(formula)
    before, after = "", ""
    if place and isinstance(parent[place - 1], nodes.Text):
        before, rest = cut(parent[place - 1], OPENING)
        parent.replace(parent[place - 1], nodes.Text(rest))
    if place + 1 < len(parent) and isinstance(parent[place + 1], nodes.Text):
        after, rest = cut(parent[place + 1], CLOSING)
        parent.replace(parent[place + 1], nodes.Text(rest))
    if before or after:
        line = nodes.inline(classes=["unbroken"])
        parent.replace(formula, line)
        line += [nodes.Text(before), formula, nodes.Text(after)]


def cut(text: str, marks: re.Pattern) -> tuple[str, str]:
    """The marks at the edge of a text, and the rest of it."""
    found = marks.search(text)
    return (found[0] if found else ""), marks.sub("", text)


def setup(app: Sphinx) -> None:
    app.connect("doctree-read", keep)
