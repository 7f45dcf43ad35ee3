"""Runs that pages show: look at their stores, and keep what pages need to be told."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from pion.errors import PionError
from pipeline.console.bug_file import report_bug
from pipeline.console.formats import printable, show
from pipeline.console.masking import masked
from pipeline.live.feed import Feed
from pipeline.report.curves import CurveKey, Point, Row, curves_of, rewound
from pipeline.report.page_data import parts_of
from pipeline.report.reading import Reading
from pipeline.report.settings import Settings
from pipeline.state.metrics import Replaced
from pipeline.state.run_state import RunState
from pipeline.state.stores import StoreError

# Seconds between two looks at a store, and the most while the store fails. The Hub limits requests.
PAUSE, LONGEST_PAUSE = 5.0, 60.0
HUB_PAUSE, LONGEST_HUB_PAUSE = 60.0, 900.0


class WatchedRun:
    """A run that one thread looks at. Any number of pages get their answers from memory."""

    def __init__(self, state: RunState) -> None:
        self.state = state
        self._reading = Reading(state)
        self._kept: Mapping[str, Sequence[Row]] = {}
        self._curves: dict[str, dict[CurveKey, list[Point]]] = {}
        self._lock = threading.Lock()  # of everything below
        self._feed = Feed()
        self._settings = Settings()
        self._looked_at: float | None = None
        self._trouble: str | None = None
        self._failures = 0

    @property
    def pause(self) -> float:
        """The seconds until the next look. Each failure of the store in a row doubles them."""
        hub = self.state.store.commits
        pause, longest = (HUB_PAUSE, LONGEST_HUB_PAUSE) if hub else (PAUSE, LONGEST_PAUSE)
        return min(longest, pause * 2.0 ** min(self._failures, 10))

    @property
    def settings(self) -> Settings:
        """The settings of the run's job, as far as they are known."""
        with self._lock:
            return self._settings

    def look(self) -> None:
        """Read what is new. If that fails, keep what was read, and tell the pages why."""
        try:
            seen = self._reading.read()
        except Replaced:
            self._begin_again()
            return
        except PionError as error:
            self.fail(str(error), back_off=isinstance(error, StoreError))
            return
        if seen is None:
            self.fail(f"{self.state.url} is not there: the run has not begun, or is away.")
            return
        parts = parts_of(seen)
        rewinds = rewound(self._kept, seen.kept, seen.head)
        for stage, rows in seen.kept.items():
            if rows != self._kept.get(stage):
                self._curves[stage] = curves_of(stage, rows)
        self._kept = seen.kept
        curves = {key: points for found in self._curves.values() for key, points in found.items()}
        with self._lock:
            self._feed.update(parts, curves, rewinds)
            self._settings = seen.settings
            self._looked_at, self._trouble, self._failures = seen.now, None, 0

    def fail(self, why: str, *, back_off: bool = False) -> None:
        """Tell the pages why a look has failed. With `back_off`, wait longer until the next."""
        with self._lock:
            self._trouble = masked(printable(why))
            self._failures += back_off

    def since(self, cursor: str | None) -> dict[str, Any]:
        """Return what a page with that cursor does not know yet."""
        with self._lock:
            return {
                "name": self.state.name,
                "url": self.state.url,
                "pause": self.pause,
                "looked_at": self._looked_at,
                "trouble": self._trouble,
                **self._feed.since(cursor),
            }

    def _begin_again(self) -> None:
        """Forget what was read: another run has this name now."""
        self._reading, self._kept, self._curves = Reading(self.state), {}, {}
        with self._lock:
            self._feed, self._settings, self._looked_at = Feed(), Settings(), None


# After a pause of this many seconds more than between two looks, a page waits for a new look.
OLD = 15.0
# A store may hang: then a page is told after this many seconds how old the last look is.
PATIENCE = 10.0


class Follower:
    """The one thread that looks at a run, however many pages ask.

    It looks only if a page has asked since its last look, so that a page that nobody has open costs
    no requests. The thread ends with the process: a store may hang.
    """

    def __init__(self, run: WatchedRun) -> None:
        self.run = run
        self._asked = threading.Event()
        self._stopped = threading.Event()
        self._looked = -math.inf  # by time.monotonic(), when the last look began
        self._thread = threading.Thread(target=self._follow, daemon=True, name="look at a run")

    def start(self) -> None:
        """Look for the first time, and then whenever a page has asked."""
        self._asked.set()
        self._thread.start()

    async def ask(self) -> None:
        """Say that a page wants to know what is new. After a pause, wait for the next look."""
        began = time.monotonic()
        self._asked.set()
        while self._looked < began - OLD - self.run.pause and time.monotonic() < began + PATIENCE:
            await asyncio.sleep(0.02)

    def stop(self) -> None:
        """End the thread after its present look. Does not wait for it."""
        self._stopped.set()
        self._asked.set()

    def _follow(self) -> None:
        while True:
            self._asked.wait()
            self._asked.clear()
            if self._stopped.is_set():
                return
            began = time.monotonic()
            try:
                self.run.look()
            except Exception as error:
                show(report_bug(error, ["status", "--web"]))
                self.run.fail("a bug in Pion; the command's window has the details", back_off=True)
            self._looked = began
            self._stopped.wait(self.run.pause)
