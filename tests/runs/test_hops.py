"""A run continues with other hardware settings, on an empty machine, as if nothing had changed."""

import shutil
import signal

import pytest

from tests.support.whole_runs import (
    events_of,
    final_weights,
    finish,
    interrupt_before_row,
    kill,
    losses,
    newest,
    rows_trained,
    start,
    wait_for,
    write_job,
)

STEPS = 120
JOB = {
    "sft": None,
    "pretrain__steps": STEPS,
    "pretrain__global_batch": 8,
    "pretrain__lr": 1e-3,  # at a larger rate, rounding errors grow until the losses differ
    "pretrain__min_lr": 1e-4,
    "checkpoint__every_steps": 4,
    "log__every": 1,
    "hardware__dtype": "float32",
    "evaluate__prompts": [],
    "hardware__micro_batch": 1,  # steps are slow enough to stop between them
}


def on_a_new_machine(monkeypatch, folder):
    """Use an empty cache, as on a new machine: nothing downloaded, prepared or saved."""
    cache = folder / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))


def test_a_run_hops_between_machines_with_empty_disks_and_other_micro_batches(
    s3_store, whole, tmp_path, monkeypatch
):
    few = JOB | {"pretrain__steps": 20}
    unbroken = whole(**few)
    job = write_job(tmp_path, store=s3_store, **few)
    on_a_new_machine(monkeypatch, tmp_path)
    interrupt_before_row(8 * 6, job, number=signal.SIGTERM)
    on_a_new_machine(monkeypatch, tmp_path)
    (tmp_path / "text" / "all.txt").unlink()  # the prepared data comes from the store
    output = finish(job, "hardware.micro_batch=3")

    assert "micro_batch × grad_accum × workers: 1×8×1 → 3×3×1, 256 tokens per step" in output
    assert "= last + 1" in output
    assert "ALARM" not in output
    every_row_once = [[8 * s, 8 * s + 8] for s in range(20)]
    assert rows_trained(s3_store) == rows_trained(unbroken) == every_row_once
    assert losses(s3_store) == pytest.approx(losses(unbroken), rel=1e-4)
    assert len(events_of(s3_store, "hop")) == 1


@pytest.mark.soak
def test_a_machine_that_lost_its_disk_loses_no_committed_step(
    s3_store, whole, tmp_path, monkeypatch
):
    unbroken = whole(**JOB)
    job = write_job(tmp_path, store=s3_store, **JOB)
    on_a_new_machine(monkeypatch, tmp_path)
    process = start(job)
    wait_for(process, ": saved")
    kill(process)
    committed = newest(s3_store).step
    on_a_new_machine(monkeypatch, tmp_path)
    assert f"continues after step {committed}" in finish(job)
    assert final_weights(s3_store) == final_weights(unbroken)
