"""A page's picture for where its link is shared: its title beside its own first map.

The squares are read from the chapter's stored figure, so they are true; a page without
a map takes the book's first one.
"""

import json
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

SIZE = (1200, 630)
PAPER, TEXT, MUTED, INK = "#ffffff", "#1c1e26", "#5b6070", "#4a52c4"
FONTS = Path(find_spec("matplotlib").origin).parent / "mpl-data/fonts/ttf"
LEAST = 9  # squares that make a map

Square = tuple[float, float, float, float, str, float]
PATH = re.compile(
    r'<path d="M ([\d.]+) ([\d.]+) L [\d. ]+ L ([\d.]+) ([\d.]+) L [\d. ]+ z "'
    r' clip-path="([^"]*)" style="fill: (#[0-9a-f]{6})(?:; opacity: ([\d.]+))?"'
)


def squares(svg: str) -> list[Square]:
    """The filled cells of the first map that matplotlib drew: corners, ink, opacity."""
    maps = {}  # by the frame that cuts them off
    for *corners, frame, ink, opacity in PATH.findall(" ".join(svg.split())):
        square = (*map(float, corners), ink, float(opacity or 1))
        maps.setdefault(frame, []).append(square)
    return next((found for found in maps.values() if len(found) >= LEAST), [])


def first_map(chapter: Path) -> list[Square]:
    """The squares of the first map that a chapter stores; none without one."""
    return next(filter(None, map(squares, pictures(chapter))), [])


def pictures(chapter: Path) -> Iterator[str]:
    if chapter.exists():
        for cell in json.loads(chapter.read_text("utf-8"))["cells"]:
            for output in cell.get("outputs", []):
                yield "".join(output.get("data", {}).get("image/svg+xml", ""))


def draw(title: str, lead: str, cells: list[Square], book: str) -> Image.Image:
    """Title and lead on the left, the map on the right."""
    image = Image.new("RGB", SIZE, PAPER)
    pen = ImageDraw.Draw(image)
    y = 84
    for text, size, color, bold in (
        (book, 26, INK, True),
        (title, 60, TEXT, True),
        (lead, 28, MUTED, False),
    ):
        font = ImageFont.truetype(FONTS / f"DejaVuSans{'-Bold' * bold}.ttf", size)
        for row in wrapped(text, font, width=640)[: (600 - y) // (size + 12)]:
            pen.text((70, y), row, color, font)
            y += size + 12
        y += 22
    draw_map(pen, cells, left=770, top=125, side=380)
    return image.quantize(64)


def wrapped(text: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    rows = [""]
    for word in text.split():
        longer = f"{rows[-1]} {word}".strip()
        if font.getlength(longer) <= width or not rows[-1]:
            rows[-1] = longer
        else:
            rows.append(word)
    return rows


def draw_map(pen, cells: list[Square], left: int, top: int, side: int) -> None:
    """The squares, scaled to fit, on faint ones where nothing may or does look."""
    low = [min(min(cell[k], cell[k + 2]) for cell in cells) for k in (0, 1)]
    high = [max(max(cell[k], cell[k + 2]) for cell in cells) for k in (0, 1)]
    scale = side / max(b - a for a, b in zip(low, high, strict=True))
    slack = [(side - scale * (b - a)) / 2 for a, b in zip(low, high, strict=True)]
    columns, rows = ({(cell[k], cell[k + 2]) for cell in cells} for k in (0, 1))
    empty = [(x0, y0, x1, y1, INK, 0.06) for x0, x1 in columns for y0, y1 in rows]
    for x0, y0, x1, y1, ink, opacity in [*empty, *cells]:
        xs = sorted(left + slack[0] + scale * (x - low[0]) for x in (x0, x1))
        ys = sorted(top + slack[1] + scale * (y - low[1]) for y in (y0, y1))
        pen.rectangle((xs[0], ys[0], xs[1], ys[1]), mixed(ink, max(opacity, 0.06)))


def mixed(ink: str, opacity: float) -> tuple[int, ...]:
    parts = (int(ink[k : k + 2], 16) for k in (1, 3, 5))
    return tuple(round(255 + opacity * (part - 255)) for part in parts)
