"""The browser that looks at the built pages."""

import os
import shutil
from functools import cache

import pytest
from fonts import only
from playwright.sync_api import Browser, Page, sync_playwright

FOUND = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
CHROMIUM = next(filter(None, FOUND), None)
# The theme hears of new colours, and what scrolls gets its tab stop when it is drawn in
# its new size.
SETTLED = """async ([width, theme]) => {
    await document.fonts.ready;
    const boxes = "article :is(pre, .picture, .pst-scrollable-table-container)";
    return innerWidth === width && document.documentElement.dataset.theme === theme
        && [...document.querySelectorAll(boxes)].every(box =>
            box.scrollWidth <= box.clientWidth || box.tabIndex === 0);
}"""


def absent(what: str) -> None:
    """A reader's own machine passes over what it cannot run; CI has all."""
    (pytest.fail if os.environ.get("CI") else pytest.skip)(what)


@pytest.fixture(scope="session")
def start(tmp_path_factory):
    """Start the browser of a machine with these fonts (None: with all of this one)."""
    if CHROMIUM is None:
        absent("Chromium is not installed: the pages are not looked at in a browser")

    @cache
    def start(fonts: str | None) -> Browser:
        env = {}
        if fonts is not None:
            env = only(fonts, tmp_path_factory.mktemp("fonts"))
            if not env:
                absent(f"the fonts {fonts} are not installed: no page is set in them")
        chromium = playwright.chromium
        return chromium.launch(executable_path=CHROMIUM, env=os.environ | env)

    with sync_playwright() as playwright:
        yield start  # what runs ends with the driver


@pytest.fixture(scope="session")
def browser(request, start) -> Browser:
    """With all fonts of this machine, or with those that a test names."""
    return start(getattr(request, "param", None))


@pytest.fixture(scope="session")
def read():
    """Open a page and wait until its script has laid out more than the first screen."""
    whole = "!document.scripts.length || 'whole' in document.documentElement.dataset"

    def read(page: Page, address: str) -> None:
        page.goto(address)
        page.wait_for_function(whole)

    return read


@pytest.fixture(scope="session")
def view():
    """See a page in this width and these colours, when it has come to rest in them."""

    def view(page: Page, width: int, theme: str) -> None:
        page.set_viewport_size({"width": width, "height": 844})
        page.emulate_media(color_scheme=theme)
        page.wait_for_function(SETTLED, arg=[width, theme])

    return view
