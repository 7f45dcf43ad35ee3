"""SIGINT and SIGTERM as bytes in a pipe, so that any thread can wait for them.

Python runs signal handlers in the main thread between two bytecodes, so not during a long call
into C or Rust. With signal.set_wakeup_fd, a handler in C writes to this pipe at once.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class SignalPipe:
    """The signals that arrive between `listen` and `restore`."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)  # required of a wakeup fd
        self._before: dict[int, Any] = {}
        self._fd_before = -1

    def listen(self) -> None:
        """Take the signals over, if this is the main thread."""
        if threading.current_thread() is threading.main_thread():
            self._fd_before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
            for number in SIGNALS:
                self._before[number] = signal.signal(number, self._handle)

    def restore(self) -> None:
        """Restore the previous signal handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._before:
            signal.set_wakeup_fd(self._fd_before)

    def wait(self, seconds: float | None) -> list[int]:
        """Return the signals that arrived; wait for one at most `seconds` (None: forever)."""
        poll = select.poll()
        poll.register(self._read, select.POLLIN)
        # At most an hour, because poll counts milliseconds in a C int. The caller waits again.
        if not poll.poll(None if seconds is None else 1000 * min(seconds, 3600.0)):
            return []
        return [number for number in os.read(self._read, 512) if number in SIGNALS]

    def wake(self) -> None:
        """Make `wait` return."""
        with contextlib.suppress(BlockingIOError):  # the pipe is full, so `wait` returns anyway
            os.write(self._write, b"\0")

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)

    def _handle(self, number: int, _: FrameType | None) -> None:
        """Do nothing, unless a library has replaced the wakeup fd: then write to the pipe here."""
        if signal.set_wakeup_fd(self._write, warn_on_full_buffer=False) != self._write:
            os.write(self._write, bytes([number]))


# ---------------------------------------------------------------- forked children

# A forked child shares the pipe, so its signals would look like its parent's. The child gets the
# default handlers, and signals are blocked until it has them.
_forking = threading.local()


def _ours(number: int) -> bool:
    return isinstance(getattr(signal.getsignal(number), "__self__", None), SignalPipe)


def _before_fork() -> None:
    hold = [number for number in SIGNALS if _ours(number)]
    _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, hold)


def _after_fork_in_child() -> None:
    for number in filter(_ours, SIGNALS):
        signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
    _after_fork()


def _after_fork() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


os.register_at_fork(
    before=_before_fork, after_in_child=_after_fork_in_child, after_in_parent=_after_fork
)
