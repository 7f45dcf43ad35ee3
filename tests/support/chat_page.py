"""The page of `pion serve` in a tab of a real browser, and what tests do with it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from pion.generation.decoding import Decoding
from tests.support.waiting import PATIENCE_SECONDS

PHONE: dict[str, Any] = {"viewport": {"width": 390, "height": 844}, "has_touch": True}
KEY = "0123456789abcdef"
# A script of axe-core, as `npm pack axe-core` has it: axe.min.js.
AXE = os.environ.get("PION_AXE")


class Page:
    """A tab with the page. What a page must not do is collected in `wrong`."""

    def __init__(self, browser: Any, url: str, **settings: Any) -> None:
        self.url, self.wrong = url, []
        self.context = browser.new_context(**settings)
        self.tab = self.context.new_page()
        self.tab.set_default_timeout(1000 * PATIENCE_SECONDS)
        self.tab.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.tab.on("console", self._said)
        self.tab.on("request", self._requested)
        self.tab.goto(url)

    wrong: list[str]

    def _said(self, message: Any) -> None:
        # A status that is no success is also written to the console. The page shows it.
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            self.wrong.append(message.text)

    def _requested(self, request: Any) -> None:
        if not request.url.startswith((self.url, "data:", "blob:")) or KEY in request.url:
            self.wrong.append(request.url)

    def ready(self) -> Page:
        self.tab.wait_for_selector("#about:not(:empty)")
        return self

    def set(self, **settings: float) -> None:
        """Move sliders."""
        for name, value in settings.items():
            self.tab.evaluate(
                "([id, value]) => {"
                " $(id).value = value; $(id).dispatchEvent(new Event('input')); }",
                [name, value],
            )

    def send(self, text: str) -> None:
        self.tab.fill("#input", text)
        self.tab.click("#send")
        self.wait()

    def wait(self) -> None:
        """Wait until nothing is being written."""
        self.tab.wait_for_selector("#send:not([hidden])")

    def answers(self) -> list[str]:
        found: list[str] = self.tab.evaluate(
            "[...document.querySelectorAll('.answer .text')].map((text) => text.textContent)"
        )
        return found

    def press(self, name: str, turn: int = -1) -> None:
        self.tab.locator(".turn").nth(turn).get_by_role(
            "button", name=name, exact=True
        ).first.click()

    def violations(self) -> list[str]:
        """Return the rules of axe-core that the page breaks; none without a copy of axe-core."""
        if AXE is None:
            return []
        self.tab.evaluate(Path(AXE).read_text())
        found: list[str] = self.tab.evaluate(
            "axe.run().then((result) => result.violations.map((one) => one.id))"
        )
        return found

    def close(self) -> None:
        self.context.close()
        assert self.wrong == []


STEP = Decoding.step


def slowly(*arguments: Any) -> None:
    """Do a step of decoding, so slowly that a test can act before the answer ends."""
    time.sleep(0.05)
    STEP(*arguments)
