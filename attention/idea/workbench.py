"""The workbench

How this book works, and the three small tools that every chapter uses: `described`
for pictures with words, `step` for what changed, `grade` for exercises.

Written by `book/idea/workbench.ipynb`: read and change it there.
"""

import difflib
import inspect
import io
import textwrap
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import matplotlib.figure

__all__ = ["described", "grade", "step"]


def described(
    figure: "matplotlib.figure.Figure", description: str
) -> "matplotlib.figure.Figure":
    """Give `figure` a description; a notebook shows it as SVG together with it."""
    if not description.strip():
        raise ValueError("a figure needs a description in words, came an empty one")
    figure._repr_mimebundle_ = partial(_as_svg, figure, description)
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
    bundle = {"image/svg+xml": svg.getvalue(), "text/plain": description}
    return bundle, {"image/svg+xml": {"needs_background": "light"}}


def step(before: Callable | type, after: Callable | type) -> str:
    """The lines that turn the source of `before` into that of `after`.

    A line that starts with `-` goes, one that starts with `+` comes; of a class
    the methods are compared, in the order in which it defines them.
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
    try:
        check(answer)
    except Exception as error:  # a half-written answer may fail in any way
        print(f"not yet: {str(error) or type(error).__name__}")
    else:
        print(f"{answer.__name__}: passed")
