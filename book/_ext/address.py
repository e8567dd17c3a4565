"""Where the pages lie, and what they say of themselves to searches and previews.

The home page lies at the site's own address, as `index.html`, wherever its source lies.

Where the build is told the address that the site will have,
`BOOK_ADDRESS=https://owner.github.io/name/ make book`, each page states its own, with a
description and a picture by sphinxext-opengraph, and all pages are listed beside them.
(sphinx-sitemap would list the home page at the place of its source.)

The page for addresses that lead nowhere is shown at any depth, so it brings its style
along and its links start from the top of the site. (sphinx-notfound-page would ask for
the site's files, which do not lie there when the site is opened in a folder.)
"""

import os
import sys
from pathlib import Path
from urllib.parse import urlsplit

from sphinx.application import Sphinx
from sphinx.builders.html import StandaloneHTMLBuilder
from sphinx.config import Config

sys.path.insert(0, str(Path(__file__).parents[1]))
import tangle

MARK, INK = "book/_static/favicon.png", "#4a52c4"


class Book(StandaloneHTMLBuilder):
    """Pages in HTML, the home page on top."""

    def get_target_uri(self, docname: str, typ: str | None = None) -> str:
        return super().get_target_uri(self.placed(docname), typ)

    def get_outfilename(self, pagename: str) -> str:
        return super().get_outfilename(self.placed(pagename))

    def placed(self, page: str) -> str:
        return "index" if page == self.config.root_doc else page


def address() -> str:
    """Where the site will be, with a slash at the end; nothing if that is not known."""
    told = os.environ.get("BOOK_ADDRESS", "").rstrip("/")
    return told and f"{told}/"


def set_base(app: Sphinx, config: Config) -> None:
    config.html_baseurl = address()
    if address():
        config.ogp_site_url = address()
        config.ogp_social_cards = {"image_mini": MARK, "line_color": INK}


def canonical(app: Sphinx, page: str) -> str:
    """A page's address on the site; the home page has that of the site itself."""
    end = "" if page == app.config.root_doc else app.builder.get_target_uri(page)
    return address() + end


def state_address(app: Sphinx, page: str, template, context: dict, doctree) -> None:
    if address():
        context["pageurl"] = canonical(app, page)
        context["meta"] = (context.get("meta") or {}) | {"og:url": context["pageurl"]}


def publish(app: Sphinx, error: Exception | None) -> None:
    """Write what lies beside the pages."""
    if error:
        return
    out, site = Path(app.outdir), address()
    pages = [f"book/{name}" for name in tangle.contents(Path(app.srcdir))]
    top = urlsplit(site).path or "/"
    titles = [
        (top + canonical(app, page).removeprefix(site), app.env.titles[page].astext())
        for page in pages
    ]
    words = {"book": app.config.project, "top": top, "pages": titles}
    nowhere = app.builder.templates.render("404.html", words)
    (out / "404.html").write_text(nowhere, encoding="utf-8")
    if site:
        links = (f"<url><loc>{canonical(app, page)}</loc></url>" for page in pages)
        space = 'xmlns="http://www.sitemaps.org/schemas/sitemap/0.9"'
        urls = "\n".join([f"<urlset {space}>", *links, "</urlset>", ""])
        (out / "sitemap.xml").write_text(urls, encoding="utf-8")


def setup(app: Sphinx) -> None:
    app.add_builder(Book, override=True)
    if address():
        app.setup_extension("sphinxext.opengraph")
    app.connect("config-inited", set_base)
    app.connect("html-page-context", state_address, priority=400)  # before opengraph
    app.connect("build-finished", publish)
