"""The driver's end of the uploading process (uploader.py): hand it a job, hear what it saved."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import sys
from typing import Protocol

from pion.errors import PionError
from pipeline.state.stores import StoreError
from pipeline.state.uploader import Saved, SaveJob


class UploaderDied(PionError):
    """The uploading process ended before it answered."""


class Uploader(Protocol):
    """Brings what a job describes from the snapshot's memory into the store."""

    def save(self, job: SaveJob) -> Saved:
        """Returns when it is there; raises `StoreError`, `UploaderDied`."""

    def close(self) -> None:
        """Give up whatever it is doing."""


class UploaderProcess:
    """A process of its own (uploader.py), started anew when it has died. `fd` is the snapshot."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._closed = False
        self._process = self._start()

    def save(self, job: SaveJob) -> Saved:
        """What the process saved. Raises what it failed with, or `UploaderDied`."""
        if self._process.poll() is not None and not self._closed:
            self._process = self._start()
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(dataclasses.asdict(job)) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except (OSError, ValueError):
            line = ""
        if not line:
            process.kill()
            raise UploaderDied(
                f"The process that saves checkpoints ended (exit code {process.wait()}) before "
                f"{job.key} was saved. Everything committed before is safe. If the machine was out "
                "of memory, use a smaller hardware.micro_batch."
            )
        answer = json.loads(line)
        if "error" in answer:
            error = answer["error"]
            raise StoreError(
                error["action"], error["where"], error["reason"], outage=error["outage"]
            )
        if "failed" in answer:
            raise PionError(answer["failed"])
        return Saved(**answer["saved"])

    def close(self) -> None:
        """End it, whatever it is doing."""
        self._closed = True
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "pipeline.state.uploader", str(self._fd)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=[self._fd],
            start_new_session=True,
        )
