"""Ray Train workers: one or two train the same, and one that hangs is replaced.

By default, tests/runs/test_doors.py trains with a worker, and kills it.
"""

import os
import re
import signal
import subprocess
import sys

import psutil
import pytest

from tests.runs.test_hops import JOB as HOPPING
from tests.runs.test_hops import STEPS
from tests.runs.test_phases import MIXES
from tests.support.doors import listening, open_to_others
from tests.support.jobs import TINY
from tests.support.meddling import Meddling
from tests.support.waiting import LONG_SECONDS, rest_of
from tests.support.whole_runs import (
    ends_with,
    events_of,
    final_weights,
    finish,
    interrupt,
    losses,
    rows_trained,
    start,
    wait_for,
    write_job,
)

pytestmark = pytest.mark.soak


@pytest.mark.usefixtures("on_shared_ray")
def test_two_workers_train_in_bf16_as_one_process_does(tmp_path):
    folders = {workers: tmp_path / str(workers) for workers in (0, 2)}
    for workers, folder in folders.items():
        folder.mkdir()
        # Adam's first steps follow the gradient's sign. If bf16 flips it, weights differ by 2 · lr.
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


# By the stage that trains: all weights, or LoRA's additions and their moments. Then the frozen base
# is read again. In pretraining, the two workers cross a border of phases, and the last one another.
HOPS = {
    "pretrain": HOPPING | MIXES,
    "sft": HOPPING
    | {
        "pretrain__steps": 4,
        "sft": TINY["sft"] | {"steps": STEPS, "global_batch": 8, "lora": {"rank": 4}},
    },
}


@pytest.mark.usefixtures("on_shared_ray")
@pytest.mark.parametrize("stage", HOPS)
def test_a_run_hops_from_one_worker_to_two_and_back(tmp_path, whole, stage):
    """World size 1 in one process, 2 under Ray, 1 in one process."""
    unbroken = whole(**HOPS[stage])
    job = write_job(tmp_path, **HOPS[stage])
    for step, workers in ((4, 0), (40, 2)):
        process = start(job, f"hardware.workers={workers}")
        wait_for(process, f"{stage} step {step}/")
        if workers == 2:
            # They met at a socket, as workers on several nodes do.
            sockets = listening(worker.pid for worker in workers_of(process.pid, tmp_path))
            assert len(sockets) >= 2 * workers
            assert open_to_others(sockets) == set()
        interrupt(process, signal.SIGTERM)  # as a cloud sends before it takes the machine
    output = finish(job)
    assert "→" in output
    assert rows_trained(tmp_path, stage) == [[8 * s, 8 * s + 8] for s in range(STEPS)]
    assert losses(tmp_path, stage) == pytest.approx(losses(unbroken, stage), rel=1e-4)
    assert final_weights(tmp_path).keys() == final_weights(unbroken).keys()
    starts = [e for e in events_of(tmp_path, "training") if e["stage"] == stage]
    assert [e["workers"] for e in starts] == [1, 2, 1]


def test_workers_that_hang_are_replaced_and_no_bit_of_the_weights_changes(tmp_path, whole):
    unbroken = whole(sft=None)
    meddling = Meddling(tmp_path, inside="ray")
    meddling.wrap(
        "pion.train.feed:BatchFeed.take",
        """
        def wrapper(take, self, next_row, skipped):
            if next_row == 28 and not (HERE / "has-hung").exists():
                (HERE / "has-hung").touch()
                time.sleep(1000)
            return take(self, next_row, skipped)
        """,
    )
    changes = {"sft": None, "log__every": 1, "checkpoint__every_steps": 2}
    job = write_job(tmp_path, **changes, hardware__workers=1)
    output = ends_with(0, start(job, "hardware.hang_seconds=8", env=meddling.environment()))
    assert (tmp_path / "has-hung").exists()
    assert "training hangs" in output
    assert "continues after step" in output
    assert final_weights(tmp_path) == final_weights(unbroken)


@pytest.mark.soak
@pytest.mark.usefixtures("on_shared_ray")
def test_two_workers_that_are_killed_end_with_the_same_weights(tmp_path):
    """Each has half of the moments, and both halves are in the checkpoint."""
    changes = {"sft": None, "log__every": 1, "checkpoint__every_steps": 4, "hardware__workers": 2}
    changes |= {"hardware__deterministic": True, "pretrain__optimizer": "muon"}
    folders = [tmp_path / "unbroken", tmp_path / "killed"]
    for folder in folders:
        folder.mkdir()
    finish(write_job(folders[0], **changes))
    process = start(write_job(folders[1], **changes))
    wait_for(process, "pretrain step 10/")
    workers_of(process.pid, folders[1])[-1].kill()
    output = ends_with(0, process)
    assert "continues after step" in output
    assert final_weights(folders[1]) == final_weights(folders[0])


def test_a_machine_with_two_busy_loops_a_core_ends_no_run(tmp_path):
    """With that load, Ray once took longer to start than its own limit of six minutes."""
    job = write_job(tmp_path, hardware__workers=1)
    loops = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"])
        for _ in range(2 * len(os.sched_getaffinity(0)))
    ]
    try:
        process = start(job)
        output = rest_of(process, seconds=3 * LONG_SECONDS)
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()
    assert process.returncode == 0, output
    assert "sft: done" in output


def workers_of(driver, folder):
    """Return Ray Train's worker processes: those connected to the lifeline of process `driver`."""
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


def session_of(driver):
    """Return the folder of the Ray session that `driver` started."""
    for child in psutil.Process(driver).children():
        match = re.search(r"\S*/pion-ray-\w+", " ".join(child.cmdline()))
        if match:
            return match[0]
    raise AssertionError(f"{driver} has no reaper")


def test_one_worker_whose_ray_starts_too_slowly_trains_without_ray(tmp_path):
    """Ray's start gets no time at all, as if other programs had taken it."""
    job = write_job(tmp_path, hardware__workers=1)
    output = ends_with(0, start(job, env=os.environ | {"RAY_gcs_server_port_wait_time_s": "0"}))
    assert "Ray did not start: " in output
    assert "This process trains without Ray" in output
