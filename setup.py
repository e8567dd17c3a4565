"""What pyproject.toml cannot say: where the book lies, which only a build is told.

BOOK_REPOSITORY and BOOK_ADDRESS are those that the pages are built with. Where they are
not set, the package names no address, and the README's links to files become words.
"""

import os
import re
from pathlib import Path

from setuptools import setup


def addresses() -> dict[str, str]:
    """The links beside a package's page."""
    repository = os.environ.get("BOOK_REPOSITORY", "").rstrip("/")
    known = {
        "Homepage": os.environ.get("BOOK_ADDRESS", ""),
        "Source": repository,
        "Issues": repository and f"{repository}/issues",
        "Changelog": repository and f"{repository}/blob/main/CHANGELOG.md",
    }
    return {name: address for name, address in known.items() if address}


def readme(text: str) -> str:
    """The README for a page where no file lies beside it."""
    repository = addresses().get("Source")

    def whole(link: re.Match) -> str:
        mark, words, target = link.groups()
        if "://" in target or target.startswith("#"):
            return link[0]
        if not repository:
            return "" if mark else words
        kind = "raw" if mark else "blob"
        return f"{mark}[{words}]({repository}/{kind}/main/{target})"

    return re.sub(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", whole, text)


setup(
    project_urls=addresses(),
    long_description=readme(Path("README.md").read_text("utf-8")),
    long_description_content_type="text/markdown",
)
