"""Ray Train workers: the same training on one and two, and nothing left behind, whatever dies."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import psutil
import pytest

from pipeline.state.metrics import read_events, read_metrics
from pipeline.state.stores import open_store
from pipeline.workers.reaper import session_processes
from tests.runs.test_hops import JOB as HOPPING
from tests.runs.test_hops import STEPS
from tests.runs.test_interruptions import meddle
from tests.runs.test_resume import (
    finish,
    head_of,
    rows_trained,
    start,
    wait_for,
    write_job,
)


def losses(folder: Path, stage: str) -> list[float]:
    rows = read_metrics(open_store(str(folder / "runs")), "tiny", head_of(folder), stage)
    return [row["loss"] for row in rows if "loss" in row]


@pytest.mark.soak
@pytest.mark.usefixtures("on_shared_ray")
def test_two_workers_train_in_bf16_as_one_process_does(tmp_path: Path) -> None:
    folders = {workers: tmp_path / str(workers) for workers in (0, 2)}
    for workers, folder in folders.items():
        folder.mkdir()
        # Adam's first steps follow the gradient's sign: bf16 flips it, and weights part by 2 · lr.
        finish(
            write_job(
                folder,
                hardware__workers=workers,
                hardware__dtype="bfloat16",
                pretrain__lr=1e-3,
                sft__lr=1e-4,
            )
        )
    for stage, steps in (("pretrain", 20), ("sft", 10)):
        one, two = losses(folders[0], stage), losses(folders[2], stage)
        assert len(one) == steps
        assert two == pytest.approx(one, rel=1e-3)
        assert rows_trained(folders[0], stage) == rows_trained(folders[2], stage)


@pytest.mark.usefixtures("on_shared_ray")
def test_a_run_hops_from_one_worker_to_two_and_back(tmp_path: Path) -> None:
    """World size 1 in this process, 2 under Ray, 1 under Ray."""
    (tmp_path / "whole").mkdir()
    finish(write_job(tmp_path / "whole", **HOPPING))
    # One row at a time: steps take long enough to be stopped between them.
    job = write_job(tmp_path, **HOPPING, hardware__threads=1, hardware__micro_batch=1)
    for step, workers in ((4, 0), (8, 2)):
        process = start(job, f"hardware.workers={workers}")
        wait_for(process, f"pretrain step {step}/", lines=1)
        process.send_signal(signal.SIGTERM)  # as from a cloud that takes the machine back
        output, _ = process.communicate()
        assert process.returncode == 75, output
    output = finish(job, "hardware.workers=1")
    assert "→" in output
    assert rows_trained(tmp_path, "pretrain") == [[8 * s, 8 * s + 8] for s in range(STEPS)]
    whole = losses(tmp_path / "whole", "pretrain")
    assert losses(tmp_path, "pretrain") == pytest.approx(whole, rel=1e-4)
    events = read_events(open_store(str(tmp_path / "runs")), "tiny")
    assert [e["workers"] for e in events if e["event"] == "training"] == [1, 2, 1]


def test_a_killed_worker_and_then_a_killed_driver_change_no_bit_of_the_weights(
    tmp_path: Path,
) -> None:
    changes = {"pretrain__steps": 400, "sft": None, "log__every": 1, "checkpoint__every_steps": 20}
    whole = tmp_path / "whole"
    whole.mkdir()
    finish(write_job(whole, **changes))
    job = write_job(tmp_path, **changes, hardware__workers=1, hardware__threads=os.cpu_count())
    process = start(job)
    wait_for(process, "pretrain step", lines=40)
    for worker in workers_of(process.pid, tmp_path):
        worker.kill()
    # Ray starts another, which goes on from what was committed.
    wait_for(process, "pretrain: starts (continues after step", lines=1)
    wait_for(process, "pretrain step", lines=30)
    session = session_of(process.pid)
    assert len(session_processes(session)) > 5
    process.send_signal(signal.SIGKILL)
    process.wait()
    while session_processes(session):
        time.sleep(0.1)
    assert not Path(session).exists()

    assert "continues after step" in finish(job)
    shas = [head_of(folder).checkpoints[0].model_sha256 for folder in (whole, tmp_path)]
    assert shas[0] == shas[1]
    assert head_of(tmp_path).owner is None


@pytest.mark.soak
def test_workers_that_hang_are_replaced_and_no_bit_of_the_weights_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"sft": None, "log__every": 1, "checkpoint__every_steps": 2}
    whole, hung = tmp_path / "whole", tmp_path / "hung"
    for folder in (whole, hung):
        folder.mkdir()
    finish(write_job(whole, **changes, hardware__workers=0))
    job = write_job(hung, **changes, hardware__workers=1, hardware__threads=os.cpu_count())
    meddle(monkeypatch, hung, HANGS_ONCE.replace("MARK", str(hung / "has-hung")))
    output = finish(job, "hardware.hang_seconds=8")
    assert (hung / "has-hung").exists()
    assert "training hangs" in output
    assert "continues after step" in output
    shas = [head_of(folder).checkpoints[0].model_sha256 for folder in (whole, hung)]
    assert shas[0] == shas[1]


HANGS_ONCE = """
import sys, time
if "ray" in " ".join(sys.orig_argv):
    import pathlib
    import pion.train.feed as feed
    wrapped = feed.BatchFeed.take
    def take(self, next_row, skipped):
        if next_row == 28 and not pathlib.Path("MARK").exists():
            pathlib.Path("MARK").touch()
            time.sleep(1000)
        return wrapped(self, next_row, skipped)
    feed.BatchFeed.take = take
"""


def workers_of(driver: int, folder: Path) -> list[psutil.Process]:
    """Ray Train's worker processes: those that hold the lifeline of process `driver`."""
    ports = {c.laddr.port for c in psutil.Process(driver).net_connections() if c.status == "LISTEN"}
    found = []
    for process in psutil.process_iter():
        try:
            connections = process.net_connections()
        except psutil.Error:
            continue
        if process.pid != driver and any(c.raddr and c.raddr.port in ports for c in connections):
            found.append(process)
    assert found, f"no worker is connected to {driver} ({folder})"
    return found


def session_of(driver: int) -> str:
    """The folder of the Ray session that `driver` started."""
    for child in psutil.Process(driver).children():
        match = re.search(r"\S*/pion-ray-\w+", " ".join(child.cmdline()))
        if match:
            return match[0]
    raise AssertionError(f"{driver} has no reaper")
