"""The browser that looks at the built pages."""

import os
import shutil
import subprocess
from functools import cache

import pytest
import visits
from fonts import are_here, only
from playwright.sync_api import Browser, Page, expect, sync_playwright
from xdist.scheduler import LoadScopeScheduling


def starts(program: str | None) -> bool:
    """Ubuntu's package is a word of advice where its snap is not installed."""
    asked = [program, "--version"]
    return bool(program) and not subprocess.run(asked, capture_output=True).returncode


FOUND = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
CHROMIUM = next(filter(starts, FOUND), None)
BUILD_BOOKS = ("test_address.py", "test_small_book.py")  # long: no worker ends with one
VISIT_PAGES = ("test_access.py", "test_figures.py", "test_pages.py")
expect.set_options(timeout=60_000)  # what is true at once takes no time


def absent(what: str) -> None:
    """A reader's own machine passes over what it cannot run; CI has all."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(what)


@pytest.fixture(scope="session")
def start(tmp_path_factory):
    """Start the browser of a machine with these fonts (None: with all of this one)."""
    if CHROMIUM is None:
        absent("Chromium is not installed, or does not start: no page is looked at")

    @cache
    def start(fonts: str | None) -> Browser:
        env = {}
        if fonts is not None:
            env = only(fonts, tmp_path_factory.mktemp("fonts"))
            if not env:
                absent(f"the fonts {fonts} are not installed: no page is set in them")
        chromium = playwright.chromium
        return chromium.launch(executable_path=CHROMIUM, env=os.environ | env)

    try:
        playwright = sync_playwright().start()
    except Exception as error:  # whatever is missing, it only says that it has ended
        absent(f"Playwright does not start, maybe for want of libatomic1: {error}")
    yield start
    playwright.stop()  # and with it all that runs


@pytest.fixture(scope="session")
def browser(request, start) -> Browser:
    """With all fonts of this machine, or with those that a test names."""
    return start(getattr(request, "param", None))


@pytest.fixture(scope="session")
def read():
    """Open a page and wait until its script has laid out more than the first screen."""

    def read(page: Page, address: str) -> None:
        page.goto(address)
        page.wait_for_function(visits.WHOLE, timeout=visits.PATIENCE)

    return read


@pytest.fixture(scope="session", params=visits.PAGES)
def visit(request, start):
    """One page of the book, open: what a test asks of it, no other may depend on.

    It is set in wide letters: what has room in them has room in others.
    """
    wide = bool(os.environ.get("CI")) or are_here("wide")
    seen = visits.visit(request.param, start("wide" if wide else None))
    yield seen
    seen.page.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in BUILD_BOOKS)


class ByPage(LoadScopeScheduling):
    """A worker takes all that is asked of a page, and of other tests a whole file."""

    def _split_scope(self, nodeid: str) -> str:
        file, _, test = nodeid.partition("::")
        page = test.partition("[")[2].removesuffix("]")
        visits_it = file.endswith(VISIT_PAGES) and page in visits.PAGES
        return page if visits_it else file


def pytest_xdist_make_scheduler(config: pytest.Config, log) -> ByPage:
    return ByPage(config, log)
