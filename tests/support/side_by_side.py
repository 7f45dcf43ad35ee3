"""A store that notices whether records are read one after another."""

import re
import threading

from pipeline.state.stores import FileStore

# A guard against a wait without end: a reader that is alone fails after it.
WAIT_SECONDS = 60.0


class SideBySide(FileStore):
    """A folder in which a record whose key matches `pattern` is read only while `count` of them are
    asked for at once."""

    def __init__(self, folder, pattern, count):
        super().__init__(folder)
        self._pattern, self._together = re.compile(pattern), threading.Barrier(count)

    def read_versioned(self, key):
        if self._pattern.fullmatch(key):
            try:
                self._together.wait(WAIT_SECONDS)
            except threading.BrokenBarrierError:
                raise AssertionError(f"{key} was read alone") from None
        return super().read_versioned(key)
