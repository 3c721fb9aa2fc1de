"""Chromium for tests of HTML pages; tests that need it skip where it is not installed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

NEEDED = "needs Chromium: apt-get install chromium chromium-driver, and pip install '.[test]'"


@contextmanager
def open_chromium(width: int = 1200, height: int = 900) -> Iterator[Any]:
    """Selenium's driver of a browser without a window, which closes at the end of the block."""
    webdriver = pytest.importorskip("selenium.webdriver", reason=NEEDED)
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip(NEEDED)
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    if width < 500:  # a window cannot be that narrow
        options.add_experimental_option("mobileEmulation", {"deviceMetrics": {"width": width, "height": height}})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        browser.set_window_size(width, height)
        yield browser
    finally:
        browser.quit()
