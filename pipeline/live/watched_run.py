"""One run that pages show: look at its store, and keep what pages need to be told."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

from pion.errors import PionError
from pipeline.console.formats import printable
from pipeline.console.masking import masked
from pipeline.live.feed import Feed
from pipeline.report.curves import CurveKey, Row, curves_of, rewound
from pipeline.report.page_data import parts_of
from pipeline.report.reading import Reading
from pipeline.report.settings import Settings
from pipeline.report.thin import Point
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
