"""Where two runs of one job first differ, and rows that were skipped or seen twice."""

import dataclasses

import numpy as np
import pytest
from safetensors.numpy import save as to_safetensors

from pion.errors import PionError
from pipeline.prove.compare import Trained, differing_tensors, first_difference, read_trained
from pipeline.state.claim import claim_run
from pipeline.state.head import SkippedRows
from pipeline.state.owner import Owner
from pipeline.state.rows.metrics import MetricsLog
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore
from tests.support.jobs import tiny_job
from tests.support.light_run import save_checkpoint, write_metrics

JOB = tiny_job(pretrain__steps=3, pretrain__warmup_steps=1, sft=None)


def trained(**changes):
    whole = Trained(
        checkpoint="checkpoints/pretrain/3-1",
        model_sha256="a" * 64,
        rows=[(0, 4), (4, 8), (8, 12)],
        losses=[5.0, 4.0, 3.0],
        plan={"threads": 1},
        problem=None,
    )
    return dataclasses.replace(whole, **changes)


def finished(folder, steps=3, weight=1.0):
    """Write a run that trained so many steps on 4 rows each, with these weights at the end."""
    run = RunState(FileStore(folder / "runs"), "demo")
    claim = claim_run(run, Owner.me())
    claim.set_restore("pretrain", 0)
    write_metrics(claim, "pretrain", 1, steps)
    weights = {"embed": np.ones(4, np.float32), "norm": np.full(4, weight, np.float32)}
    entry = save_checkpoint(claim, "pretrain", 3, "digest", to_safetensors(weights))
    claim.finish_stage("pretrain", "digest", {}, entry.key)
    return run


def test_the_first_step_with_another_loss_is_named_with_tensors_and_settings(tmp_path):
    first, second = finished(tmp_path / "a"), finished(tmp_path / "b", weight=1.5)
    wanted = trained(checkpoint="checkpoints/pretrain/3-1")
    got = trained(model_sha256="b" * 64, losses=[5.0, 4.5, 2.0], plan={"threads": 2})
    assert first_difference(first, {"pretrain": wanted}, second, {"pretrain": wanted}) is None
    found = first_difference(first, {"pretrain": wanted}, second, {"pretrain": got})
    assert found == (
        "pretrain differs from step 2: the loss is 4.5 instead of 4.0; tensors that differ: norm; "
        "computed differently: threads 1 → 2"
    )


def test_a_weight_that_differs_in_one_bit_is_found_though_every_loss_is_the_same(tmp_path):
    first = finished(tmp_path / "a")
    second = finished(tmp_path / "b", weight=float(np.nextafter(np.float32(1), np.float32(2))))
    key = "checkpoints/pretrain/3-1"
    assert differing_tensors(first, key, second, key) == ["norm"]
    found = first_difference(first, read_trained(first, JOB), second, read_trained(second, JOB))
    assert found.startswith("pretrain differs after its last step: weights ")


def test_files_that_differ_in_no_tensor_name_none(tmp_path):
    first, second = finished(tmp_path / "a"), finished(tmp_path / "b")
    got = trained(model_sha256="b" * 64)
    found = first_difference(first, {"pretrain": trained()}, second, {"pretrain": got})
    weights = f"weights {'b' * 12} instead of {'a' * 12}"
    assert found == f"pretrain differs after its last step: {weights}"


def test_rows_that_were_trained_twice_or_never_are_a_difference_even_with_equal_weights(tmp_path):
    whole = finished(tmp_path / "a")
    assert read_trained(whole, JOB)["pretrain"].problem is None

    missing = finished(tmp_path / "b", steps=2)
    found = first_difference(whole, read_trained(whole, JOB), missing, read_trained(missing, JOB))
    assert "missing: [3]" in found

    twice = finished(tmp_path / "c")
    write_metrics(claim_run(twice, Owner.me()), "pretrain", 3, 3)
    problem = read_trained(twice, JOB)["pretrain"].problem
    assert problem == "steps recorded twice: [3]; missing: none"


def test_a_run_that_did_not_finish_can_not_be_compared(tmp_path):
    with pytest.raises(PionError, match="has not finished sft"):
        read_trained(finished(tmp_path), tiny_job(pretrain__steps=3, pretrain__warmup_steps=1))


def skipped(first, stop):
    return SkippedRows(first, stop, step=2, epoch=1, digest="digest", why="loss is nan", at=0.0)


@pytest.mark.parametrize(
    ("trained_on", "left_out", "expected"),
    [
        ([(0, 4), (4, 8), (8, 12)], [], None),
        ([(0, 4), (4, 12), (12, 16)], [skipped(4, 8)], None),
        ([(0, 4), (4, 12), (12, 16)], [skipped(4, 6), skipped(6, 8)], None),
        ([(0, 4), (4, 8), (8, 16)], [skipped(10, 14)], None),
        ([(0, 4), (5, 9), (9, 13)], [], "step 2 trained on rows 5 to 8 instead of 4 to 7"),
        ([(0, 4), (0, 4), (4, 8)], [], "step 2 trained on rows 0 to 3 instead of 4 to 7"),
        (
            [(0, 4), (4, 8), (8, 12)],
            [skipped(4, 8)],
            "step 2 trained on rows 4 to 7 instead of 4 to 11",
        ),
        (
            [(0, 4), (4, 12), (12, 15)],
            [skipped(4, 8)],
            "step 3 trained on rows 12 to 14 instead of 12 to 15",
        ),
    ],
)
def test_each_step_trains_on_the_next_rows_that_are_not_left_out(
    tmp_path, trained_on, left_out, expected
):
    run = finished(tmp_path, steps=0)
    claim = claim_run(run, Owner.me())
    log = MetricsLog(run.store, run.name, "pretrain", claim.epoch)
    for step, rows in enumerate(trained_on, 1):
        log.append({"step": step, "rows": list(rows), "loss": 1.0})
    log.flush()
    for item in left_out:
        claim.commit(lambda head, item=item: head.with_skipped("pretrain", item))
    claim.commit(lambda head: head)
    assert read_trained(run, JOB)["pretrain"].problem == expected
