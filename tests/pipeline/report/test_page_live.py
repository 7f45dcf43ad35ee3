"""The page in a real browser: it follows runs, says what is wrong, and asks nobody else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.live import watched_run
from pipeline.state.notes.deadline import Asked, new_deadline, write_first_deadline
from pipeline.state.notes.watcher_beat import Saw, write_beat
from pipeline.state.stores import FileStore
from pipeline.web.address import API_KEY
from tests.support.browser import needs_chromium
from tests.support.contrast import CONTRAST
from tests.support.live_page import showing
from tests.support.rented_run import RentedRun

pytestmark = needs_chromium

# The page asks again after this many milliseconds, instead of five seconds.
POLL = 100
KEY = "0123456789abcdef"


@pytest.fixture(autouse=True)
def _quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched_run, "PAUSE", 0.05)
    monkeypatch.setattr(watched_run, "LONGEST_PAUSE", 0.1)


class Tab:
    """A tab of the browser, which asks again each `poll` milliseconds.

    `wrong` has its errors and its requests to other servers.
    """

    def __init__(self, browser: Any, url: str, *, poll: int = POLL, **options: Any) -> None:
        self.wrong: list[str] = []
        self.page = browser.new_page(**{"viewport": {"width": 1200, "height": 900}, **options})
        quick = f"const later = setTimeout; setTimeout = (f, ms) => later(f, Math.min(ms, {poll}));"
        self.page.add_init_script(quick)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("console", self._heard)
        self.page.on("request", lambda request: self._asked(request.url, url))
        self.page.goto(url)

    def _heard(self, message: Any) -> None:
        if message.type in ("error", "warning"):
            self.wrong.append(message.text)

    def _asked(self, address: str, url: str) -> None:
        if not address.startswith((url, "data:")):
            self.wrong.append(address)

    def wait_for(self, selector: str, text: str) -> None:
        """Wait until an element with that text is on the page."""
        self.page.wait_for_selector(f"{selector}:has-text({text!r})")


def a_run(folder: Path, name: str = "demo", lr: float = 3e-4) -> RentedRun:
    run = RentedRun(FileStore(folder / "runs"), name, steps=100, lr=lr)
    run.rent()
    run.train(50)
    run.save()
    run.rent("RTX 4090")
    run.train(10)
    return run


def test_the_page_follows_a_run_through_a_store_that_goes_away(
    browser: Any, tmp_path: Path
) -> None:
    run = a_run(tmp_path)
    events = run.events()
    events.append("note", why="<img src=x onerror=alert(1)>")
    events.flush()
    asked = Asked(hours=1.0, at=None, margin=60)
    write_first_deadline(run.state, new_deadline(asked, "pion launch", run.state.clock.now()))
    saw = Saw(state="arming", slack=-60.0, reserve=2700.0, work_left=3000.0)
    write_beat(run.state, None, saw)
    with showing(run) as url:
        tab = Tab(browser, url)
        tab.wait_for("#tiles", "60")
        tab.wait_for("#tiles", "Deadline")
        tab.wait_for("#tiles", "requesting a machine on demand; 50 min 00 s of work left, no slack")
        tab.wait_for("#machines", "RTX 4090 on RunPod/CA, spot")
        tab.wait_for("#events", "<img src=x onerror=alert(1)>")
        assert tab.page.locator("[data-metric=loss] path").count() == 3
        assert tab.page.locator("[data-metric=loss] .attempt").count() == 1
        run.train(5)
        tab.wait_for("#tiles", "65")
        folder = tmp_path / "runs" / "demo"
        away = folder.rename(tmp_path / "away")
        tab.wait_for("#trouble", "is not there")
        away.rename(folder)
        tab.page.wait_for_selector("#trouble", state="hidden")
        run.train(35)
        run.finish()
        tab.wait_for("#tiles div:first-child dd", "Done")
        tab.wait_for("#tiles", "met, ")
        assert not tab.wrong
    tab.wait_for("#trouble", "does not answer")
    assert "Done" in tab.page.inner_text("#tiles")
    tab.page.close()


@pytest.mark.soak
def test_the_read_out_and_all_controls_work_with_the_keyboard(browser: Any, tmp_path: Path) -> None:
    with showing(a_run(tmp_path)) as url:
        tab = Tab(browser, url)
        page = tab.page
        page.wait_for_selector("[data-metric=loss] path")
        page.focus("#smoothing")
        before = page.get_attribute("[data-metric=loss] path.line:not(.raw)", "d")
        page.keyboard.press("Home")
        assert page.get_attribute("[data-metric=loss] path.line:not(.raw)", "d") != before
        page.keyboard.press("Tab")
        page.keyboard.press("Space")
        assert page.is_checked("#log")
        for _ in range(5):  # the zoom, the choice of charts, and the chart's files
            page.keyboard.press("Tab")
        page.keyboard.press("Tab")
        page.keyboard.press("Home")
        assert "step 1\n" in page.inner_text("[data-metric=loss] .readout")
        for _ in range(3):
            page.keyboard.press("ArrowRight")
        assert "step 4\n" in page.inner_text("[data-metric=loss] .readout")
        page.keyboard.press("Tab")
        assert page.is_hidden("[data-metric=loss] .readout")
        assert not tab.wrong
        page.close()


@pytest.mark.soak
def test_the_read_out_shows_each_point_as_it_was_measured(browser: Any, tmp_path: Path) -> None:
    run = a_run(tmp_path)
    run.train(3)
    with showing(run) as url:
        tab = Tab(browser, url)
        tab.page.wait_for_selector("[data-metric=loss] path")
        curves = tab.page.evaluate("known.runs[0].curves.pretrain")
        loss, held = (
            {step: value for step, value, _ in curves[name]} for name in ("loss", "held_out_loss")
        )
        # By the arrow keys, and by positions of the pointer next to each point.
        read = "charts.get('loss').read(n + side); return charts.get('loss').readout.innerText;"
        arrow = (
            "charts.get('loss').key({key: n > 1 ? 'ArrowRight' : 'Home', preventDefault() {}}); "
            "return charts.get('loss').readout.innerText;"
        )
        for side, act in ((0, arrow), (-0.4, read), (0.4, read)):
            script = f"(side) => [...Array(63)].map((_, i) => {{ const n = i + 1; {act} }})"
            texts = tab.page.evaluate(script, side)
            for step, text in enumerate(texts, 1):
                assert text.startswith(f"step {step}\n")
                assert f"training\n{loss[step]:.4f}" in text
                nearest = min(held, key=lambda at, step=step: abs(at - step))
                label = "held-out" if nearest == step else f"held-out, step {nearest}"
                shown = f"{label}\n{held[nearest]:.4f}" in text
                assert shown == (min(held) <= step <= max(held)), text
        assert "(smoothed " in texts[30]
        assert not tab.wrong
        tab.page.close()


@pytest.mark.parametrize("scheme", ["light", pytest.param("dark", marks=pytest.mark.soak)])
def test_two_runs_fit_on_a_phone_and_can_be_read(scheme: str, browser: Any, tmp_path: Path) -> None:
    runs = [a_run(tmp_path, "slow", 1e-4), a_run(tmp_path, "fast", 2e-4)]
    with showing(*runs) as url:
        phone = {"width": 390, "height": 844}
        tab = Tab(browser, url, color_scheme=scheme, viewport=phone, has_touch=True)
        tab.wait_for("#settings", "pretrain.lr")
        tab.page.wait_for_selector("[data-metric=loss] path")
        assert tab.page.locator("[data-metric=loss] path").count() == 6
        tab.page.uncheck("#curves-0")
        assert tab.page.locator("[data-metric=loss] path").count() == 3
        tab.page.tap("#run-1")
        tab.wait_for("#runs button[aria-pressed=true]", "fast")
        assert tab.page.evaluate("document.documentElement.scrollWidth") == 390
        least, text, count = tab.page.evaluate(CONTRAST)
        assert least >= 4.5, text
        assert count > 100
        assert not tab.wrong
        tab.page.close()


def test_the_page_asks_for_the_key_and_sends_it_in_no_address(
    browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(API_KEY, KEY)
    with showing(a_run(tmp_path)) as url:
        tab = Tab(browser, url)
        asked: list[str] = []
        tab.page.on("request", lambda request: asked.append(request.url))
        tab.page.fill("#key", "another-key")
        tab.page.keyboard.press("Enter")
        tab.wait_for("#trouble", "not the key")
        tab.page.fill("#key", KEY)
        tab.page.keyboard.press("Enter")
        tab.wait_for("#tiles", "60")
        assert tab.page.is_hidden("#key-form")
        assert not any(KEY in address for address in asked)
        tab.page.close()
