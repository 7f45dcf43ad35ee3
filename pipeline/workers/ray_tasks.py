"""The same work on many items by Ray's tasks: on all cores of this machine, or of a cluster.

Ray runs in a separate process (ray_task_process.py), for the reasons in ray_workers.py. Work, items
and results go through a pipe to it. Ray takes 5 to 50 seconds to start. Until then, this process
does the work itself.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import Pipe
from pathlib import Path
from typing import Any

from pion.errors import PionError
from pipeline.data.tasks import Item, Result, Shared
from pipeline.machine.child_process import without_secrets
from pipeline.state.stores.errors import error_from_json
from pipeline.workers.ray_workers import (
    RAY_ADDRESS,
    last_words,
    private_environment,
    session_folder,
)
from pipeline.workers.reaper import SESSION_VARIABLE, start_reaper


class RayTasks:
    """Tasks of a Ray of our own, or of the one that PION_RAY_ADDRESS names. See `Tasks`.

    If our own can't start, this process does the work, and `note` is told. The tasks of our own get
    the secrets whose names begin with one of `uses`. Raises BadInput if there is no place for Ray's
    folder.
    """

    def __init__(self, note: Callable[[str], None] | None = None, *uses: str) -> None:
        self._note = note
        self._address = address = os.environ.get(RAY_ADDRESS) or None
        self._session = session_folder()
        self._log = Path(tempfile.mkstemp(prefix="pion-tasks-", suffix=".log")[1])
        self._reaper = start_reaper(self._session)
        self._pipe, theirs = Pipe()
        self._started = self._alone = False
        # The token of a Ray that already runs is in this environment.
        environment = without_secrets("RAY_", *uses)
        if address is None:
            environment = private_environment(environment)
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "pipeline.workers.ray_task_process"),
                    *(str(theirs.fileno()), str(self._session), address or ""),
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment | {SESSION_VARIABLE: str(self._session)},
                start_new_session=True,
            )
        theirs.close()  # so that reading fails once the other process has ended

    def map(
        self,
        work: Callable[[Shared, Item], Result],
        shared: Shared,
        items: Iterable[Item],
    ) -> Iterator[Result]:
        """See `Tasks`. A task whose process dies is done again, at most three times.

        Raises PionError if Ray ends.
        """
        left = iter(items)
        while not self._has_started():
            item = next(([item] for item in left), [])
            if not item:
                return
            yield work(shared, *item)
        self._send((work, shared))
        while True:
            said, value = self._receive()
            if said == "next":
                self._send(next(([item] for item in left), []))
            elif said == "result":
                yield value
            elif said == "failed":
                raise error_from_json(value)
            else:
                return

    def close(self) -> None:
        """End the tasks, and all processes of Ray if we started it."""
        # The pipe last: once it closes, the other process would shut Ray down, which takes seconds.
        self._reaper.communicate()
        self._process.wait()
        self._pipe.close()
        shutil.rmtree(self._session, ignore_errors=True)
        self._log.unlink(missing_ok=True)

    def _has_started(self) -> bool:
        """Return whether Ray has started. Raises PionError if another program's can't be used."""
        if not (self._started or self._alone) and self._pipe.poll():
            try:
                self._started = self._receive()[0] == "started"
            except PionError:
                if self._address is not None:
                    raise
                self._alone = True
                if self._note is not None:
                    self._note(f"{self._reason()}. This process does its work")
        return self._started

    def _send(self, value: Any) -> None:
        try:
            self._pipe.send(value)
        except OSError:
            raise self._ended() from None

    def _receive(self) -> tuple[str, Any]:
        try:
            said: tuple[str, Any] = self._pipe.recv()
        except (EOFError, OSError):
            raise self._ended() from None
        return said

    def _ended(self) -> PionError:
        return PionError(
            f"{self._reason()}. What is finished is safe. Run the same command again to continue"
        )

    def _reason(self) -> str:
        log = self._log.read_text(errors="replace") if self._log.exists() else ""
        words = last_words(log, "run it where fewer cores share the memory")
        return f"Ray, which prepares the data, has ended: {words or 'it said nothing'}"


@contextmanager
def ray_tasks(note: Callable[[str], None] | None = None, *uses: str) -> Iterator[RayTasks]:
    """Yield tasks of Ray, and end them. Raises as `RayTasks` does."""
    tasks = RayTasks(note, *uses)
    try:
        yield tasks
    finally:
        tasks.close()
