"""The browser that looks at the built pages."""

import os
import shutil

import pytest
from playwright.sync_api import Page, sync_playwright

FOUND = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
CHROMIUM = next(filter(None, FOUND), None)


@pytest.fixture(scope="session")
def browser():
    if CHROMIUM is None:
        absent = "Chromium is not installed: the pages are not looked at in a browser"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(absent)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def read():
    """Open a page and wait until its script has laid out more than the first screen."""
    whole = "!document.scripts.length || 'whole' in document.documentElement.dataset"

    def read(page: Page, address: str) -> None:
        page.goto(address)
        page.wait_for_function(whole)

    return read
