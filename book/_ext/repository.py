"""The repository's address and buttons, where the build is told of one.

`BOOK_REPOSITORY=https://github.com/owner/name make book` adds them; without it the site
names no repository.
"""

import os

from sphinx.application import Sphinx
from sphinx.config import Config


def add_repository(app: Sphinx, config: Config) -> None:
    """Hand the address to the theme, which draws the buttons."""
    if address := os.environ.get("BOOK_REPOSITORY"):
        config.html_theme_options |= {
            "repository_url": address,
            "repository_branch": "main",
            "use_repository_button": True,
            "use_source_button": True,
            "use_issues_button": True,
        }


def setup(app: Sphinx) -> dict:
    app.connect("config-inited", add_repository)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
