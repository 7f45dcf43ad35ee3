"""Runs that pages show: look at their stores, and keep what pages are told."""

from __future__ import annotations

import asyncio
import math
import re
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pion.errors import BadInput, PionError
from pipeline.console.bug_file import report_bug
from pipeline.console.formats import printable, show
from pipeline.console.masking import masked
from pipeline.job import Job
from pipeline.report.curves import LONGEST_NAME, MOST_NAMES, Point, curves_of
from pipeline.report.history import Row
from pipeline.report.page_data import page_data
from pipeline.report.reading import HistoryReader, Replaced
from pipeline.state.rows.metrics import LAST_STEP
from pipeline.state.run_state import RunState
from pipeline.state.stores import StoreError

_NAME = re.compile(rf"\w{{1,{LONGEST_NAME}}}(\.[\w.+=@-]{{1,100}})?", re.ASCII)
_RANGE = re.compile(r"(\d{1,19})-(\d{1,19})", re.ASCII)


@dataclass(frozen=True)
class View:
    """Which curves a page draws: those of one stage, and of each run the steps, or None for all.

    A page asks for it in the query of its address, with a range for each run, in the order of the
    runs: data?stage=pretrain&names=loss,held_out_loss&steps=100-2000, (an empty range is the whole
    curve).
    """

    stage: str = ""
    names: tuple[str, ...] = ()
    steps: tuple[range | None, ...] = ()


def view_of(query: Mapping[str, str], runs: int) -> View:
    """Return what a page of so many runs asks for. Raises BadInput for what no page sends."""
    names = tuple(filter(None, query.get("names", "").split(",")))
    if len(names) > MOST_NAMES or not all(map(_NAME.fullmatch, names)):
        raise BadInput(f"names has at most {MOST_NAMES} names of curves, with commas between them")
    asked = query.get("steps", "," * (runs - 1)).split(",")
    if len(asked) != runs:
        raise BadInput(f"steps has {len(asked)} ranges, and the page has {runs} runs")
    return View(query.get("stage", ""), names, tuple(map(_range, asked)))


def _range(text: str) -> range | None:
    if not text:
        return None
    found = _RANGE.fullmatch(text)
    if found is None or int(found[2]) > LAST_STEP:
        raise BadInput("a range of steps is two numbers: 100-2000")
    return range(int(found[1]), int(found[2]) + 1)


# Seconds between two looks at a store, and the most while the store fails. The Hub limits requests.
PAUSE, LONGEST_PAUSE = 5.0, 60.0
HUB_PAUSE, LONGEST_HUB_PAUSE = 60.0, 900.0


class WatchedRun:
    """A run that one thread looks at. Any number of pages get their answers from memory.

    Attributes:
        job: the run's job, if it is known.
        changes: how often what pages show of the run may have changed. It is counted last, so
            whoever sees a new number gets what has changed.
    """

    def __init__(self, state: RunState) -> None:
        self.state = state
        self.job: Job | None = None
        self.changes = 0
        self._reader = HistoryReader(state)
        self._rows: Mapping[str, Sequence[Row]] = {}
        self._data: dict[str, Any] = {}
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
    def age(self) -> float | None:
        """The seconds since the last look that succeeded; None before that."""
        at = self._looked_at
        return None if at is None else max(0.0, self.state.clock.now() - at)

    def look(self) -> None:
        """Read what is new. If that fails, keep what was read, and tell the pages why."""
        try:
            history = self._reader.read()
        except Replaced:  # another run has this name now
            self._reader, self._rows = HistoryReader(self.state), {}
            self._data, self.job, self._looked_at = {}, None, None
            self.changes += 1
            return
        except PionError as error:
            self.fail(str(error), back_off=isinstance(error, StoreError))
            return
        if history is None:
            self.fail(f"{self.state.url} is not there: the run has not begun, or is away.")
            return
        self._rows = history.metrics
        self._data, self.job = page_data(history), history.known_job
        self._looked_at, self._trouble, self._failures = history.now, None, 0
        self.changes += 1

    def fail(self, why: str, *, back_off: bool = False) -> None:
        """Tell the pages why a look has failed. With `back_off`, wait longer until the next."""
        self._trouble = masked(printable(why))
        self._failures += back_off
        self.changes += 1

    def told(self) -> dict[str, Any]:
        """Return what pages show of the run; without a look, only its name and what is wrong."""
        return {
            "name": self.state.name,
            "url": self.state.url,
            "trouble": self._trouble,
            **self._data,
        }

    def curves(self, view: View, steps: range | None) -> dict[str, dict[str, list[Point]]]:
        """Return the points that a page draws, by stage and name; of `steps`, or of all."""
        found = curves_of(self._rows.get(view.stage, ()), view.names, steps)
        return {view.stage: found} if found else {}


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
