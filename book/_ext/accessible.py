"""What the tools below get wrong for readers who hear a page or work it by keyboard."""

from docutils import nodes
from myst_nb.sphinx_ import (
    HideCodeCellNode,
    depart_HideCellInput,
    visit_HideCellInput,
)
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

LABEL = ' aria-label="Toggle hidden content"'


def visit_fold(self: HTML5Translator, node: HideCodeCellNode) -> None:
    """A fold is called what it shows, not all alike."""
    start = len(self.body)
    visit_HideCellInput(self, node)
    self.body[start:] = [text.replace(LABEL, "") for text in self.body[start:]]


def visit_citation(self: HTML5Translator, node: nodes.citation) -> None:
    """The items of a list are its items; their other role is deprecated."""
    HTML5Translator.visit_citation(self, node)
    self.body[-1] = self.body[-1].replace("doc-biblioentry", "listitem")


def setup(app: Sphinx) -> None:
    fold = (visit_fold, depart_HideCellInput)
    citation = (visit_citation, HTML5Translator.depart_citation)
    app.add_node(HideCodeCellNode, override=True, html=fold)
    app.add_node(nodes.citation, override=True, html=citation)
