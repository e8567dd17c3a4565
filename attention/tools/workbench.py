"""The workbench

How this book works, and the small tools that its chapters use: `described` for
pictures with words, `visible_token` for tokens, `canvas` for drawn tensors, `step`
for what changed, `grade` for exercises, `expected` for errors.

Written by `book/tools/workbench.ipynb`: read and change it there.
"""

import difflib
import inspect
import io
import re
import textwrap
from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import TYPE_CHECKING
from unicodedata import category, is_normalized

import torch

if TYPE_CHECKING:
    import matplotlib.figure
    import matplotlib.text

__all__ = [
    "BLUE",
    "BROWN",
    "GREY",
    "TEAL",
    "canvas",
    "check_tensor",
    "check_tokens",
    "described",
    "draw_arrow",
    "draw_boxes",
    "draw_table",
    "expected",
    "grade",
    "name_width",
    "step",
    "told",
    "visible_token",
    "well_formed",
]


BLUE = "#5a62d8"  # what the picture is about
BROWN = "#b3541e"  # what it is compared with
TEAL = "#0f7b80"  # the second of two of one kind
GREY = "#8a8f98"  # what helps, or is left out


def described(
    figure: "matplotlib.figure.Figure", description: str
) -> "matplotlib.figure.Figure":
    """Give `figure` a description, shown with it, as SVG; ValueError without a word."""
    if not description.strip():
        raise expected("description", "what the figure shows, in words", "no word")
    figure._repr_mimebundle_ = partial(_as_svg, figure, well_formed(description))
    return figure


def _as_svg(figure, description, include=None, exclude=None):
    """The MIME bundle of a figure, in the form that IPython asks for."""
    from matplotlib import rc_context

    svg = io.StringIO()
    with rc_context({"svg.hashsalt": "attention", "svg.fonttype": "none"}):
        timeless = {"Date": None, "Creator": None}
        figure.savefig(
            svg, format="svg", transparent=True, bbox_inches="tight", metadata=timeless
        )
    bundle = {"image/svg+xml": well_formed(svg.getvalue()), "text/plain": description}
    return bundle, {"image/svg+xml": {"needs_background": "light"}}


_UNWRITABLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef"
    + "".join(rf"\U{plane:04x}fffe\U{plane:04x}ffff" for plane in range(17))
    + "]"
)


def well_formed(text: str) -> str:
    """`text` with U+FFFD for each character that XML or HTML cannot hold."""
    return _UNWRITABLE.sub("\ufffd", text)


_SIGNS = {"\n": "↵", "\t": "⇥", " ": "␣"}
_OTHERS = re.compile(  # our own signs, and what is printable and leaves no ink
    "[↵⇥␣∅◌⟨\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f"
    "\uffa0\U0001d159\U000e0100-\U000e01ef]"
)


def visible_token(token: str) -> str:
    """The token as it is shown: whole, on one line, and unlike any other's signs.

    A line break is ↵, a tab ⇥, a space at an end or beside another ␣, nothing ∅. What
    else leaves no ink is shown by its number, ⟨U+00A0⟩; so are these signs themselves,
    and marks that Unicode would join to their letter (normal form C).
    """
    in_pieces = not is_normalized("NFC", token)

    def sign(found: re.Match) -> str:
        letter = found[0]
        if letter in _SIGNS:
            return _SIGNS[letter]
        mark = category(letter)[0] == "M" or "\u1160" <= letter <= "\u11ff"
        alike = (in_pieces and mark) or not is_normalized("NFC", letter)
        if alike or not letter.isprintable() or _OTHERS.match(letter):
            return f"⟨U+{ord(letter):04X}⟩"
        return letter

    shown = re.sub(r"(?<!\S) | (?!\S)|[^ ]", sign, token) or "∅"
    return f"◌{shown}" if category(shown[0])[0] == "M" else shown


def check_tokens(**sides: Sequence[str]) -> None:
    """ValueError unless each side is a sequence of strings; a string is its letters."""
    must = "a sequence of str"
    for name, side in sides.items():
        if not isinstance(side, Sequence):
            raise expected(name, must, type(side).__name__)
        for place, token in enumerate(side, start=1):
            if not isinstance(token, str):
                raise expected(name, must, f"{token!r} at place {place}")


def _font():
    """The font in use, at 9 points."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties()))
    font.set_size(9, 72)
    return font


def name_width(name: str) -> float:
    """How much room a name of 9 points takes in a picture, in inches."""
    font, points = _font(), 0.0
    for code in map(ord, name):
        known = font.get_char_index(code)
        points += font.load_char(code).linearHoriAdvance / 65536 if known else 11
    return max(0.08 * len(name), points / 72)


def draw_boxes(*texts: "matplotlib.text.Text") -> None:
    """Give each letter that the font lacks a box, and no warning."""
    font = _font()
    for text in texts:
        if not all(font.get_char_index(ord(letter)) for letter in text.get_text()):
            family = [*text.get_fontfamily(), "Last Resort High-Efficiency"]
            text.set_fontfamily(family)


def canvas(
    width: int, height: int
) -> tuple["matplotlib.figure.Figure", "matplotlib.axes.Axes"]:
    """A figure and its axes to draw tensors on; the unit is a cell, y grows down."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(0.13 * width, 0.13 * height))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(height, 0))
    axes.axis("off")
    return figure, axes


def draw_table(
    axes: "matplotlib.axes.Axes",
    name: str,
    shape: Sequence[int],
    corner: tuple[int | float, int | float],
    inks: Sequence[str] = (BLUE,),
    shade: Callable[[int, int], float] = lambda row, column: 0.2,
) -> None:
    """Draw a tensor as a table of cells whose upper left corner is `corner`."""
    from matplotlib.patches import Rectangle

    (left, top), (rows, columns) = corner, shape[-2:]
    for row in range(rows):
        for column in range(columns):
            ink = inks[column * len(inks) // columns]
            cell = Rectangle((left + column, top + row), 1, 1, linewidth=0.7)
            cell.set(edgecolor=ink, facecolor=(ink, shade(row, column)))
            axes.add_patch(cell)
    place = {"x": left + columns / 2, "ha": "center", "fontsize": 9}
    axes.text(y=top - 0.4, s=name, va="bottom", **place)
    size = " × ".join(map(str, shape))
    axes.text(y=top + rows + 0.3, s=size, va="top", **place)


def draw_arrow(
    axes: "matplotlib.axes.Axes",
    start: tuple[int | float, int | float],
    end: tuple[int | float, int | float],
    words: str = "",
) -> None:
    """Draw an arrow, with `words` over its middle."""
    line = {"arrowstyle": "-|>", "color": GREY, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", end, start, arrowprops=line)
    x, y = (start[0] + end[0]) / 2, (start[1] + end[1]) / 2
    axes.text(x, y - 0.2, words, ha="center", va="bottom", fontsize=9)


def step(before: Callable | type, after: Callable | type) -> str:
    """The lines that turn the source of `before` into that of `after`.

    A line that starts with `-` is removed, one with `+` is added; for a class,
    its plain methods are compared, in the order in which it defines them.
    """
    old, new = (_source(thing).splitlines() for thing in (before, after))
    return "\n".join(list(difflib.unified_diff(old, new, lineterm="", n=1))[2:])


def _source(thing: Callable | type) -> str:
    """The text of a function, or of the methods of a class."""
    if not inspect.isclass(thing):
        return textwrap.dedent(inspect.getsource(thing))
    methods = [method for method in vars(thing).values() if inspect.isfunction(method)]
    return "\n".join(_source(method) for method in methods)


def grade(check: Callable[[Callable], None], answer: Callable) -> None:
    """Run `check` on `answer` and print whether it passed, or what is missing."""
    given = []  # by the last call of the answer; nothing while it runs

    @wraps(answer)
    def noted(*inputs, **options):
        given.clear()
        given.append(answer(*inputs, **options))
        return given[0]

    try:
        check(noted if inspect.isfunction(answer) else answer)  # a kernel is not
    except Exception as error:  # a half-written answer may fail in any way
        print(f"not yet: {_missing(error, *given)}")
    else:
        name = getattr(answer, "__name__", type(answer).__name__)  # a partial has none
        print(f"{name}: passed")


def _missing(error: Exception, given: object = None) -> str:
    """The error in words, and what the answer gave if the check stumbled over that."""
    said, kind = str(error), type(error).__name__
    in_words = isinstance(error, AssertionError | NotImplementedError)
    no_such = isinstance(error, AttributeError) and error.name
    if no_such and hasattr(torch.Tensor, error.name):
        said = f"expected a torch.Tensor, got {type(error.obj).__name__}: {said}"
    elif not in_words:
        said = f"{kind}: {said}"
    if "NoneType" in said:
        return f"{said}; is a `return` missing?"
    is_tensor = isinstance(given, torch.Tensor)
    is_array = getattr(given, "ndim", 0) > 0 and not is_tensor
    is_data = is_tensor or isinstance(given, list | tuple | dict | str | int | float)
    if is_array or (is_data and not in_words and not no_such):
        came = told(given) if is_tensor else type(given).__name__
        said = f"{said}; the answer gave {came}"
    return said or kind


def expected(name: str, must: object, got: object) -> ValueError:
    """The error for an argument that does not fit: what was expected, what came.

    A tensor is described by its dtype, shape and device.
    """
    return ValueError(f"{name}: expected {must}, got {told(got)}")


def told(thing: object) -> str:
    """A tensor in words: its dtype, shape and device; all else as it prints."""
    if isinstance(thing, torch.Tensor):
        return f"{thing.dtype} {tuple(thing.shape)} on {thing.device}"
    return str(thing)


def check_tensor(**arguments: object) -> None:
    """TypeError unless these are dense tensors; it says how a list becomes one."""
    for name, thing in arguments.items():
        if not isinstance(thing, torch.Tensor):
            came = f"expected a torch.Tensor, got {type(thing).__name__}"
            can = isinstance(thing, list | tuple) or hasattr(thing, "__array__")
            how = f"; torch.as_tensor({name}) makes one" if can else ""
            raise TypeError(f"{name}: {came}{how}")
        if thing.layout != torch.strided or thing.is_nested:
            kind = "a nested one" if thing.is_nested else thing.layout
            raise TypeError(f"{name}: expected a dense tensor, got {kind}")
