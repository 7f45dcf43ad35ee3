"""A thread that says "still here" now and then. A courtesy: it decides nothing and never fails."""

import logging
import threading
from collections.abc import Callable

_log = logging.getLogger(__name__)


class Heartbeat:
    """Calls `beat` at once and then every `seconds`, until stopped. What it raises is logged."""

    def __init__(self, beat: Callable[[], None], seconds: float) -> None:
        self._beat = beat
        self._seconds = seconds
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """No further beat begins; a beat in progress has ended when this returns."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            try:
                self._beat()
            except Exception as error:  # a store that is down must not end the run from here
                _log.warning("No heartbeat: %s", error)
            if self._stopped.wait(self._seconds):
                return
