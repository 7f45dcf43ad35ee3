"""The driver's end of the uploading process (uploader.py): hand it a job, hear what it saved."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import queue
import subprocess
import sys
import threading
from typing import Protocol

from pion.errors import PionError
from pipeline.console.formats import duration
from pipeline.state.checkpoints.upload_worker import Saved, SaveJob
from pipeline.state.error_codec import error_from_json
from pipeline.state.stores import StoreError

KILL_SECONDS = 5.0


class UploaderDied(PionError):
    """The uploading process ended before it answered."""


class Uploader(Protocol):
    """Brings what a job describes from the snapshot's memory into the store."""

    def save(self, job: SaveJob) -> Saved:
        """Returns when it is there; raises `StoreError`, `UploaderDied`."""

    def close(self) -> None:
        """Give up whatever it is doing."""


class UploaderProcess:
    """A process of its own (uploader.py), started anew when it has died or hangs.

    `fd` is the snapshot, `patience` the seconds that a save may take.
    """

    def __init__(self, fd: int, patience: float = math.inf) -> None:
        self._fd = fd
        self.patience = patience
        self._closed = False
        self._hangs = False
        self._process = self._start()

    def save(self, job: SaveJob) -> Saved:
        """What the process saved. Raises what it failed with, or `UploaderDied`.

        One that has not answered within `patience` is killed, and that counts as an outage.
        """
        if (self._hangs or self._process.poll() is not None) and not self._closed:
            self._process, self._hangs = self._start(), False
        process = self._process
        line = self._ask(process, job)
        if line is None:
            self._hangs = True
            _end(process)
            reason = (
                "the process that saves checkpoints gave no answer within "
                f"{duration(self.patience)} and was ended; if the store is only slow, allow for "
                "more in checkpoint.max_undurable"
            )
            raise StoreError("save", f"{job.store}/{job.key}", reason, outage=True)
        if not line:
            process.kill()
            raise UploaderDied(
                f"The process that saves checkpoints ended (exit code {process.wait()}) before "
                f"{job.key} was saved. Everything committed before is safe. If the machine was out "
                "of memory, use a smaller hardware.micro_batch."
            )
        answer = json.loads(line)
        if "error" in answer:
            raise error_from_json(answer["error"])
        return Saved(**answer["saved"])

    def close(self) -> None:
        """End it, whatever it is doing."""
        self._closed = True
        _end(self._process)

    def _ask(self, process: subprocess.Popen[str], job: SaveJob) -> str | None:
        """The line it answers with: empty if it ended before, None if it took too long.

        A thread of its own asks, since a pipe to a process that hangs may block both ways, and one
        that hangs in the kernel keeps it open even when it is killed.
        """
        question = json.dumps(dataclasses.asdict(job)) + "\n"
        answers: queue.SimpleQueue[str] = queue.SimpleQueue()

        def ask() -> None:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.write(question)
                process.stdin.flush()
                answers.put(process.stdout.readline())
            except (OSError, ValueError):
                answers.put("")

        threading.Thread(target=ask, name="uploader", daemon=True).start()
        try:
            return answers.get(timeout=min(self.patience, threading.TIMEOUT_MAX))
        except queue.Empty:
            return None

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline.state.checkpoints.upload_worker", str(self._fd)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=[self._fd],
            start_new_session=True,
        )


def _end(process: subprocess.Popen[str]) -> None:
    """Kill it. One that the kernel holds, on a disk that hangs, is left behind with its pipes."""
    process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(KILL_SECONDS)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
