"""The page of `pion serve` in a tab of a real browser, and what tests do with it."""

import os
import time
from pathlib import Path

from pion.generation.decoding import Decoding
from tests.support.waiting import PATIENCE_SECONDS

PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True}
KEY = "0123456789abcdef"
# A script of axe-core, as `npm pack axe-core` has it: axe.min.js.
AXE = os.environ.get("PION_AXE")


class Page:
    """A tab with the page. What a page must not do is collected in `wrong`."""

    def __init__(self, browser, url, **settings):
        self.url, self.wrong = url, []
        self.context = browser.new_context(**settings)
        self.tab = self.context.new_page()
        self.tab.set_default_timeout(1000 * PATIENCE_SECONDS)
        self.tab.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.tab.on("console", self._said)
        self.tab.on("request", self._requested)
        self.tab.goto(url)

    def _said(self, message):
        # A status that is no success is also written to the console. The page shows it.
        if message.type in ("error", "warning") and "Failed to load resource" not in message.text:
            self.wrong.append(message.text)

    def _requested(self, request):
        if not request.url.startswith((self.url, "data:", "blob:")) or KEY in request.url:
            self.wrong.append(request.url)

    def ready(self):
        self.tab.wait_for_selector("#about:not(:empty)")
        return self

    def set(self, **settings):
        """Move sliders."""
        for name, value in settings.items():
            self.tab.evaluate(
                "([id, value]) => {"
                " $(id).value = value; $(id).dispatchEvent(new Event('input')); }",
                [name, value],
            )

    def send(self, text):
        self.tab.fill("#input", text)
        self.tab.click("#send")
        self.wait()

    def wait(self):
        """Wait until nothing is being written."""
        self.tab.wait_for_selector("#send:not([hidden])")

    def answers(self):
        found = self.tab.evaluate(
            "[...document.querySelectorAll('.answer .text')].map((text) => text.textContent)"
        )
        return found

    def press(self, name, turn=-1):
        self.tab.locator(".turn").nth(turn).get_by_role(
            "button", name=name, exact=True
        ).first.click()

    def violations(self):
        """Return the rules of axe-core that the page breaks; none without a copy of axe-core."""
        if AXE is None:
            return []
        self.tab.evaluate(Path(AXE).read_text())
        found = self.tab.evaluate(
            "axe.run().then((result) => result.violations.map((one) => one.id))"
        )
        return found

    def close(self):
        self.context.close()
        assert self.wrong == []


STEP = Decoding.step


def slowly(*arguments):
    """Do a step of decoding, so slowly that a test can act before the answer ends."""
    time.sleep(0.05)
    STEP(*arguments)
