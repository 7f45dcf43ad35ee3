"""Look at a run again and again in a thread, as long as somebody asks for it."""

from __future__ import annotations

import threading

from pipeline.console.bug_file import report_bug
from pipeline.console.formats import show
from pipeline.live.watched_run import WatchedRun


class Follower:
    """The one thread that looks at a run, however many pages ask.

    It looks only if a page has asked since its last look, so that a page that nobody has open costs
    no requests. The thread ends with the process: a store may hang.
    """

    def __init__(self, run: WatchedRun) -> None:
        self.run = run
        self._asked = threading.Event()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True, name="look at a run")

    def start(self) -> None:
        """Look for the first time, and then whenever a page has asked."""
        self._asked.set()
        self._thread.start()

    def ask(self) -> None:
        """Say that a page wants to know what is new."""
        self._asked.set()

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
            try:
                self.run.look()
            except Exception as error:
                show(report_bug(error, ["status", "--web"]))
                self.run.fail("a bug in Pion; the command's window has the details", back_off=True)
            self._stopped.wait(self.run.pause)
