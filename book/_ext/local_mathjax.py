"""Formulas without a network: MathJax beside the pages, from sphinx-mathjax-offline.

That package is 24 MB, and its own extension copies all of it. Two pieces of 1.8 MB
suffice: TeX with all its extensions in one script, and the fonts that it draws with.
"""

from importlib.metadata import distribution
from pathlib import Path
from shutil import copy2, copytree

from sphinx.application import Sphinx

SCRIPT = "tex-chtml-full.js"
FONTS = "output/chtml/fonts/woff-v2"  # where the script looks for them, beside itself


def copy_mathjax(app: Sphinx, error: Exception | None) -> None:
    """Put script and fonts where `mathjax_path` says they lie."""
    if error is None and app.builder.format == "html":
        package = distribution("sphinx-mathjax-offline")
        source = Path(package.locate_file("sphinx-mathjax-offline/static/mathjax"))
        target = Path(app.outdir, "_static", "mathjax")
        copytree(source / FONTS, target / FONTS, dirs_exist_ok=True)
        copy2(source / SCRIPT, target / SCRIPT)


def setup(app: Sphinx) -> dict:
    app.config.mathjax_path = f"mathjax/{SCRIPT}"
    app.connect("build-finished", copy_mathjax)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
