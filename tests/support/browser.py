"""A real browser for the tests of pages: Debian's chromium, driven by Playwright."""

import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.support.waiting import PATIENCE_SECONDS

WIDE = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def _missing() -> str | None:
    if importlib.util.find_spec("playwright") is None:
        return "playwright is not installed"
    return None if CHROMIUM else "there is no chromium here (apt-get install chromium)"


needs_chromium = pytest.mark.skipif(_missing() is not None, reason=str(_missing()))


@contextmanager
def chromium() -> Iterator[Any]:
    """Start the browser; end it with the block. Nothing is downloaded."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Tab:
    """A tab with a page of runs. `wrong` has what it says to the console, and what it asks others.

    It asks its own server again after at most `poll` milliseconds.
    """

    def __init__(self, browser: Any, url: str, *, poll: int = 100, **options: Any) -> None:
        self.wrong: list[str] = []
        self.page = browser.new_page(**{"viewport": WIDE, **options})
        self.page.set_default_timeout(1000 * PATIENCE_SECONDS)
        quick = f"const later = setTimeout; setTimeout = (f, ms) => later(f, Math.min(ms, {poll}));"
        self.page.add_init_script(quick)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("console", lambda message: self.wrong.append(message.text))
        self.page.on("request", lambda request: self._asked(request.url, url))
        self.page.goto(url)

    def _asked(self, address: str, url: str) -> None:
        if not address.startswith((url, "data:")):
            self.wrong.append(address)

    def wait_for(self, selector: str, text: str) -> None:
        """Wait until an element with that text is on the page."""
        self.page.wait_for_selector(f"{selector}:has-text({text!r})")

    def wait_for_count(self, selector: str, count: int) -> None:
        """Wait until so many elements are on the page."""
        all_there = "([selector, n]) => document.querySelectorAll(selector).length === n"
        self.page.wait_for_function(all_there, arg=[selector, count])

    def width(self) -> int:
        """Return how wide the page is, with what can only be scrolled to."""
        return int(self.page.evaluate("document.documentElement.scrollWidth"))

    def close(self) -> None:
        """Close the tab, in which nothing was wrong."""
        assert self.wrong == []
        self.page.close()
