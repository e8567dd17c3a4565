"""Light pages: one style sheet and one script, without the rules that no page uses.

The theme and the extensions bring many style sheets, scripts and fonts of icons. Here
what every page asks for becomes `site.css` and `site.js`: rules that can match nothing
on any page are left out, and of the icons only those that are shown remain, inside the
style sheet. A name counts as used when it stands in a page, or as a word in a script;
a script that puts names together must spell them out in a comment. Of the theme's and
Sphinx's own scripts, `controls.js` does what the pages need. The template
`webpack-macros.html` keeps the theme from linking its files; what only some pages ask
for, such as the search page's scripts, stays as it is.
"""

import logging
import re
from base64 import b64encode
from collections.abc import Iterator
from hashlib import sha256
from io import BytesIO
from pathlib import Path, PurePosixPath
from posixpath import normpath

import tinycss2
from book_search import INDEX
from fontTools import subset
from fontTools.ttLib import TTFont
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

# A font tells of each of its tables, and a11y_pygments makes all that is told heard.
logging.getLogger("fontTools").setLevel(logging.WARNING)

STYLES, SCRIPT = "site.css", "site.js"
THEME_STYLES = ["basic.css", "styles/pydata-sphinx-theme.css"]
# In their place stands `controls.js`; those that the theme links itself are not here.
REPLACED = {
    "doctools.js",
    "sphinx_highlight.js",
    "scripts/sphinx-book-theme.js",
}
# Scripts that serve only pages which hold this word.
RARE = {
    "togglebutton.js": "toggle",
    "togglebutton": "toggle",  # and its settings, written into the page
    "toggleHint": "toggle",
    "toggleOpenOnPrint": "toggle",
    "design-tabs.js": "sd-tab-set",
    "DOCUMENTATION_OPTIONS.pagename": "version-switcher",
}


# The pages ask for them


def share(app: Sphinx) -> None:
    """Note what every page would load, in order."""
    if app.builder.format == "html":
        styles = sorted(app.builder._css_files, key=lambda file: file.priority)
        app.builder.shared_styles = styles
        app.builder.shared_scripts = [
            file for file in app.builder._js_files if rare(file) is None
        ]


def rare(file) -> str | None:
    """The word without which a page does not need the script."""
    said = f"{file.filename or ''} {file.attributes.get('body', '')}"
    return next((word for name, word in RARE.items() if name in said), None)


def ask(app: Sphinx, page: str, template: str, context: dict, doctree) -> None:
    """Let the page load the shared files, and then only what it needs itself."""
    shared_styles, shared_scripts = (
        app.builder.shared_styles,
        app.builder.shared_scripts,
    )
    styles = [file for file in context["css_files"] if file not in shared_styles]
    scripts = [
        file
        for file in context["script_files"]
        if file not in shared_scripts and (rare(file) or "") in context.get("body", "")
    ]
    app.add_css_file(STYLES)
    app.add_js_file(SCRIPT, defer="defer")
    context["css_files"] = [app.builder._css_files[-1], *styles]
    context["script_files"] = [app.builder._js_files[-1], *scripts]


# The files are written


def write(app: Sphinx, error: Exception | None) -> None:
    """Put both files beside the pages, and their marks into the pages' links."""
    if error or app.builder.format != "html":
        return
    static = Path(app.outdir, "_static")
    styles = [*THEME_STYLES, *names(app.builder.shared_styles)]
    scripts = [s for s in names(app.builder.shared_scripts) if s not in REPLACED]
    script = "\n;\n".join(
        map(plain, ((static / s).read_text("utf-8") for s in scripts))
    )
    (static / SCRIPT).write_text(script, encoding="utf-8")
    pages = {
        path: path.read_text("utf-8")
        for path in Path(app.outdir).rglob("*.html")
        if static not in path.parents  # where the theme leaves templates behind
    }
    known = vocabulary([*pages.values()], script + "".join(rest(pages, static)))
    style = "\n".join(lean(static, name, known) for name in styles)
    (static / STYLES).write_text(style, encoding="utf-8")
    for path, page in pages.items():
        if (marked := mark(page, static)) != page:
            path.write_text(marked, encoding="utf-8")


def names(files: list) -> list[str]:
    return [
        str(file.filename).removeprefix("_static/") for file in files if file.filename
    ]


def rest(pages: dict[Path, str], static: Path) -> list[str]:
    """The scripts that only some pages load, but for the words of the search."""
    links = re.findall(r"_static/([\w./-]+\.js)", "".join(pages.values()))
    return [
        (static / name).read_text("utf-8")
        for name in sorted({*links} - {SCRIPT, INDEX})
        if (static / name).exists()
    ]


def lean(static: Path, name: str, known: set[str]) -> str:
    """A style sheet with what pages can use of it, and with its licence."""
    css = source(static, name)
    licences = re.findall(r"(?s)/\*!.*?\*/", css)
    return "\n".join([*licences, icons(purge(css, known), static)])


def plain(script: str) -> str:
    """A script without the address of a map that is not there."""
    return re.sub(r"(?m)^//# sourceMappingURL=.*", "", script).strip()


def mark(page: str, static: Path) -> str:
    """`page` with each local style and script named by its contents, for caches."""

    def named(link: re.Match) -> str:
        file = static / link[1]
        if not file.exists():
            return link[0]
        return f"_static/{link[1]}?v={sha256(file.read_bytes()).hexdigest()[:8]}"

    return re.sub(r"_static/([\w./-]+\.(?:css|js))(?:\?\w+=\w+)?(?=\")", named, page)


# Rules that can match


def source(static: Path, name: str) -> str:
    """A style sheet whose addresses are as seen from `_static`."""
    css = (static / name).read_text("utf-8")
    folder = PurePosixPath(name).parent
    return re.sub(
        r"url\(\s*(['\"]?)(?![a-z]+:|[#/])([^'\")]+)\1\s*\)",
        lambda url: f"url({normpath(folder / url[2])})",
        css,
    )


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
        possible = [s for s in alternatives(node.prelude) if needs(s) <= known]
        if names := ",".join(tinycss2.serialize(s).strip() for s in possible):
            yield f"{names}{{{body}}}"
    elif node.at_keyword in ("media", "supports", "layer", "container"):
        if inner := purge(body, known):
            yield f"@{node.at_keyword}{tinycss2.serialize(node.prelude)}{{{inner}}}"
    elif node.at_keyword != "charset":
        yield node.serialize()


def alternatives(prelude: list) -> list[list]:
    """A list of selectors, cut at its commas."""
    found = [[]]
    for token in prelude:
        if token == ",":
            found.append([])
        else:
            found[-1].append(token)
    return found


def needs(selector: list) -> set[str]:
    """The elements, classes and ids without which a selector matches nothing.

    What stands in brackets, such as `:not(.x)` or `[data-y]`, is not counted.
    """
    found, before = set(), None
    for token in selector:
        if (token.type == "ident" and before != ":") or token.type == "hash":
            found.add(token.value)
        before = token
    return found


# Icons


def icons(css: str, static: Path) -> str:
    """`css` with its fonts of icons cut down to the icons that it names, as data."""
    shown = set(map(ord, re.findall("[\ue000-\uf8ff]", css)))
    shown |= {int(c, 16) for c in re.findall(r"\"\\([ef][0-9a-f]{3})\"", css)}

    def cut(face: re.Match) -> str:
        font = TTFont(static / re.search(r"url\(([^)]+\.woff2)\)", face[0])[1])
        if not shown & set(font.getBestCmap()):
            return ""
        cutter = subset.Subsetter(subset.Options(notdef_outline=False))
        cutter.populate(unicodes=shown)
        cutter.subset(font)
        font.flavor = "woff2"
        font.save(file := BytesIO())
        data = f"data:font/woff2;base64,{b64encode(file.getvalue()).decode()}"
        return re.sub(r"src:[^;}]*", f'src:url({data}) format("woff2")', face[0])

    return re.sub(r"@font-face\s*\{[^}]*fontawesome[^}]*\}", cut, css)


def setup(app: Sphinx) -> dict:
    app.connect("builder-inited", share, priority=999)
    app.connect("html-page-context", ask, priority=999)
    app.connect("build-finished", write, priority=999)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
