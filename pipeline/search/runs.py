"""How `pion run` does one run of a search, in a separate process.

One process for all runs would not do: what torch has compiled for one setting counts against the
next one, and a run whose memory runs out would end the search.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType

from pion.errors import BadInput, Fenced, Interrupted, NotDurable, PionError, Stopped
from pipeline.machine.child_process import PART_OF_SEARCH
from pipeline.machine.rented import PAID_SINCE, is_rented

# Runs `pion run` with these arguments, and returns its exit code.
Execute = Callable[[Sequence[str]], int]
# The errors that end a search as they ended its run. Any other code is a failure of the run.
_ENDS = {end.exit_code: end for end in (BadInput, Fenced, NotDurable, Interrupted)}
_INTERRUPTED = 130
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_PR_SET_PDEATHSIG = 1
# Loaded here: after a fork, other threads of the parent may have held the loader's lock.
_LIBC = ctypes.CDLL(None)


def run_to_end(execute: Execute, name: str, arguments: Sequence[str]) -> int:
    """Do `pion run` of the run `name`, and return 0 if it is done, 1 if it has failed, or 4 if it
    has stopped. Raises the error that `pion run` ended with, for any other end."""
    code = execute(arguments)
    if code in (0, PionError.exit_code, Stopped.exit_code):
        return code
    if code < 0:
        killed = signal.Signals(-code).name
        raise PionError(
            f"run {name} was killed by {killed}. If nobody did this, its memory may have run out. "
            "What it has committed is safe. Run the same command again to continue."
        )
    end = Interrupted if code == _INTERRUPTED else _ENDS.get(code, PionError)
    how = "was interrupted" if end is Interrupted else "did not finish (see above)"
    raise end(
        f"run {name} {how}. Every finished run is kept, and so is every saved step of this run. "
        "Run the same command again to continue."
    )


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
        paid = {} if self._paid_since is None else {PAID_SINCE: repr(self._paid_since)}
        code, heard = _passing_on_signals(
            lambda: subprocess.Popen(
                [sys.executable, "-m", "pipeline.cli", "run", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=sys.stderr if self._to_stderr else None,
                env=os.environ | paid | {PART_OF_SEARCH: "1"},
                preexec_fn=_begin,
            )
        )
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


def _begin() -> None:
    """Let the kernel send this process SIGTERM, on which it saves, when its parent is gone. Until
    it listens (early_sigterm), signals wait: they would end Python with a traceback."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _passing_on_signals(start: Callable[[], subprocess.Popen[bytes]]) -> tuple[int, list[int]]:
    """Start a process, pass all SIGINT and SIGTERM that come on to it, and wait for its end. Return
    its exit code and these signals.

    Ctrl-C at a terminal reaches the process too; it takes the second signal for an echo.
    """
    heard: list[int] = []
    process: subprocess.Popen[bytes] | None = None

    def hear(number: int, frame: FrameType | None) -> None:
        heard.append(number)
        if process is not None:
            process.send_signal(number)

    before = {number: signal.signal(number, hear) for number in _SIGNALS}
    woken = signal.set_wakeup_fd(-1)  # it would end this process at once (early_sigterm)
    try:
        process = start()
        for number in heard:
            process.send_signal(number)
        return process.wait(), heard
    finally:
        signal.set_wakeup_fd(woken)
        for number, handler in before.items():
            signal.signal(number, handler)
