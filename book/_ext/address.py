"""What a page says of itself to those who have not opened it: searches and previews.

Each page gets a description, its lead sentence. Where the build is told the address
that it will have, `BOOK_ADDRESS=https://owner.github.io/name/ make book`, each page
also states its own, with a picture for previews, and all pages are listed beside them.

The page for addresses that lead nowhere is shown at any depth, so it brings its style
along and its links start from the top of the site.
"""

import os
from html import escape
from pathlib import Path
from urllib.parse import urlsplit

from docutils import nodes
from social_picture import SIZE, draw, first_map
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.util.display import status_iterator

PICTURES = "_static/social"
DOOR = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{title}</title>
{meta}
<meta http-equiv="refresh" content="0; url={page}">
</head>
<body><p><a href="{page}">{title}</a></p></body>
</html>
"""


def address() -> str:
    """Where the site will be, with a slash at the end; nothing if that is not known."""
    told = os.environ.get("BOOK_ADDRESS", "").rstrip("/")
    return told and f"{told}/"


def set_base(app: Sphinx, config: Config) -> None:
    config.html_baseurl = address()


def picture(page: str) -> str:
    return f"{PICTURES}/{page.replace('/', '-')}.png"


def lead(doctree: nodes.document) -> str:
    """The page in a sentence: its quoted lead, or its first paragraph."""
    for kind in (nodes.block_quote, nodes.paragraph):
        if found := doctree.next_node(kind):
            return " ".join(found.astext().split())
    return ""


def tags(app: Sphinx, page: str) -> str:
    """The page's description and preview, as HTML for its head."""
    home, book = page == app.config.root_doc, app.config.project
    words = lead(app.env.get_doctree(page))
    properties = {
        "og:site_name": book,
        "og:type": "website" if home else "article",
        "og:title": app.env.titles[page].astext(),
        "og:description": words,
    }
    if site := address():
        properties |= {
            "og:url": site + app.builder.get_target_uri(page),
            "og:image": site + picture(page),
            "og:image:width": SIZE[0],
            "og:image:height": SIZE[1],
            "og:image:alt": "The page's title, beside an attention map",
        }
    lines = [f'<meta name="description" content="{escape(words)}" />']
    lines += [
        f'<meta property="{name}" content="{escape(str(value))}" />'
        for name, value in properties.items()
    ]
    if site:
        lines.append('<meta name="twitter:card" content="summary_large_image" />')
    return "\n".join(lines)


def describe_page(app, pagename, templatename, context, doctree) -> None:
    if doctree is not None:
        context["metatags"] = f"{context.get('metatags', '')}\n{tags(app, pagename)}\n"


def publish(app: Sphinx, error: Exception | None) -> None:
    """Write what lies beside the pages."""
    if error or app.builder.format != "html":
        return
    out, site, root = Path(app.outdir), address(), app.config.root_doc
    pages = told(app)
    (out / "404.html").write_text(nowhere(app), encoding="utf-8")
    door = {"title": escape(app.config.project), "meta": tags(app, root)}
    page = app.builder.get_target_uri(root)
    (out / "index.html").write_text(DOOR.format(page=page, **door), encoding="utf-8")
    if not site:
        return
    links = [
        f"<url><loc>{site}{app.builder.get_target_uri(p)}</loc></url>" for p in pages
    ]
    head = '<?xml version="1.0" encoding="utf-8"?>'
    space = 'xmlns="http://www.sitemaps.org/schemas/sitemap/0.9"'
    urls = "\n".join([head, f"<urlset {space}>", *links, "</urlset>", ""])
    (out / "sitemap.xml").write_text(urls, encoding="utf-8")
    if urlsplit(site).path == "/":  # elsewhere nobody reads it
        robots = f"User-agent: *\nAllow: /\nSitemap: {site}sitemap.xml\n"
        (out / "robots.txt").write_text(robots, encoding="utf-8")
    (out / PICTURES).mkdir(parents=True, exist_ok=True)
    first = next(filter(None, (first_map(chapter(app, p)) for p in pages)), [])
    for page in status_iterator(pages, "drawing pictures... ", length=len(pages)):
        title, words = app.env.titles[page].astext(), lead(app.env.get_doctree(page))
        cells = first_map(chapter(app, page)) or first
        image = draw(title, words, cells, "" if page == root else app.config.project)
        image.save(out / picture(page), optimize=True)


def chapter(app: Sphinx, page: str) -> Path:
    return Path(app.srcdir, f"{page}.ipynb")


def told(app: Sphinx) -> list[str]:
    """The pages in the order of the story."""
    pages, queue = [], [app.config.root_doc]
    while queue:
        pages.append(page := queue.pop(0))
        queue += app.env.toctree_includes.get(page, [])
    return pages


def nowhere(app: Sphinx) -> str:
    """The page for addresses that lead nowhere."""
    top = urlsplit(address()).path or "/"
    pages = [
        (top + app.builder.get_target_uri(page), app.env.titles[page].astext())
        for page in told(app)
    ]
    words = {"book": app.config.project, "top": top, "pages": pages}
    return app.builder.templates.render("404.html", words)


def setup(app: Sphinx) -> dict:
    app.connect("config-inited", set_base)
    app.connect("html-page-context", describe_page)
    app.connect("build-finished", publish, priority=400)  # before a plain front door
    return {"parallel_read_safe": True, "parallel_write_safe": True}
