"""The runs of a ladder are processes: they hear its signals, and don't outlive it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from pipeline.base.read_job import read_job
from pipeline.ladder.runs import Runs
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore
from tests.support.waiting import kill_tree, read_until, rest_of, wait_until
from tests.support.whole_runs import write_job

SECONDS = 120.0
PARENT = """
import sys
from pipeline.cli import main
sys.exit(main(["try", sys.argv[1], "--vary", "pretrain.lr=1e-3,2e-3", "--seeds", "1"]))
"""


@contextmanager
def searching(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Start a search whose first run takes long, and wait until it trains."""
    job = write_job(folder, sft=None, pretrain__steps=1_000_000, log__every=1)
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(job)],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    try:
        read_until(process, "pretrain step 3/", seconds=SECONDS)
        yield process
    finally:
        if process.poll() is None:
            kill_tree(process.pid)
            process.wait(SECONDS)


def saved_step(folder: Path) -> int:
    """Return the step that the only run has saved, which nobody owns any more."""
    (name,) = [n for n in FileStore(folder / "runs").folders() if n.startswith("tiny-try-")]
    run = RunState(FileStore(folder / "runs"), name)

    def released() -> bool:
        head = run.read()
        return head is not None and head.owner is None

    wait_until(released, "the run to be released")
    head = run.read()
    assert head is not None
    return head.checkpoints[0].step


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGINT, marks=pytest.mark.soak), signal.SIGTERM]
)
def test_a_signal_lets_the_run_save_and_ends_the_search(tmp_path: Path, number: int) -> None:
    with searching(tmp_path) as process:
        process.send_signal(number)
        output = rest_of(process, seconds=SECONDS)
    assert process.returncode == 75, output
    assert "was interrupted. Every finished run is kept" in output
    assert "Traceback" not in output
    assert saved_step(tmp_path) >= 3


@pytest.mark.soak
def test_the_run_of_a_killed_search_saves_and_ends(tmp_path: Path) -> None:
    with searching(tmp_path) as process:
        (run,) = psutil.Process(process.pid).children()
        process.kill()
        process.wait(SECONDS)
        wait_until(lambda: not run.is_running() or run.status() == "zombie", "the run to end")
    assert saved_step(tmp_path) >= 3


def test_a_job_that_names_its_own_ladder_can_make_this_ladder(tmp_path: Path) -> None:
    path = str(write_job(tmp_path, evaluate__ladder="tiny"))
    started: list[Sequence[str]] = []

    def execute(arguments: Sequence[str]) -> int:
        started.append(arguments)
        return 0

    runs = Runs(FileStore(tmp_path / "runs"), path, [], execute)
    run = runs.of(["name=tiny-ladder"])
    assert run.job.evaluate.ladder == "tiny"
    assert runs.start(run, {}) == 0
    ((name, *overrides),) = started
    assert read_job(name, overrides).evaluate.ladder is None
