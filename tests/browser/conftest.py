"""Headless Chromium, and what a page did in it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium")

# The receiver's helpers.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "telemetry"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    missing = pytest.mark.skip(reason="needs chromium; `make test-full` insists on it")
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.runtime)
            if CHROMIUM is None:
                item.add_marker(missing)


# Its event loop runs as long as it lives: other modules' tests in this process have their own.
@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # In a container, as root, Chromium has no sandbox to be in.
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


class Opened:
    """Opens pages; keeps what their consoles said and what they asked for."""

    def __init__(self, browser: Any) -> None:
        self._browser = browser

    def __call__(self, url: str, **how: Any) -> tuple[Any, list[str], list[str]]:
        """The page, what its console said, and what it asked for; data: left out."""
        page = self._browser.new_context(**how).new_page()
        said: list[str] = []
        asked: list[str] = []

        def note(request: Any) -> None:
            if not request.url.startswith("data:"):
                asked.append(request.url)

        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.on("requestfailed", lambda request: said.append(f"failed: {request.url[:80]}"))
        page.on("request", note)
        page.goto(url)
        return page, said, asked


@pytest.fixture
def opened(browser: Any) -> Opened:
    return Opened(browser)
