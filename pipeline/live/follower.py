"""Look at a run again and again in a thread, as long as somebody asks for it."""

from __future__ import annotations

import asyncio
import math
import threading
import time

from pipeline.console.bug_file import report_bug
from pipeline.console.formats import show
from pipeline.live.watched_run import WatchedRun

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
