"""The runs of a search: start one as `pion run`, and read what it has reached."""

from __future__ import annotations

import ctypes
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import FrameType
from typing import Any

from pion.errors import BadInput, Fenced, Interrupted, NotDurable, PionError, Stopped
from pipeline.base.job_with_base import read_job
from pipeline.console.formats import printable, show
from pipeline.job import Job
from pipeline.job.digest import Digests, digest_job
from pipeline.machine.child_process import PART_OF_SEARCH
from pipeline.machine.gpus import gpu_count
from pipeline.machine.rented import PAID_SINCE, is_rented
from pipeline.state.head import Head
from pipeline.state.owner import launch_id
from pipeline.state.rows.metrics import read_metrics
from pipeline.state.run_state import RunState
from pipeline.state.stores import open_store
from pipeline.state.stores.base import read_all
from pipeline.state.stores.errors import before_work

# Runs `pion run` with these arguments, and returns its exit code.
Execute = Callable[[Sequence[str]], int]
# The errors that end a search as they ended its run. Any other code is a failure of the run.
_ENDS: tuple[type[PionError], ...] = (BadInput, Fenced, Stopped, NotDurable, Interrupted)
_INTERRUPTED = 130


@dataclass(frozen=True)
class Run:
    """A run of a search. `overrides` make its job of the one that was given."""

    job: Job
    digests: Digests
    overrides: tuple[str, ...]

    @property
    def name(self) -> str:
        """Its name in the store."""
        return self.job.name


def as_overrides(changes: Mapping[str, Any]) -> list[str]:
    """Return changes by dotted key as `key=value` arguments."""
    return [f"{key}={json.dumps(value)}" for key, value in changes.items()]


class Runs:
    """Starts runs of a job for a command, and reads them.

    `execute` replaces `pion run` in another process. If the command prints JSON, nothing else is
    printed to standard output, neither here nor by the runs. Raises BadInput for a wrong job.
    """

    def __init__(
        self,
        command: str,
        job_path: str,
        overrides: Sequence[str],
        execute: Execute | None = None,
        *,
        as_json: bool,
    ) -> None:
        self.job_path, self.overrides, self.as_json = job_path, list(overrides), as_json
        self.job = read_job(job_path, overrides)
        self.store = open_store(self.job.store)
        self._command = command
        self._execute = execute or RunProcesses(to_stderr=as_json)

    def say(self, text: str) -> None:
        """Show a line about the progress of the command, between those of its runs."""
        if self.as_json:
            print(printable(f"{self._command}: {text}"), file=sys.stderr, flush=True)
        else:
            show(f"{self._command}: {text}")

    def of(self, overrides: Sequence[str]) -> Run:
        """Return the run that overrides make of the job. Raises BadInput."""
        job = read_job(self.job_path, [*self.overrides, *overrides])
        return Run(job, digest_job(job), tuple(overrides))

    def start(self, run: Run, limits: Mapping[str, Any], *, until: str | None = None) -> int:
        """Advance a run, and return 0 if it is done, 1 if it has failed, or 4 if it has stopped.

        `limits` are runtime settings: they change no result. Raises the error that `pion run` ended
        with, for any other end.
        """
        # Without a GPU, Ray would start for half a minute, and the runs are short.
        alone = run.job.hardware.workers is None and not gpu_count()
        settings = as_overrides(({"hardware.workers": 0} if alone else {}) | dict(limits))
        words = [self.job_path, *self.overrides, *run.overrides, *settings]
        code = self._execute([*words, *([] if until is None else ["--until", until])])
        if code not in (0, PionError.exit_code, Stopped.exit_code):
            raise _ended(run.name, code)
        return code

    def heads(self, names: Iterable[str]) -> dict[str, Head]:
        """Return the states of the runs that have begun, by name. Raises Damaged and StoreError."""
        names = list(names)
        heads = read_all(lambda name: RunState(self.store, name).read(), names)
        return {name: head for name, head in zip(names, heads) if head is not None}

    def held_out(self, run: Run, stage: str, source: str | None = None) -> dict[int, float]:
        """Return the held-out loss of a run by step, in nats per token, as far as it was measured:
        the mean, or that on a source of the data.

        A loss that is not finite is infinite here: the store keeps it as null.
        """
        head = RunState(self.store, run.name).read()
        rows = [] if head is None else read_metrics(self.store, run.name, head, stage)
        key = "held_out_loss" if source is None else source
        found = [(row["step"], row if source is None else row.get("held_out", {})) for row in rows]
        return {
            int(step): math.inf if losses[key] is None else losses[key]
            for step, losses in found
            if key in losses
        }


def between_runs() -> AbstractContextManager[None]:
    """Raise Interrupted in place of an outage of the store in the block, if a manager of rented
    machines started this process: it starts the process again."""
    if launch_id() is None:
        return nullcontext()
    return before_work("Every finished run is kept.", managed=True)


def _ended(name: str, code: int) -> PionError:
    """Return the error with which a search ends because its run `name` has ended with `code`."""
    if code < 0:
        killed = signal.Signals(-code).name
        return PionError(
            f"run {name} was killed by {killed}. If nobody did this, its memory may have run out. "
            "What it has committed is safe. Run the same command again to continue."
        )
    if code == _INTERRUPTED:
        code = Interrupted.exit_code
    kind = next((kind for kind in _ENDS if kind.exit_code == code), PionError)
    how = "was interrupted" if kind is Interrupted else "did not finish (see above)"
    return kind(
        f"run {name} {how}. Every finished run is kept, and so is every saved step of this run. "
        "Run the same command again to continue."
    )


# ---------------------------------------------------------------- their processes


_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_PR_SET_PDEATHSIG = 1
# Loaded here: after a fork, other threads of the parent may have held the loader's lock.
_LIBC = ctypes.CDLL(None)


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
