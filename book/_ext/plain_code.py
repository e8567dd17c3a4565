"""Code is marked up where that gives it a colour, and nowhere else.

Pygments wraps every name, bracket and comma. In the book's two styles they have the ink
of all code, so their marks are three in five of a chapter's elements for nothing.
"""

import re

from sphinx.application import Sphinx

PLAIN = ("n", "nn", "nx", "p", "w")  # names, modules, others, punctuation, space
MARKED = re.compile(rf'<span class="(?:{"|".join(PLAIN)})">([^<]*)</span>')


def unmark(app: Sphinx, pagename: str, templatename: str, context: dict, doctree):
    """Leave the words of such marks alone."""
    if "body" in context:
        context["body"] = MARKED.sub(r"\1", context["body"])


def setup(app: Sphinx) -> None:
    app.connect("html-page-context", unmark)
