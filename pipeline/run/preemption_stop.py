"""When a run leaves a machine that its cloud will take: at once, or as late as its save allows."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.run.signals import StoppingOnSignals
from pipeline.training.cadence import LONG_NOTICE, seconds_to_leave


@dataclass(frozen=True)
class _Notice:
    """A machine will be taken at `end`, by time.monotonic()."""

    text: str
    end: float


class PreemptionStop:
    """Asks for a stop in time if a cloud gives notice that it will take a machine of this run.

    A context manager. After a long notice (LONG_NOTICE), the run continues until what a save and
    its commit need is left. After a short notice, and before a save was measured on this machine,
    it stops at once. Of several notices, the one with the earliest end counts.
    """

    def __init__(self, stopping: StoppingOnSignals, say: Callable[[str], None]) -> None:
        self._stopping, self._say = stopping, say
        self._changed = threading.Condition()
        self._needed: float | None = None  # seconds before the end
        self._notice: _Notice | None = None
        self._over = False

    def saved(self, stall: float | None, write: float | None) -> None:
        """Learn the seconds that a save stopped training for, and those from then to its commit."""
        if stall is None or write is None:
            return
        with self._changed:
            self._needed = seconds_to_leave(stall, write)
            self._changed.notify()

    def noticed(self, text: str, seconds: float) -> None:
        """Obey a notice, from any thread: a machine will be taken in `seconds`, as `text` says."""
        with self._changed:
            stays = seconds >= LONG_NOTICE and self._needed is not None and self._needed < seconds
            notice = _Notice(text, time.monotonic() + seconds)
            news = stays and (self._notice is None or notice.end < self._notice.end)
            if news:
                self._notice = notice
                self._changed.notify()
        if not stays:
            self._stopping.ask(text, seconds)
        elif news:
            self._say(f"{text}. Training continues, and stops in time for the last save")

    def _leave(self) -> None:
        """Wait until it is time to leave, then ask for a stop."""
        with self._changed:
            while not self._over and (left := self._seconds_left()) != 0.0:
                self._changed.wait(left)
            notice, over = self._notice, self._over
        if notice is not None and not over:
            self._stopping.ask(notice.text, max(0.0, notice.end - time.monotonic()))

    def _seconds_left(self) -> float | None:
        """Return the seconds until it is time to leave; None: it is not known yet."""
        if self._notice is None or self._needed is None:
            return None
        return max(0.0, self._notice.end - self._needed - time.monotonic())

    def __enter__(self) -> PreemptionStop:
        threading.Thread(target=self._leave, name="preemption-stop", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._over = True
            self._changed.notify()
