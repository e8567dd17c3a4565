"""Under a chapter's lead: take it along, open it elsewhere, see its source.

The chapter itself is always there to download. Where the build is told of a repository,
`BOOK_REPOSITORY=https://github.com/owner/name make book`, links to it follow; without
it the site names none.
"""

import os
from html import escape

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config

Links = list[tuple[str, str]]


def repository() -> str:
    return os.environ.get("BOOK_REPOSITORY", "").rstrip("/")


def launches(address: str, file: str) -> Links:
    """What opens `file` of the repository at `address`: label and link."""
    if not address:
        return []
    links = [("Source", f"{address}/blob/main/{file}")]
    owner_and_name = address.removeprefix("https://github.com/")
    if owner_and_name != address:  # only these are known to the two services
        binder = f"https://mybinder.org/v2/gh/{owner_and_name}/main?urlpath=lab/tree"
        links += [
            (
                "Open in Colab",
                f"https://colab.research.google.com/github/{owner_and_name}/blob/main/{file}",
            ),
            ("Open in Binder", f"{binder}/{file}"),
        ]
    return links


def line(address: str, page: str, download: str) -> str:
    """The line of links, as HTML; in Colab the package has to be installed first."""
    first = f'<a href="{escape(download)}" download>Download this chapter</a>'
    links = [first] + [
        f'<a href="{escape(link)}">{label}</a>'
        for label, link in launches(address, f"{page}.ipynb")
    ]
    if any("Colab" in link for link in links):
        wants = f"%pip install 'building-attention[chapters] @ git+{escape(address)}'"
        links.append(f"<span>in Colab, first run <code>{wants}</code></span>")
    return f'<p class="take-along">{" · ".join(links)}</p>'


def add_links(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Put the line under the lead of every chapter."""
    if not app.env.doc2path(docname).endswith(".ipynb"):
        return
    lead = doctree.next_node(nodes.block_quote)
    page = app.builder.get_relative_uri(docname, "_sources/")
    download = f"{page.removesuffix('.html')}{docname}.ipynb"
    html = line(repository(), docname, download)
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
