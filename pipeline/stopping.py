"""An orderly end on SIGINT and SIGTERM."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

from pion.errors import Interrupted
from pipeline.display import Display


class StoppingOnSignals:
    """SIGINT and SIGTERM ask for an orderly stop; a second one ends the process at once."""

    def __init__(self, display: Display) -> None:
        self.asked = False
        self._display = display
        self._before: dict[int, Any] = {}

    def check(self) -> None:
        """Raise Interrupted if a stop was asked."""
        if self.asked:
            raise Interrupted(
                "Interrupted; everything finished so far is saved. Run the same command again to "
                "go on."
            )

    def sleep(self, seconds: float) -> None:
        """Sleep, but not past a request to stop. Raises Interrupted."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.check()
            time.sleep(min(left, 0.2))

    def __enter__(self) -> StoppingOnSignals:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.asked:
            os._exit(128 + number)  # Ray's processes are ended by the reaper
        self.asked = True
        name = signal.Signals(number).name
        text = f"{name}: stopping, with what is finished saved; again ends at once without saving"
        threading.Thread(
            target=self._display.say, args=({"type": "note", "text": text},), daemon=True
        ).start()
