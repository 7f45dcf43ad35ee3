"""The training process's end of the uploading process (upload_worker.py): send a request, and get
the saved files."""

from __future__ import annotations

import contextlib
import json
import math
import queue
import subprocess
import sys
import threading
from pathlib import Path

from pipeline.console.formats import duration
from pipeline.machine.child_environment import of_store
from pipeline.state.checkpoints.snapshot import Snapshot
from pipeline.state.checkpoints.upload_worker import Saved, SaveRequest
from pipeline.state.stores import StoreError
from pipeline.state.stores.error_codec import error_from_json
from pipeline.state.stores.local import explained

KILL_SECONDS = 5.0


class UploaderDied(StoreError):
    """The uploading process ended before it answered."""


class Uploader:
    """Uploads `snapshot` to `store` in a separate process, and replaces a process that died or
    hangs. Of the environment's secrets, the process gets only those of this kind of store.

    `store` is a URL. `patience` is the number of seconds that a save may take.
    """

    def __init__(self, snapshot: Snapshot, store: str, patience: float = math.inf) -> None:
        self.snapshot = snapshot
        self.patience = patience
        self._store = store
        self._closed = False
        self._hangs = False
        self._process = self._start()

    def save(self, request: SaveRequest) -> Saved:
        """Return what the process saved. Raises the process's error, or `UploaderDied`.

        A process that does not answer within `patience` is killed. This counts as an outage.
        """
        if (self._hangs or self._process.poll() is not None) and not self._closed:
            self._process, self._hangs = self._start(), False
        process = self._process
        line = self._ask(process, request)
        if line is None:
            self._hangs = True
            _end(process)
            reason = (
                "the process that saves checkpoints did not respond within "
                f"{duration(self.patience)}, so Pion killed the process. If the store works but is "
                "slow, raise checkpoint.max_undurable"
            )
            raise StoreError("save", f"{request.store}/{request.key}", reason, outage=True)
        if not line:
            process.kill()
            reason = (
                f"the process that saves checkpoints stopped (exit code {process.wait()}). If the "
                "machine ran out of memory, use a smaller hardware.micro_batch"
            )
            raise UploaderDied("save", f"{request.store}/{request.key}", reason)
        answer = json.loads(line)
        if "error" in answer:
            raise error_from_json(answer["error"])
        return Saved.from_dict(answer["saved"])

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self._closed = True
        _end(self._process)

    def _ask(self, process: subprocess.Popen[str], request: SaveRequest) -> str | None:
        """Return the answer: empty if the process ended first, None if it took too long.

        A separate thread asks, because a pipe to a process that hangs may block in both directions,
        and a process that hangs in the kernel keeps its pipes open even when it is killed.
        """
        question = request.to_json() + "\n"
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
        fd = self.snapshot.fd
        with explained("start", Path("the process that saves checkpoints")):
            return subprocess.Popen(
                [sys.executable, "-m", "pipeline.state.checkpoints.upload_worker", str(fd)],
                env=of_store(self._store),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                pass_fds=[fd],
                start_new_session=True,
            )


def _end(process: subprocess.Popen[str]) -> None:
    """Kill the process. If it hangs in the kernel, on a bad disk, leave it and its pipes."""
    process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(KILL_SECONDS)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
