"""Formulas set when the book is built: the pages hold MathML and need no script for it.

math-core turns TeX into MathML; what it does not know fails the build, with file and
line. The browser draws it with STIX Two Math (SIL Open Font License 1.1, from ziamath),
cut down to the glyphs of the formulas in the book and laid into the style sheet.
"""

import base64
import logging
import re
import unicodedata
from collections.abc import Iterable
from functools import cache
from html import escape, unescape
from importlib.metadata import distribution
from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree

from docutils import nodes
from fontTools import subset
from fontTools.ttLib import TTFont
from math_core import LatexError, LatexToMathML
from sphinx.application import Sphinx
from sphinx.util.logging import getLogger
from sphinx.util.math import get_node_equation_number
from sphinx.writers.html5 import HTML5Translator

logger = getLogger(__name__)
# A font tells of each of its tables, and a11y_pygments makes all that is told heard.
logging.getLogger("fontTools").setLevel(logging.WARNING)

FORMULAS = "formulas.css"
RULES = Path(__file__).parents[1] / "_static" / FORMULAS
FONT = "ziamath/fonts/STIXTwoMath-Regular.ttf"
ROOT = "√"
TALL = {"mfrac", "msubsup", "mtable", "munder", "mover", "munderover", "mroot"}

convert = LatexToMathML(fancy_error=False).convert_with_local_state


# TeX to MathML


def mathml(tex: str, *, block: bool) -> str:
    """`tex` as a MathML element; a LatexError says what in it is not known."""
    found = convert(rows(tex) if block else tex, displaystyle=block)
    found = re.sub(r"&(?!lt;|gt;|amp;|quot;)\w+;", lambda m: unescape(m[0]), found)
    math = ElementTree.fromstring(found)
    for root in math.iter("msqrt"):
        if not any(map(tall, root.iter())):
            root.set("class", "low")
    return ElementTree.tostring(math, encoding="unicode")


def tall(element: ElementTree.Element) -> bool:
    """Whether a root over the element must be higher than the lowest √."""
    return element.tag in TALL or (element.tag == "msup" and element[0].tag == "mo")


def parts(tex: str) -> list[str]:
    r"""`tex` cut at each `\qquad`, where a narrow page may begin a new line."""
    found = re.split(r"\\qquad\b", tex)
    return found if all(map(closed, found)) else [tex]


def closed(tex: str) -> bool:
    """Whether `tex` closes every group that it opens."""
    pairs = (r"\{", r"\}"), (r"\\begin\b", r"\\end\b"), (r"\\left\b", r"\\right\b")
    return all(len(re.findall(a, tex)) == len(re.findall(b, tex)) for a, b in pairs)


def rows(tex: str) -> str:
    r"""`tex` in an environment for its rows, where it ends some with `\\`.

    The book's environments stay unnumbered: Sphinx numbers a formula, as a whole.
    """
    alone = re.fullmatch(r"\s*\\begin\{(\w+)\*?\}(.*)\\end\{\1\*?\}\s*", tex, re.S)
    if alone and alone[1] in ("equation", "align", "gather", "multline", "alignat"):
        return rf"\begin{{{alone[1]}*}}{alone[2]}\end{{{alone[1]}*}}"
    inner = re.sub(r"\\begin\{(\w+\*?)\}.*?\\end\{\1\}", "", tex, flags=re.S)
    return rf"\begin{{aligned}}{tex}\end{{aligned}}" if r"\\" in inner else tex


def visit_inline(self: HTML5Translator, node: nodes.math) -> None:
    self.body.append(self.starttag(node, "span", "", CLASS="math notranslate"))
    self.body.append(formula(node, block=False))
    self.body.append("</span>")
    raise nodes.SkipNode


def visit_block(self: HTML5Translator, node: nodes.math_block) -> None:
    self.body.append(self.starttag(node, "div", CLASS="math notranslate"))
    self.body.append(formula(node, block=True))
    if node["number"]:
        number = get_node_equation_number(self, node)
        self.body.append(f'<span class="eqno">({number})')
        self.add_permalink_ref(node, "Link to this equation")
        self.body.append("</span>")
    self.body.append("</div>\n")
    raise nodes.SkipNode


def number(app: Sphinx, doctree: nodes.document) -> None:
    """Give every displayed formula of a page a number, in order, and an address."""
    domain, page = app.env.get_domain("math"), app.env.docname
    for count, node in enumerate(doctree.findall(nodes.math_block), start=1):
        if not node.get("label"):
            node["label"] = f"{page}-{count}"
            node["ids"].append(f"equation-{count}")
            node["docname"] = page
        node["number"] = count
        domain.equations[node["label"]] = (page, count)


def formula(node: nodes.Element, *, block: bool) -> str:
    """The node's MathML, or a warning and its TeX."""
    try:
        found = parts(node.astext()) if block else [node.astext()]
        math = "".join(mathml(tex, block=block) for tex in found)
        if lacking := {c for c in symbols(math) if c.isprintable()} - glyphs():
            raise LatexError(f"the font lacks {' '.join(sorted(lacking))}")
        return math
    except LatexError as error:
        logger.warning("cannot set %s (at %s)", node.astext(), error, location=node)
        return f"<code>{escape(node.astext())}</code>"


def symbols(html: str) -> set[str]:
    """The characters of the formulas in a page."""
    formulas = re.findall(r"<math\b.*?</math>", html, re.S)
    return set(unescape(re.sub(r"<[^>]*>", "", "".join(formulas))))


# The font


@cache
def glyphs() -> set[str]:
    """What the font can draw."""
    return set(map(chr, load().getBestCmap()))


def load() -> TTFont:
    return TTFont(distribution("ziamath").locate_file(FONT))


def italics() -> dict[str, str]:
    """What a browser draws for a letter that stands alone in a formula."""
    letters = map(chr, range(0x1D7CB, 0x1D433, -1))  # the variants of θ, π and φ first
    italic = [c for c in letters if "MATHEMATICAL ITALIC" in unicodedata.name(c, "")]
    return {"h": "ℎ"} | {unicodedata.normalize("NFKC", c): c for c in italic}


def cut(font: TTFont, text: Iterable[str]) -> str:
    """The font with the characters of `text` alone, as data for a style sheet."""
    options = subset.Options(
        hinting=False, name_IDs=[0, 1, 2, 13, 14], notdef_outline=False
    )
    cutter = subset.Subsetter(options)
    cutter.populate(text="".join(text))
    cutter.subset(font)
    font.flavor, font.recalcTimestamp = "woff2", False  # two builds are one
    font.save(file := BytesIO())
    data = base64.b64encode(file.getvalue()).decode()
    return f'url("data:font/woff2;base64,{data}") format("woff2")'


def write_fonts(app: Sphinx, error: Exception | None) -> None:
    """Lay the fonts into the style sheet, as the pages' formulas need them.

    Chromium keeps space for the widest √ that a font holds. So the root of a plain
    letter or number is drawn with a font that holds the low √ alone.
    """
    if error:
        return
    pages = [p.read_text(encoding="utf-8") for p in Path(app.outdir).rglob("*.html")]
    if not (text := symbols("".join(pages))):
        return
    slanted = italics()
    text |= {slanted[c] for c in text if c in slanted} | {ROOT}
    low = load()
    low["MATH"].table.MathVariants = None
    fonts = {"Formulas": cut(load(), text), "Low root": cut(low, {ROOT})}
    faces = [
        f'@font-face {{font-family: "{family}"; src: {data}}}\n'
        for family, data in fonts.items()
    ]
    styles = "".join([*faces, RULES.read_text(encoding="utf-8")])
    Path(app.outdir, "_static", FORMULAS).write_text(styles, encoding="utf-8")


def setup(app: Sphinx) -> None:
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    app.connect("doctree-read", number)
    app.connect("build-finished", write_fonts)
