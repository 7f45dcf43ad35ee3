"""Whole runs of a tiny job: `pion run` as a process, and the results in its store."""

import fcntl
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline.job.stages import TRAINING
from pipeline.state.head import CheckpointEntry, Head
from pipeline.state.rows.metrics import Row, read_events, read_metrics
from pipeline.state.run_state import RunState
from pipeline.state.stores import Store, open_store
from tests.support.forked import ForkedRun, may_fork
from tests.support.jobs import tiny_dict, write_tiny_data
from tests.support.meddling import Meddling, with_held_steps
from tests.support.waiting import kill_tree, read_until, rest_of, wait_until

# Seconds that a run may take on a busy machine, including Ray's start.
RUN_SECONDS = 300.0

# A process of a test, by any way of starting it.
Process = subprocess.Popen[str] | ForkedRun
_started: list[Process] = []


def write_job(folder: Path, **changes: Any) -> Path:
    """Write a tiny job and its data into `folder`; its store is `folder/runs`.

    One process trains, with one thread: a second one has nothing to do in a tiny model. No samples
    are written, which would take as long as training.
    """
    write_tiny_data(folder)
    light = {"hardware__workers": 0, "hardware__threads": 1, "evaluate__prompts": []}
    changes = {"store": str(folder / "runs"), **light, **changes}
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_dict(**changes)))
    return path


# ---------------------------------------------------------------- the process


def start(
    job: Path,
    *overrides: str,
    env: Mapping[str, str] | None = None,
    umask: int = -1,
    python: str = sys.executable,
    program: str | None = None,
) -> Process:
    """Start `pion run job overrides…` in the job's folder. `program` replaces the main module."""
    main = ["-m", "pipeline.cli"] if program is None else ["-c", program]
    arguments = ["run", str(job), *overrides]
    command = [python, *main, *arguments]
    environment = dict(os.environ if env is None else env)
    if python == sys.executable and program is None and may_fork(environment):
        forked = ForkedRun(arguments, job.parent, environment, umask)
        _started.append(forked)
        return forked
    process = open_process(command, job.parent, env, umask)
    _started.append(process)
    return process


def open_process(
    command: Sequence[str], folder: Path, env: Mapping[str, str] | None = None, umask: int = -1
) -> subprocess.Popen[str]:
    """Start a command whose whole output can be read as text."""
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "stdin": subprocess.DEVNULL}
    return subprocess.Popen(command, cwd=folder, text=True, env=env, umask=umask, **both)


def outlives_its_test(process: Process) -> None:
    """Leave it to the caller to end this run: several tests look at it."""
    _started.remove(process)


def kill_what_still_runs() -> None:
    """End the runs of a test that failed halfway."""
    while _started:
        process = _started.pop()
        if process.poll() is None:
            kill_tree(process.pid)
            process.wait(60)


def wait_for(process: Process, text: str, lines: int = 1) -> str:
    """Read until `lines` lines with `text` were printed; return what was read."""
    return read_until(process, text, lines=lines, seconds=RUN_SECONDS)


def ends_with(code: int, process: Process) -> str:
    """Wait until the run ends with this exit code; return its unread output."""
    output = rest_of(process, seconds=RUN_SECONDS)
    assert process.returncode == code, output
    return output


def interrupt(process: Process, number: int = signal.SIGINT) -> str:
    """Ask the run to stop, as Ctrl-C does; check that it ends with 75; return its unread output."""
    process.send_signal(number)
    return ends_with(75, process)


def interrupt_before_row(row: int, job: Path, *overrides: str, number: int = signal.SIGINT) -> str:
    """Run up to the step that begins with `row`, and ask the run to stop; return its output.

    It waits there for the signal. So a few steps are enough: they can't be over before it comes.
    """
    meddling = Meddling(job.parent)
    meddling.wrap(
        "pion.train.feed:BatchFeed.take",
        f"""
        def wrapper(take, self, next_row, skipped):
            if next_row == {row}:
                (HERE / "waits").touch()
                while (HERE / "waits").exists():
                    time.sleep(0.02)
            return take(self, next_row, skipped)
        """,
    )
    # However busy the machine is, the last step can be saved after SIGTERM.
    process = start(job, *overrides, "checkpoint.grace=300", env=meddling.environment())
    waits = job.parent / "waits"
    wait_until(lambda: waits.exists() or process.poll() is not None, f"the run to reach row {row}")
    process.send_signal(number)
    waits.unlink(missing_ok=True)
    return ends_with(75, process)


def kill(process: Process) -> str:
    """Kill the run without warning; return its unread output."""
    process.kill()
    return rest_of(process)


def finish(job: Path, *overrides: str) -> str:
    """Run to the end; return the output."""
    return ends_with(0, start(job, *overrides))


def kill_after_a_save(job: Path, stage: str) -> None:
    """Start a run, and kill it once it has saved a step of this stage that was not saved before."""
    held, before = with_held_steps(job.parent, stage), _last_saved(job.parent, stage)
    process = start(job, env=held.environment())
    wait_until(
        lambda: _last_saved(job.parent, stage) > before or process.poll() is not None,
        f"a new checkpoint of {stage}",
    )
    output = kill(process)
    assert _last_saved(job.parent, stage) > before, output
    held.check()


def _last_saved(folder: Path, stage: str) -> int:
    head = RunState(_store(folder), "tiny").read()
    return max((e.step for e in (head.checkpoints if head else ()) if e.stage == stage), default=0)


def finish_after_kills(job: Path, stage: str, kills: int) -> str:
    """Kill a run so often while it trains a stage, let it end, and return its output."""
    for _ in range(kills):
        kill_after_a_save(job, stage)
    output = finish(job)
    assert f"{stage}: starts (continues after step" in output, output
    return output


def whole_run(cache: Path, **changes: Any) -> Path:
    """Return the folder of a job that ran to its end unbroken. The first caller runs it.

    The tests of all processes share it, so no test may change it. See the fixture `whole`.
    """
    name = hashlib.sha256(json.dumps(changes, sort_keys=True).encode()).hexdigest()[:12]
    folder = cache / name
    cache.mkdir(exist_ok=True)
    with (cache / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "finished").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            finish(write_job(folder, **changes))
            (folder / "finished").touch()
    return folder


def copy_run(whole: Path, folder: Path, **changes: Any) -> Path:
    """Copy a whole run into `folder`; return its job file, with only the store changed."""
    shutil.copytree(whole / "runs", folder / "runs")
    return write_job(folder, **changes)


# ---------------------------------------------------------------- what it left


def head_of(where: Path | str, name: str = "tiny") -> Head:
    """Return HEAD of the run in this store, or in the store of the job in this folder."""
    head = RunState(_store(where), name).read()
    assert head is not None
    return head


def final_weights(where: Path | str) -> dict[str, str]:
    """Return the sha256 of the final weights of each finished training stage."""
    head = head_of(where)
    shas = {entry.key: entry.model_sha256 for entry in head.checkpoints}
    stages = [stage for stage in TRAINING if stage in head.stages]
    return {stage: shas[head.stages[stage].checkpoint or ""] for stage in stages}


def newest(where: Path | str) -> CheckpointEntry:
    return head_of(where).checkpoints[0]


def metrics_of(where: Path | str, stage: str = "pretrain") -> list[Row]:
    """Return the rows of a stage's metrics, without rewound steps."""
    return list(read_metrics(_store(where), "tiny", head_of(where), stage))


def rows_trained(where: Path | str, stage: str = "pretrain") -> list[list[int]]:
    """Return [first, stop) of each step's rows, without rewound steps."""
    return [row["rows"] for row in metrics_of(where, stage) if "rows" in row]


def losses(where: Path | str, stage: str = "pretrain") -> list[float]:
    """Return the loss of each step, without rewound steps."""
    return [row["loss"] for row in metrics_of(where, stage) if "loss" in row]


def events_of(where: Path | str, kind: str) -> list[Row]:
    """Return the events of this kind, the oldest first."""
    return [e for e in read_events(_store(where), "tiny") if e["event"] == kind]


def _store(where: Path | str) -> Store:
    return open_store(str(where / "runs") if isinstance(where, Path) else where)
