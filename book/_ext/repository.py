"""Under a chapter's lead: take it along, open it elsewhere, see its source.

The chapter itself is always there to download. Where the build is told of a repository,
`BOOK_REPOSITORY=https://github.com/owner/name make book`, links to it follow; without
it the site names none.
"""

import os
from collections.abc import Iterator
from html import escape

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config

GITHUB = "https://github.com/"
COLAB = "https://colab.research.google.com/github"
BINDER = "https://mybinder.org/v2/gh"


def repository() -> str:
    return os.environ.get("BOOK_REPOSITORY", "").rstrip("/")


def links(page: str, download: str) -> Iterator[str]:
    """Ways to take a chapter along; in Colab the package has to be installed first."""
    yield f'<a href="{escape(download)}" download>Download this chapter</a>'
    if not (address := repository()):
        return
    file = f"{page}.ipynb"
    yield f'<a href="{escape(address)}/blob/main/{file}">Source</a>'
    owner_and_name = escape(address.removeprefix(GITHUB))
    if address.startswith(GITHUB):  # only these are known to the two services
        yield f'<a href="{COLAB}/{owner_and_name}/blob/main/{file}">Open in Colab</a>'
        binder = f"{BINDER}/{owner_and_name}/main?urlpath=lab/tree/{file}"
        yield f'<a href="{binder}">Open in Binder</a>'
        wants = f"%pip install 'building-attention[chapters] @ git+{escape(address)}'"
        yield f"<span>in Colab, first run <code>{wants}</code></span>"


def add_links(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Put the line under the lead of every chapter."""
    if not app.env.doc2path(docname).endswith(".ipynb"):
        return
    lead = doctree.next_node(nodes.block_quote)
    page = app.builder.get_relative_uri(docname, "_sources/")
    download = f"{page.removesuffix('.html')}{docname}.ipynb"
    html = f'<p class="take-along">{" · ".join(links(docname, download))}</p>'
    lead.parent.insert(lead.parent.index(lead) + 1, nodes.raw("", html, format="html"))


def add_footer(app: Sphinx, config: Config) -> None:
    """At the foot of every page, where the source lies and mistakes are told."""
    if address := repository():
        config.html_theme_options["extra_footer"] = (
            f'<p><a href="{escape(address)}">Source of this book</a> · '
            f'<a href="{escape(address)}/issues">Tell of a mistake</a></p>'
        )


def setup(app: Sphinx) -> None:
    app.connect("config-inited", add_footer)
    app.connect("doctree-resolved", add_links)
