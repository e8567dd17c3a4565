"""Where the pages and their source lie, and what they say of it.

The home page lies at the site's own address, as `index.html`, wherever its source lies.

Where the build is told the address that the site will have,
`BOOK_ADDRESS=https://owner.github.io/name/ make book`, each page states its own, with a
description and a picture by sphinxext-opengraph, and all pages are listed beside them.
Where it is told of a repository, `BOOK_REPOSITORY=https://github.com/owner/name`, links
to it stand under each chapter's lead, beside the chapter itself to download, and at the
foot of every page; without it the site names none.

The page for addresses that lead nowhere is shown at any depth, so it brings its style
along and its links start from the top of the site.

(sphinx-sitemap would list the home page at the place of its source; what
sphinx-notfound-page does, links from the top, is one line here.)
"""

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from overview import tangle
from sphinx.application import Sphinx
from sphinx.builders.html import StandaloneHTMLBuilder
from sphinx.config import Config

MARK, INK = "book/_static/favicon.png", "#4a52c4"


class Book(StandaloneHTMLBuilder):
    """Pages in HTML, the home page on top."""

    search = False  # `book_search.py` has another

    def get_target_uri(self, docname: str, typ: str | None = None) -> str:
        return super().get_target_uri(self.placed(docname), typ)

    def get_outfilename(self, pagename: str) -> str:
        return super().get_outfilename(self.placed(pagename))

    def placed(self, page: str) -> str:
        return "index" if page == self.config.root_doc else page


def told(name: str) -> str:
    return os.environ.get(name, "").rstrip("/")


def address() -> str:
    """Where the site will be, with a slash at the end; nothing if that is not known."""
    return told("BOOK_ADDRESS") and told("BOOK_ADDRESS") + "/"


def within(app: Sphinx, page: str) -> str:
    """Where on the site a page is; the home page has the site's own address."""
    return "" if page == app.config.root_doc else app.builder.get_target_uri(page)


def pages(app: Sphinx) -> list[str]:
    return [f"book/{name}" for name in tangle.contents(Path(app.srcdir))]


def tell(app: Sphinx, config: Config) -> None:
    config.html_baseurl = address()
    config.html_context["repository"] = told("BOOK_REPOSITORY")
    if address():
        config.ogp_site_url = address()
        config.ogp_social_cards = {"image_mini": MARK, "line_color": INK}


def state_address(app: Sphinx, page: str, template, context: dict, doctree) -> None:
    if address():
        context["pageurl"] = address() + within(app, page)
        context["meta"] = (context.get("meta") or {}) | {"og:url": context["pageurl"]}


def take_along(app: Sphinx, page: str, template, context: dict, doctree) -> None:
    """Put the line under the lead of every chapter."""
    if context.get("page_source_suffix") == ".ipynb":
        lead, end, rest = context["body"].partition("</blockquote>")
        line = app.builder.templates.render("take-along.html", context)
        context["body"] = f"{lead}{end}\n{line}{rest}"


def no_such_page(app: Sphinx) -> Iterator[tuple[str, dict, str]]:
    top = urlsplit(address()).path or "/"
    titles = {top + within(app, p): app.env.titles[p].astext() for p in pages(app)}
    yield "404", {"top": top, "titles": titles}, "404.html"


def list_pages(app: Sphinx, error: Exception | None) -> None:
    if address() and not error:
        links = [address() + within(app, page) for page in pages(app)]
        urls = "\n".join(f"<url><loc>{link}</loc></url>" for link in links)
        space = 'xmlns="http://www.sitemaps.org/schemas/sitemap/0.9"'
        text = f"<urlset {space}>\n{urls}\n</urlset>\n"
        Path(app.outdir, "sitemap.xml").write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> None:
    app.add_builder(Book, override=True)
    if address():
        app.setup_extension("sphinxext.opengraph")
    app.connect("config-inited", tell)
    app.connect("html-page-context", state_address, priority=400)  # before opengraph
    app.connect("html-page-context", take_along)
    app.connect("html-collect-pages", no_such_page)
    app.connect("build-finished", list_pages)
