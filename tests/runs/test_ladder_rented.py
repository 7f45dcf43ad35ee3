"""A ladder on rented machines: one is killed, and the next one ends it as at home."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline.cost.costs import costs_of
from pipeline.state.head import Head
from pipeline.state.notes.rental_note import RentalNote, read_rental_note, write_rental_note
from pipeline.state.notes.stop_requests import ask_stop
from pipeline.state.run_state import RunState
from pipeline.state.stores import open_store
from tests.support.s3_server import S3Server
from tests.support.states import read
from tests.support.waiting import LONG_SECONDS, kill_tree, read_until, rest_of
from tests.support.whole_runs import write_job

# What `pion ladder --on` says, and what sky/boot.sh makes of it.
LADDER = ("ladder", "--widths=0.5,1,2", "--tokens=0.5,1,2", "--hold-out=1", "--hours=5.0")
LAUNCH = "a" * 32


def machine(folder: Path, number: int) -> dict[str, str]:
    """Return the environment of a rented machine. Its disk is new."""
    (folder / f"machine-{number}").mkdir()
    return {
        "XDG_CACHE_HOME": str(folder / f"machine-{number}"),
        "PION_LAUNCH_ID": LAUNCH,
        "SKYPILOT_TASK_ID": "sky-managed-1",
        "SKYPILOT_MANAGED_JOB_ID": "7",
        "SKYPILOT_CLUSTER_INFO": json.dumps({"cluster_name": f"pod-{number}", "cloud": "RunPod"}),
        "SKYPILOT_NUM_GPUS_PER_NODE": "0",
        "PION_PRICES": '{"CPU": 0.5}',
        "PION_SPOT": "1",
    }


def start(
    job: Path, store: str, environment: Mapping[str, str], *more: str
) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pipeline.cli", *LADDER, *more, str(job), f"store={store}"]
    return subprocess.Popen(
        command,
        cwd=job.parent,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    output = rest_of(process, seconds=LONG_SECONDS)
    return process.returncode, output


def result_of(output: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(output[output.rindex("\n{\n") :])
    return found


def spent_on_runs(store: str) -> list[Head]:
    names = [name for name in open_store(store).folders() if name.startswith("tiny-ladder-")]
    return [read(RunState(open_store(store), name)) for name in names]


@pytest.mark.soak
def test_the_next_machine_ends_the_ladder_of_a_killed_one_as_at_home(
    tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.use(monkeypatch)
    job, store = write_job(tmp_path, sft=None), f"s3://{s3.bucket()}/runs"
    run = RunState(open_store(store), "tiny-ladder")
    write_rental_note(run, RentalNote(1.0, "desk", "me", LAUNCH, 0), None)
    first = start(job, store, machine(tmp_path, 1), "--json")
    read_until(first, "run 3 of 8", seconds=LONG_SECONDS)
    read_until(first, "pretrain step", seconds=LONG_SECONDS)
    kill_tree(first.pid)
    first.wait(LONG_SECONDS)
    head = read(run)
    assert head.owner is not None, "killed, and not released"
    assert head.runs is not None
    assert head.runs.result["run"].startswith("tiny-ladder-")
    assert read_rental_note(run)[0] is not None, "the rental is not over"

    code, output = ended(start(job, store, machine(tmp_path, 2), "--json"))
    assert code == 0, output
    rented = result_of(output)
    assert read_rental_note(run)[0] is None
    head = read(run)
    assert head.runs is not None
    assert head.runs.result == {"finished": True}

    code, output = ended(start(job, str(tmp_path / "home"), {}, "--json"))
    assert code == 0, output
    at_home = result_of(output)
    assert rented["fit"] == at_home["fit"]
    for there, here in zip(rented["runs"], at_home["runs"], strict=True):
        assert there["bits_per_byte"] == here["bits_per_byte"]

    costs = costs_of(run, head, run.clock.now())
    assert [machine.rented for machine in costs.machines] == [True, True]
    runs = sum(head.spent.hours for head in spent_on_runs(store))
    assert runs <= costs.hours * 1.05, "the machines were counted more than once"
    assert rented["dollars"] == pytest.approx(0.5 * runs)


@pytest.mark.soak
def test_a_request_to_stop_lets_the_run_save_and_ends_the_command_with_4(
    tmp_path: Path, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.use(monkeypatch)
    store = f"s3://{s3.bucket()}/runs"
    job = write_job(tmp_path, sft=None, pretrain__steps=400_000, log__every=1)
    process = start(job, store, machine(tmp_path, 1))
    read_until(process, "pretrain step 3/", seconds=LONG_SECONDS)
    run = RunState(open_store(store), "tiny-ladder")
    ask_stop(run, "pion stop")  # seen at the next heartbeat
    code, output = ended(process)
    assert code == 4, output
    assert "Stopped by request (pion stop by" in output
    assert "Traceback" not in output
    assert read(run).owner is None
    (head,) = spent_on_runs(store)
    assert head.owner is None
    assert head.checkpoints[0].step >= 3
