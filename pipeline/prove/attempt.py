"""One `pion run` of a proof: read its log line by line, and kill it at the chosen instant."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pion.files import expand, private_cache_folder
from pipeline.cost.timeline import REFERENCE_PASS
from pipeline.data.fingerprint import APART
from pipeline.job.stages import STAGES, TRAINING
from pipeline.machine.kill_points import HALT_AT
from pipeline.workers.reaper import children_of, session_processes

POLL_SECONDS = 0.01
# Of the log of a run that has ended.
LAST_LINES = 12
PLAN_LINE = re.compile(rf"({'|'.join(STAGES)}): (starts|to do|done)\b")
STEP_LINE = re.compile(rf"({'|'.join(TRAINING)}) step ([\d,]+)/")
SAVED_LINE = re.compile(rf"(?:{'|'.join(TRAINING)}) step [\d,]+: saved")


@dataclass(frozen=True)
class Instant:
    """When a run is killed, and what dies with it.

    With a `point`, the run is killed when one process reaches that mark (see kill_points.py) for
    the `arrival`-th time. Without one, or once the mark can no longer be reached, the run is
    killed `delay` seconds after `lines` lines of its log. With `after_commit` these lines count
    from the first durable checkpoint.

    With `machine`, all its processes die at once; otherwise only its driver dies. With `disk`, this
    machine's copies of a remote run are lost too.
    """

    point: str | None = None
    arrival: int = 1
    lines: int = 0
    delay: float = 0.0
    after_commit: bool = False
    machine: bool = False
    disk: bool = False


@dataclass(frozen=True)
class Attempt:
    """How one `pion run` ended. Times are in seconds from its start.

    Attributes:
        at: the mark at which the run was halted and killed.
        during: the part of the run, from its log: start-up, or a stage.
        steps: stage → the last step that was reported.
        line_times: when each line of the log came.
        step_times: when each line about a step came.
        last_lines: the end of the log.
    """

    killed: bool
    exit_code: int
    at: str | None
    during: str
    steps: Mapping[str, int]
    line_times: Sequence[float]
    step_times: Sequence[float]
    seconds: float
    last_lines: str

    @property
    def first_step_seconds(self) -> float | None:
        """Seconds until the first step was trained; None if the run did not get that far."""
        return self.step_times[0] if self.step_times else None


class Place:
    """The folders of a proof on this machine, for everything that its runs keep outside the store.

    A context manager: at its end the runs' processes are killed and the folders are removed.

    Attributes:
        log: the output of the latest run.
        halted: a file that a run creates when it halts at its mark.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="prove-", dir=private_cache_folder()))
        # A short path, because Ray puts Unix sockets into it.
        self.temporary = Path(tempfile.mkdtemp(prefix="pp-"))
        self.log = self.folder / "log.txt"
        self.halted = self.folder / "halted"

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *_: object) -> None:
        self.end_processes(set())
        for folder in (self.folder, self.temporary):
            shutil.rmtree(folder, ignore_errors=True)

    def environment(self, run: str, instant: Instant | None) -> dict[str, str]:
        """Return the environment of a run that will be killed at `instant`."""
        cache = expand(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
        variables = {
            # Use models and data sets that were downloaded before.
            "HF_HOME": os.environ.get("HF_HOME") or str(cache / "huggingface"),
            "XDG_CACHE_HOME": str(self.folder / "cache"),
            "TMPDIR": str(self.temporary),
            "PYTHONUNBUFFERED": "1",
            APART: run,
        }
        if instant is not None and instant.point is not None:
            variables[HALT_AT] = f"{instant.point}:{instant.arrival}:{self.halted}"
        return {**os.environ, **variables}

    def end_processes(self, pids: set[int]) -> None:
        """Kill `pids`, their descendants and all processes of this place, all at once."""
        stopped: set[int] = set()
        # Stop all first, so that no process can notice that another is gone, or start a new one.
        while found := self._family(pids) - stopped:
            for pid in found:
                _signal(pid, signal.SIGSTOP)
            stopped |= found
        for pid in stopped:
            _signal(pid, signal.SIGKILL)

    def _family(self, pids: set[int]) -> set[int]:
        alive = {pid for pid in pids if Path(f"/proc/{pid}").exists()}
        return children_of({*alive, *session_processes(str(self.folder))}) - {os.getpid()}

    def lose_machine(self, pid: int, *, disk: bool) -> None:
        """Kill the run of process `pid`; remove its temporary files and, with `disk`, its cache."""
        self.end_processes({pid})
        shutil.rmtree(self.temporary, ignore_errors=True)
        self.temporary.mkdir(exist_ok=True)
        if disk:
            shutil.rmtree(self.folder / "cache", ignore_errors=True)


def attempt(command: Sequence[str], place: Place, run: str, instant: Instant | None) -> Attempt:
    """Run `command`, a `pion run` of `run`, and kill it at `instant`, unless it ends earlier."""
    place.halted.unlink(missing_ok=True)
    started = time.monotonic()
    with place.log.open("wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=place.environment(run, instant),
            start_new_session=True,  # so that a Ctrl-C reaches only the proof
        )
    try:
        with place.log.open("rb") as lines:
            watch = Watch(lines, started, instant)
            while process.poll() is None and not watch.due(place.halted):
                time.sleep(POLL_SECONDS)
            if process.returncode is None and instant is not None:
                if instant.machine:
                    place.lose_machine(process.pid, disk=instant.disk)
                else:
                    process.kill()
            code = process.wait()
            watch.read()
    finally:
        if process.poll() is None:
            place.end_processes({process.pid})
            process.wait()
    killed = instant is not None and code == -signal.SIGKILL
    return Attempt(
        killed,
        code,
        instant.point if instant is not None and killed and place.halted.exists() else None,
        watch.during,
        watch.steps,
        watch.line_times,
        watch.step_times,
        time.monotonic() - started,
        "\n".join(place.log.read_text(errors="replace").strip().splitlines()[-LAST_LINES:]),
    )


class Watch:
    """Reads a run's log as it grows, and says when to kill the run."""

    def __init__(self, log: BinaryIO, started: float, instant: Instant | None) -> None:
        self._log, self._started, self._instant = log, started, instant
        self._rest = b""
        self._committed_at_line: int | None = None
        self._prepared = self._compared = False
        self._die_at: float | None = None
        self.during = "start-up"
        self.steps: dict[str, int] = {}
        self.line_times: list[float] = []
        self.step_times: list[float] = []

    def due(self, halted: Path) -> bool:
        """Return whether the run must be killed now. At its mark, the run makes `halted`."""
        self.read()
        instant = self._instant
        if instant is None:
            return False
        if instant.point is not None and halted.exists():
            return True
        if self._die_at is None and self._counted(instant):
            self._die_at = time.monotonic() + instant.delay
        return self._die_at is not None and time.monotonic() >= self._die_at

    def _counted(self, instant: Instant) -> bool:
        if instant.point == "reference":  # an earlier attempt has written some chunks
            return self._compared
        if instant.point is not None:  # no shards are written once the data is there
            return instant.point == "shard" and self._prepared
        since = self._committed_at_line if instant.after_commit else 0
        return since is not None and len(self.line_times) - since >= instant.lines

    def read(self) -> None:
        """Read the log since the last call."""
        *lines, self._rest = (self._rest + self._log.read()).split(b"\n")
        for line in lines:
            self._take(line.decode(errors="replace"), time.monotonic() - self._started)

    def _take(self, line: str, at: float) -> None:
        self.line_times.append(at)
        if (step := STEP_LINE.search(line)) is not None:
            self.steps[step[1]] = int(step[2].replace(",", ""))
            self.step_times.append(at)
        elif (stage := PLAN_LINE.search(line)) is not None:
            if stage[1] == "prepare":
                self._prepared = stage[2] == "done"
                self.during = "start-up" if self._prepared else "prepare"
            elif stage[2] == "starts":
                self.during = stage[1]
                self._compared = stage[1] == "prefer"
        elif f": {REFERENCE_PASS} " in line:
            self.during = "reference"
        elif SAVED_LINE.search(line) and self._committed_at_line is None:
            self._committed_at_line = len(self.line_times)


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)
