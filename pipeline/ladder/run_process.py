"""Run `pion run` for a ladder or a search, one process at a time."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

from pion.errors import Interrupted, PionError, Stopped
from pipeline.machine.rented import PAID_SINCE, is_rented

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_PR_SET_PDEATHSIG = 1
# Loaded here: after a fork, other threads of the parent may have held the loader's lock.
_LIBC = ctypes.CDLL(None)
Process = subprocess.Popen[bytes]


class RunProcesses:
    """Runs `pion run`, one process after the other. Each ends when this process does.

    With `to_stderr`, the processes print nothing to standard output. A rented machine is paid for
    once: the first run pays from the start of the rental, and each later one from the end of the
    one before.
    """

    def __init__(self, *, to_stderr: bool) -> None:
        self._paid_since: float | None = None
        self._to_stderr = to_stderr

    def __call__(self, arguments: Sequence[str]) -> int:
        """Run `pion run` with these arguments, and return its exit code.

        A signal to this process goes to that process, which saves. Raises Interrupted if it ended
        by itself.
        """
        with _passing_on_signals() as (heard, pass_to):
            process = subprocess.Popen(
                [sys.executable, "-m", "pipeline.cli", "run", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr if self._to_stderr else None,
                env=os.environ | self._paid(),
                preexec_fn=_begin,
            )
            pass_to(process)
            code = process.wait()
        if is_rented():
            self._paid_since = time.time()
        # Without a handler, when Python ends, a signal kills it.
        killed = [-number for number in heard]
        if heard and code in (0, PionError.exit_code, Stopped.exit_code, *killed):
            raise Interrupted(
                "Interrupted at the end of a run. Every finished run is kept. Run the same command "
                "again to continue."
            )
        return code

    def _paid(self) -> dict[str, str]:
        return {} if self._paid_since is None else {PAID_SINCE: repr(self._paid_since)}


def _begin() -> None:
    """Let the kernel send this process SIGTERM, on which it saves, when its parent is gone. Until
    it listens (early_sigterm), signals wait: they would end Python with a traceback."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@contextmanager
def _passing_on_signals() -> Iterator[tuple[list[int], Callable[[Process], None]]]:
    """Yield the list of the SIGINT and SIGTERM that come, and what passes all of them to a process.

    Ctrl-C at a terminal reaches the process too; it takes the second signal for an echo.
    """
    heard: list[int] = []
    processes: list[Process] = []

    def hear(number: int, frame: FrameType | None) -> None:
        heard.append(number)
        for process in processes:
            process.send_signal(number)

    def pass_to(process: Process) -> None:
        processes.append(process)
        for number in heard:
            process.send_signal(number)

    before = {number: signal.signal(number, hear) for number in _SIGNALS}
    woken = signal.set_wakeup_fd(-1)  # it would end this process at once (early_sigterm)
    try:
        yield heard, pass_to
    finally:
        signal.set_wakeup_fd(woken)
        for number, handler in before.items():
            signal.signal(number, handler)
