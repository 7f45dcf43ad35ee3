"""A run goes on with other hardware settings, on an empty machine, as if nothing had changed."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from pipeline.state.metrics import read_events, read_metrics
from pipeline.state.records import Head
from pipeline.state.run_state import RunState
from pipeline.state.stores import Store, open_store
from tests.runs.test_resume import finish, start, wait_for, write_job

STEPS = 120
JOB: dict[str, Any] = {
    "sft": None,
    "pretrain__steps": STEPS,
    "pretrain__global_batch": 8,
    "pretrain__lr": 1e-3,  # at larger ones rounding errors grow until losses part
    "pretrain__min_lr": 1e-4,
    "checkpoint__every_steps": 4,
    "log__every": 1,
    "hardware__dtype": "float32",
    "evaluate__prompts": [],
}


def on_a_new_machine(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Its disk is empty: nothing downloaded, prepared or saved there before."""
    cache = folder / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


def losses(store: Store) -> list[float]:
    head = _head(store)
    rows = read_metrics(store, "tiny", head, "pretrain")
    return [row["loss"] for row in rows if "loss" in row]


def rows_trained(store: Store) -> list[list[int]]:
    return [r["rows"] for r in read_metrics(store, "tiny", _head(store), "pretrain") if "rows" in r]


def _head(store: Store) -> Head:
    head = RunState(store, "tiny").read()
    assert head is not None
    return head


def test_a_run_hops_between_machines_with_empty_disks_and_other_micro_batches(
    s3_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "whole").mkdir()
    finish(write_job(tmp_path / "whole", **JOB))
    job = write_job(tmp_path, store=s3_store, **JOB)
    output = ""
    for step, micro_batch in ((10, 4), (30, 1)):
        on_a_new_machine(monkeypatch, tmp_path)
        process = start(job, f"hardware.micro_batch={micro_batch}")
        wait_for(process, f"pretrain step {step}/", lines=1)
        process.send_signal(signal.SIGTERM)
        process.communicate()
        assert process.returncode == 75
    on_a_new_machine(monkeypatch, tmp_path)
    (tmp_path / "text" / "all.txt").unlink()  # the prepared data comes from the store
    output = finish(job, "hardware.micro_batch=3")

    assert "micro_batch × grad_accum × workers: 1×8×1 → 3×3×1, 256 tokens per step" in output
    assert "= last + 1" in output
    assert "ALARM" not in output
    whole, hopped = open_store(str(tmp_path / "whole/runs")), open_store(s3_store)
    assert rows_trained(hopped) == rows_trained(whole) == [[8 * s, 8 * s + 8] for s in range(STEPS)]
    assert losses(hopped) == pytest.approx(losses(whole), rel=1e-4)
    receipts = [e["receipt"] for e in read_events(hopped, "tiny") if e["event"] == "hop"]
    assert len(receipts) == 2


def test_a_machine_that_lost_its_disk_loses_no_committed_step(
    s3_store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "whole").mkdir()
    slow = {**JOB, "hardware__micro_batch": 1}
    finish(write_job(tmp_path / "whole", **slow))
    job = write_job(tmp_path, store=s3_store, **slow)
    on_a_new_machine(monkeypatch, tmp_path)
    process = start(job)
    wait_for(process, ": saved", lines=2)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    committed = _head(open_store(s3_store)).checkpoints[0].step
    on_a_new_machine(monkeypatch, tmp_path)
    assert f"continues after step {committed}" in finish(job)
    heads = [_head(open_store(str(tmp_path / "whole/runs"))), _head(open_store(s3_store))]
    shas = [head.checkpoints[0].model_sha256 for head in heads]
    assert shas[0] == shas[1]
