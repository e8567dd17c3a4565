"""The browser that looks at the built pages."""

import os
import shutil

import pytest
from playwright.sync_api import sync_playwright

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
