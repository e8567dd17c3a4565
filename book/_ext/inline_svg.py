"""SVG pictures become part of the page: they follow its theme and cost no request.

A picture's default ink (black, or nothing said) turns into `currentColor`, so that it
is light on a dark page. The book's other inks stay where they fill an area that has
no line of that ink around it, for it may carry white words; lines, marks and words in
them become lighter on a dark page, as the style sheet says. What the picture shows in
words, its alt text, becomes the label that a screen reader speaks. Notebooks stay as
they are.
"""

import re
from pathlib import Path
from xml.etree import ElementTree

from docutils import nodes
from sphinx.application import Sphinx

BLACK = re.compile(r"\b(fill|stroke): *(#000000|#000|black)(?![0-9a-z])")
INKS = {
    "#5a62d8": "var(--picture-blue)",
    "#b3541e": "var(--picture-brown)",
    "#0f7b80": "var(--picture-teal)",
}
PLACES = ("d", "transform", "x", "y")
FINE = re.compile(r"(?<![\d.])[1-9]\d*\.\d{2,}")  # finer than a tenth of a pixel
LEGIBLE = 9.0  # the least height of words in CSS pixels; a picture scrolls before
REFERENCE = re.compile(r"(url\(#|^#)([^)]+)")
PIXELS = {"": 1.0, "px": 1.0, "pt": 4 / 3, "in": 96.0}


def inline(svg: str, label: str, prefix: str) -> str:
    """`svg` as a part of an HTML page, its ids told apart from others by `prefix`."""
    root = ElementTree.fromstring(svg)  # comments and the document type are left behind
    for parent in list(root.iter()):
        for child in list(parent):
            if local(child.tag) in ("metadata", "title", "style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = local(element.tag)
        element.attrib = {local(name): value for name, value in element.items()}
        follow_theme(element)
        lighten(element)
    tell_ids_apart(root, prefix)
    width, height = size(root)
    least = min(width, LEGIBLE / smallest(root) * view_width(root, width))
    root.attrib = {
        "viewBox": root.get("viewBox", f"0 0 {width:g} {height:g}"),
        "width": f"{width:g}",
        "height": f"{height:g}",
        "style": f"--natural-width: {width:g}px; --least-width: {least:.0f}px",
        "role": "img",
        "aria-label": label,
        "fill": "currentColor",
        # Matplotlib says these two in a style sheet, which would reach the whole page.
        "stroke-linejoin": "round",
        "stroke-linecap": "butt",
    }
    return ElementTree.tostring(root, encoding="unicode")


def local(name: str) -> str:
    """`name` without its namespace: HTML knows SVG's elements and attributes."""
    return name.rpartition("}")[2]


def follow_theme(element: ElementTree.Element) -> None:
    """Let black ink, and lines and words in another, suit the page."""
    if style := element.get("style"):
        style = BLACK.sub(r"\1: currentColor", style)
        for ink, variable in INKS.items():
            if element.tag == "text" or f"stroke: {ink}" in style:
                style = style.replace(ink, variable)
        element.set("style", style)
    for name in ("fill", "stroke"):
        if element.get(name) in ("#000000", "#000", "black"):
            element.set(name, "currentColor")


def lighten(element: ElementTree.Element) -> None:
    """Leave out what nobody can see: digits beyond the first, space between marks."""
    for name in element.attrib.keys() & set(PLACES):
        value = FINE.sub(lambda found: f"{float(found[0]):.1f}", element.get(name))
        element.set(name, " ".join(value.split()))
    if element.tag not in ("text", "tspan"):
        element.text = (element.text or "").strip()
    element.tail = (element.tail or "").strip()


def tell_ids_apart(root: ElementTree.Element, prefix: str) -> None:
    """Keep only ids that the picture refers to, each with `prefix` before it."""
    used = set()
    for element in root.iter():
        for name, value in element.items():
            if name != "id" and (found := REFERENCE.findall(value)):
                used |= {target for _, target in found}
                element.set(name, REFERENCE.sub(rf"\g<1>{prefix}\2", value))
    for element in root.iter():
        if (name := element.attrib.pop("id", None)) in used:
            element.set("id", prefix + name)


def size(root: ElementTree.Element) -> tuple[float, float]:
    """Width and height in CSS pixels; where the picture says none, its own units."""
    if "width" in root.attrib and "height" in root.attrib:
        return pixels(root.get("width")), pixels(root.get("height"))
    _, _, width, height = map(float, root.get("viewBox").split())
    return width, height


def view_width(root: ElementTree.Element, width: float) -> float:
    """The picture's width in its own units."""
    return float(root.get("viewBox", f"0 0 {width} 0").split()[2])


def smallest(root: ElementTree.Element) -> float:
    """The height of the smallest words, in the picture's own units."""
    styles = (text.get("style", "") for text in root.iter("text"))
    found = [re.search(r"font[^;]*?: *(?:\w+ )*?([\d.]+)px", style) for style in styles]
    return min((float(match[1]) for match in found if match), default=LEGIBLE)


def pixels(length: str) -> float:
    """An SVG length such as `216pt` in CSS pixels."""
    number, unit = re.fullmatch(r"([\d.]+)([a-z]*)", length).groups()
    return float(number) * PIXELS[unit]


def inline_pictures(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Replace each SVG image of a page by the picture itself."""
    if app.builder.format != "html":
        return
    pictures = [n for n in doctree.findall(nodes.image) if n["uri"].endswith(".svg")]
    for number, node in enumerate(pictures, start=1):
        file = Path(app.srcdir, node["uri"])
        if not file.exists():  # Sphinx has said so
            continue
        svg = file.read_text(encoding="utf-8")
        html = inline(svg, node.get("alt", ""), prefix=f"picture-{number}-")
        html = f'<div class="picture">{html}</div>'
        node.replace_self(nodes.raw("", html, format="html"))


def setup(app: Sphinx) -> dict:
    app.connect("doctree-resolved", inline_pictures)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
