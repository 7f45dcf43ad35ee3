"""Notice a hang: training makes no step for many times the duration of a usual step, or `pion run`
does nothing for half an hour (run/journal.py says so).

A rank may never join a collective operation, or the GPU's driver or a file system may not answer.
Then nothing raises, and a rented machine keeps costing money. The watchdog records where every
thread is and lets its owner end the process. A call that holds the GIL blocks the watchdog too.
"""

from __future__ import annotations

import faulthandler
import os
import statistics
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# The usual interval between beats is the median of this many intervals.
REMEMBERED = 64


class Watchdog:
    """Calls `on_hang` once, when neither `beat` nor `progress` was called for too long.

    A thread checks every `period` seconds, once `start` was called.

    The limit is `factor` times the usual interval, and at least `at_least` seconds. Before the
    first two beats, while things are read and compiled, it is `start_limit` seconds. `now` is a
    clock that must not jump. A suspended process does not hang: if the watchdog itself was late to
    check, counting starts again.

    `on_hang` gets a text: for how long nothing of `missed` came, the stack of every thread, and the
    name of a file with the same text.
    """

    def __init__(
        self,
        on_hang: Callable[[str], None],
        factor: float = 20.0,
        at_least: float = 120.0,
        start_limit: float = 1800.0,
        now: Callable[[], float] = time.monotonic,
        missed: str = "step or batch",
    ) -> None:
        self._on_hang, self._missed = on_hang, missed
        self._factor, self._at_least, self._start_limit = factor, at_least, start_limit
        self._now = now
        self._lock = threading.Lock()
        self._intervals: deque[float] = deque(maxlen=REMEMBERED)
        self._last_beat: float | None = None  # None: the next interval does not count as usual
        self._since = now()
        self._pauses = 0
        self.period = min(1.0, at_least / 10, start_limit / 10)
        self._checked = self._since
        self._reported = False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Start the thread that checks."""
        self._thread.start()

    def beat(self) -> None:
        """Note that a step or a batch is done."""
        with self._lock:
            at = self._now()
            if self._last_beat is not None:
                self._intervals.append(at - self._last_beat)
            self._last_beat = self._since = at

    def progress(self) -> None:
        """Note progress in work other than steps. The usual interval stays as it is."""
        with self._lock:
            self._last_beat, self._since = None, self._now()

    def restart(self) -> None:
        """Expect compilation and a new usual interval: use `start_limit` until two more beats."""
        with self._lock:
            self._intervals.clear()
            self._last_beat, self._since = None, self._now()

    @contextmanager
    def paused(self, *, counted: bool = False) -> Iterator[None]:
        """Ignore the time spent inside, because something else limits it. May be nested.

        With `counted`, this time belongs to the interval of a usual step.
        """
        with self._lock:
            self._pauses += 1
        try:
            yield
        finally:
            with self._lock:
                self._pauses -= 1
                self._last_beat, self._since = self._last_beat if counted else None, self._now()

    def close(self) -> None:
        """Stop watching."""
        self._over.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()

    def check(self) -> None:
        """Check once whether training hangs, and report it if so."""
        with self._lock:
            at = self._now()
            if at - self._checked > 3 * self.period:
                self._last_beat, self._since = None, at
            self._checked = at
            usual = statistics.median(self._intervals) if self._intervals else None
            silent, limit = at - self._since, self._start_limit
            if usual is not None:
                limit = max(self._at_least, self._factor * usual)
            hangs = self._pauses == 0 and silent > limit and not self._reported
            self._reported = self._reported or hangs
        if hangs:
            often = f"one usually takes {usual:.1f} s" if usual is not None else "since the last"
            self._on_hang(_describe(self._missed, silent, often))

    def _watch(self) -> None:
        while not self._reported and not self._over.wait(self.period):
            self.check()


def _describe(missed: str, silent: float, often: str) -> str:
    """Return what hangs and where; also write that to a file, if possible."""
    # A disk may be what hangs. So write to memory first, and use faulthandler: it reads no source.
    with os.fdopen(os.memfd_create("stacks"), "w+", encoding="utf-8", errors="replace") as file:
        faulthandler.dump_traceback(file, all_threads=True)
        file.seek(0)
        stacks = file.read()
    text = f"No {missed} for {silent:.0f} s ({often}). Where every thread is:\n{stacks}"
    try:
        handle, path = tempfile.mkstemp(prefix=f"pion-hang-{os.getpid()}-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8") as kept:
            kept.write(text)
    except OSError as error:
        return f"{text}(not written to a file: {error})\n"
    return f"{text}(also in {path})\n"
