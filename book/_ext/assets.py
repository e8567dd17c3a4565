"""Light pages: one style sheet and one script, without the rules that no page uses.

The theme and the extensions bring many style sheets, scripts and fonts of icons. Here
what every page asks for becomes `site.css` and `site.js`: rules that can match nothing
on any page are left out, and of the icons only those that are shown remain, inside the
style sheet. A name counts as used when it stands in a page, or as a word in a script;
a script that puts names together must spell them out in a comment. Of the theme's and
Sphinx's own scripts, `controls.js` does what the pages need. The template
`webpack-macros.html` links these files and not the theme's; what only some pages ask
for, such as the search page's scripts, stays as it is.
"""

import re
from collections.abc import Iterator
from hashlib import sha256
from itertools import groupby, pairwise
from pathlib import Path

import tinycss2
from fontTools.ttLib import TTFont
from formulas import cut
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

STYLES, SCRIPT, SEARCH = "site.css", "site.js", "search.js"
THEME_STYLES = ["basic.css", "styles/pydata-sphinx-theme.css"]
SCRIPTS = ["documentation_options.js", "clipboard.min.js", "copybutton.js"]
SCRIPTS += ["controls.js", "book.js"]


def ask_for_none(app: Sphinx, page: str, template: str, context: dict, doctree) -> None:
    """The template asks for the shared files, and for no others."""
    context["css_files"], context["script_files"] = [], []


def write(app: Sphinx, error: Exception | None) -> None:
    """Put both files beside the pages, and their marks into the pages' links."""
    if error:
        return
    static = Path(app.outdir, "_static")
    files = sorted(app.builder._orig_css_files, key=lambda file: file.priority)
    others = [str(file.filename).removeprefix("_static/") for file in files]
    script = "\n;\n".join((static / name).read_text("utf-8") for name in SCRIPTS)
    (static / SCRIPT).write_text(script, encoding="utf-8")
    pages = {
        path: path.read_text("utf-8")
        for path in Path(app.outdir).rglob("*.html")
        if static not in path.parents  # where the theme leaves templates behind
    }
    searching = (static / SEARCH).read_text("utf-8")
    known = vocabulary([*pages.values()], script + searching)
    styles = (lean(static / name, static, known) for name in THEME_STYLES + others)
    (static / STYLES).write_text("\n".join(styles), encoding="utf-8")
    for path, page in pages.items():
        path.write_text(mark(page, static), encoding="utf-8")


def lean(file: Path, static: Path, known: set[str]) -> str:
    """A style sheet with what pages can use of it, and with its licence."""
    css = file.read_text("utf-8")
    licences = re.findall(r"(?s)/\*!.*?\*/", css)
    return "\n".join([*licences, icons(purge(css, known), static, known)])


def mark(page: str, static: Path) -> str:
    """`page` with each local style and script named by its contents, for caches."""

    def named(link: re.Match) -> str:
        contents = (static / link[1]).read_bytes()
        return f"_static/{link[1]}?v={sha256(contents).hexdigest()[:8]}"

    return re.sub(r"_static/([\w./-]+\.(?:css|js))(?:\?\w+=\w+)?(?=\")", named, page)


# Rules that can match


def vocabulary(pages: list[str], script: str) -> set[str]:
    """Every element, class and id of the pages, and every word of a script."""
    words = set()
    for page in pages:
        words |= set(re.findall(r"<([a-zA-Z][\w-]*)", page))
        for value in re.findall(r'\b(?:class|id)="([^"]*)"', page):
            words |= set(value.split())
        script += "\n".join(re.findall(r"(?s)<script[^>]*>(.+?)</script>", page))
    return words | set(re.findall(r"[A-Za-z_][\w-]*", script)) | {"html", "root"}


def purge(css: str, known: set[str]) -> str:
    """The rules of `css` that can match, when pages and scripts know no other names."""
    return "\n".join(
        rule
        for node in tinycss2.parse_stylesheet(css, True, True)
        for rule in kept(node, known)
    )


def kept(node, known: set[str]) -> Iterator[str]:
    if node.type == "error":
        raise ExtensionError(f"a style sheet cannot be read: {node.message}")
    body = tinycss2.serialize(node.content or [])
    if node.type == "qualified-rule":
        commas = groupby(node.prelude, lambda token: token == ",")
        selectors = [list(tokens) for comma, tokens in commas if not comma]
        possible = [tinycss2.serialize(s) for s in selectors if needs(s) <= known]
        if possible:
            yield f"{','.join(map(str.strip, possible))}{{{body}}}"
    elif node.at_keyword in ("media", "supports", "layer", "container"):
        if inner := purge(body, known):
            yield f"@{node.at_keyword}{tinycss2.serialize(node.prelude)}{{{inner}}}"
    elif node.at_keyword != "charset":
        yield node.serialize()


def needs(selector: list) -> set[str]:
    """The elements, classes and ids without which a selector matches nothing.

    What stands in brackets, such as `:not(.x)` or `[data-y]`, is not counted.
    """
    return {
        token.value
        for before, token in pairwise([None, *selector])
        if token.type == "hash" or (token.type == "ident" and before != ":")
    }


# Icons


def icons(css: str, static: Path, known: set[str]) -> str:
    """`css` with its fonts of icons cut down to the icons that it names, as data.

    A font stays where pages know it by its name, such as `fa-solid`.
    """
    shown = set(re.findall("[\ue000-\uf8ff]", css))

    def less(face: re.Match) -> str:
        file, name = re.search(r"([^/(]*?(fa-[a-z]+)[^/)]*\.woff2)", face[0]).groups()
        if name not in known:
            return ""
        (font,) = static.rglob(file)
        return re.sub(r"src:[^;}]*", f"src:{cut(TTFont(font), shown)}", face[0])

    return re.sub(r"@font-face\s*\{[^}]*fontawesome[^}]*\}", less, css)


def setup(app: Sphinx) -> None:
    app.connect("html-page-context", ask_for_none, priority=999)
    app.connect("build-finished", write, priority=999)
