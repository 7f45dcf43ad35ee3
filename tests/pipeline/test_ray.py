"""Ray Train workers: the same training on one and two, and nothing left behind, whatever dies."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import psutil
import pytest

from pipeline.state.metrics import read_metrics
from pipeline.state.stores import open_store
from pipeline.workers.reaper import session_processes
from tests.pipeline.test_resume import (
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


@pytest.mark.usefixtures("on_shared_ray")
@pytest.mark.parametrize(
    ("dtype", "lr", "tolerance", "one_worker"),
    # Adam's first steps follow the gradient's sign: where bf16 flips it, weights part by 2 · lr.
    # 0: the same without Ray, which is faster.
    [("float32", 1e-2, 1e-5, 1), ("bfloat16", 1e-3, 1e-3, 0)],
)
def test_two_workers_train_as_one_does(
    tmp_path: Path, dtype: str, lr: float, tolerance: float, one_worker: int
) -> None:
    folders = {workers: tmp_path / str(workers) for workers in (one_worker, 2)}
    for workers, folder in folders.items():
        folder.mkdir()
        job = write_job(
            folder,
            hardware__workers=workers,
            hardware__dtype=dtype,
            pretrain__lr=lr,
            sft__lr=lr / 10,
        )
        finish(job)
    for stage, steps in (("pretrain", 20), ("sft", 10)):
        one, two = losses(folders[one_worker], stage), losses(folders[2], stage)
        assert len(one) == steps
        assert two == pytest.approx(one, rel=tolerance)
        assert rows_trained(folders[one_worker], stage) == rows_trained(folders[2], stage)


@pytest.mark.usefixtures("on_shared_ray")
def test_a_killed_worker_is_replaced_and_no_bit_of_the_weights_changes(tmp_path: Path) -> None:
    for name in ("unbroken", "broken"):
        (tmp_path / name).mkdir()
    finish(write_job(tmp_path / "unbroken", hardware__workers=0, sft=None, pretrain__steps=300))
    job = write_job(
        tmp_path / "broken",
        hardware__workers=1,
        hardware__threads=os.cpu_count(),
        checkpoint__every_steps=20,
        log__every=1,
        sft=None,
        pretrain__steps=300,
    )
    process = start(job)
    wait_for(process, "pretrain step", lines=40)
    for worker in workers_of(process.pid, tmp_path / "broken"):
        worker.kill()
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert "continues after step" in output
    shas = [head_of(tmp_path / n).checkpoints[0].model_sha256 for n in ("unbroken", "broken")]
    assert shas[0] == shas[1]


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


def test_a_sigkilled_driver_leaves_no_process_and_the_next_run_ends_with_the_same_weights(
    tmp_path: Path,
) -> None:
    changes = {"pretrain__steps": 300, "sft": None, "log__every": 1, "checkpoint__every_steps": 20}
    whole = tmp_path / "whole"
    whole.mkdir()
    finish(write_job(whole, **changes))
    job = write_job(tmp_path, **changes, hardware__workers=1, hardware__threads=os.cpu_count())
    process = start(job)
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


def session_of(driver: int) -> str:
    """The folder of the Ray session that `driver` started."""
    for child in psutil.Process(driver).children():
        match = re.search(r"\S*/pion-ray-\w+", " ".join(child.cmdline()))
        if match:
            return match[0]
    raise AssertionError(f"{driver} has no reaper")
