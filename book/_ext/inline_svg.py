"""SVG pictures become part of the page: they follow its theme and cost no request.

They are matplotlib's. A picture's default ink (black, or nothing said) turns into
`currentColor`, so that it is light on a dark page. The book's other inks stay where
they fill an area that has no line of that ink around it, for it may carry white words;
lines, marks and words in them become lighter on a dark page, as the style sheet says.
What the picture shows in words, its alt text, becomes the label that a screen reader
speaks. Notebooks stay as they are.
"""

import re
from pathlib import Path
from xml.etree import ElementTree

from docutils import nodes
from sphinx.application import Sphinx

INKS = {
    "#5a62d8": "var(--picture-blue)",
    "#b3541e": "var(--picture-brown)",
    "#0f7b80": "var(--picture-teal)",
}
# HTML knows SVG's elements and attributes without their names' spaces.
UNSEEN = re.compile(
    r'(?s)<(metadata|style)\b.*?</\1>| xmlns(?::\w+)?="[^"]*"|xlink:|(?<=>)\s+(?=<)'
)
PLACES = {"d", "transform", "x", "y"}
FINE = re.compile(r"(?<![\d.])[1-9]\d*\.\d{2,}")  # finer than a tenth of a pixel
POINT = 4 / 3  # CSS pixels
LEGIBLE = 9.0  # the least height of words in CSS pixels; a picture scrolls before


def inline(svg: str, label: str, prefix: str) -> str:
    """`svg` as a part of an HTML page, its ids told apart from others by `prefix`."""
    root = ElementTree.fromstring(UNSEEN.sub("", svg))
    for element in root.iter():
        follow_theme(element)
        for name in element.attrib.keys() & PLACES:
            value = FINE.sub(lambda found: f"{float(found[0]):.1f}", element.get(name))
            element.set(name, " ".join(value.split()))
    *_, width, _ = map(float, root.get("viewBox").split())
    words = " ".join(text.get("style", "") for text in root.iter("text"))
    sizes = map(float, re.findall(r"font(?:-size)?: (?:\w+ )*([\d.]+)px", words))
    least = min(width * POINT, width * LEGIBLE / min(sizes, default=LEGIBLE))
    root.attrib = {
        "viewBox": root.get("viewBox"),
        "style": f"min-width: {least:.0f}px; max-width: {width * POINT:g}px",
        "role": "img",
        "aria-label": label,
        "fill": "currentColor",
        # Matplotlib says this in a style sheet, which would reach the whole page.
        "stroke-linejoin": "round",
    }
    return tell_ids_apart(ElementTree.tostring(root, encoding="unicode"), prefix)


def follow_theme(element: ElementTree.Element) -> None:
    """Let black ink, and lines and words in another, suit the page."""
    if style := element.get("style"):
        style = style.replace("#000000", "currentColor")
        for ink, variable in INKS.items():
            if element.tag == "text" or f"stroke: {ink}" in style:
                style = style.replace(ink, variable)
        element.set("style", style)


def tell_ids_apart(svg: str, prefix: str) -> str:
    """Keep only ids that the picture refers to, each with `prefix` before it."""
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', svg))

    def kept(found: re.Match) -> str:
        return f' id="{prefix}{found[1]}"' if found[1] in used else ""

    svg = re.sub(r' id="([^"]*)"', kept, svg)
    return re.sub(r'((?:url\(|href=")#)', rf"\1{prefix}", svg)


def inline_pictures(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Replace each SVG image of a page by the picture itself."""
    pictures = [n for n in doctree.findall(nodes.image) if n["uri"].endswith(".svg")]
    for number, node in enumerate(pictures, start=1):
        file = Path(app.srcdir, node["uri"])
        if not file.exists():  # Sphinx has said so
            continue
        svg = file.read_text(encoding="utf-8")
        html = inline(svg, node.get("alt", ""), prefix=f"picture-{number}-")
        html = f'<div class="picture">{html}</div>'
        node.replace_self(nodes.raw("", html, format="html"))


def setup(app: Sphinx) -> None:
    app.connect("doctree-resolved", inline_pictures)
