"""HEAD alone tells which checkpoint is the best one."""

from __future__ import annotations

import math
import random

import pytest

from pion.errors import BadInput
from pipeline.job import Job
from pipeline.state.checkpoints.retention import final_checkpoint, selected
from pipeline.state.head import CheckpointEntry, Head, StageRecord
from tests.support.jobs import tiny_job


def job_for(checkpoint: str = "best") -> Job:
    return tiny_job(evaluate__checkpoint=checkpoint)


def entry(
    step: int, loss: float | None, stage: str = "sft", digest: str = "d", epoch: int = 1
) -> CheckpointEntry:
    metrics = {} if loss is None else {"held_out_loss": loss}
    key = f"checkpoints/{stage}/{step}-{epoch}"
    return CheckpointEntry(stage, step, epoch, digest, key, 0.0, 9, "sha", metrics=metrics)


def head_with(*entries: CheckpointEntry) -> Head:
    """Return HEAD of a run whose sft is finished at the first of `entries`, newest first."""
    return Head(checkpoints=entries).with_stage("sft", StageRecord("d", 0.0, entries[0].key))


def test_the_lowest_held_out_loss_of_the_last_stage_wins() -> None:
    pretrained = entry(9, 0.5, "pretrain")  # a lower loss, of other rows
    head = head_with(entry(6, 3.0), entry(4, 2.0), entry(2, 2.5), pretrained)
    found = selected(job_for(), head)
    assert found is not None
    assert found.result() == {
        "step": 4,
        "held_out_loss": 2.0,
        "last_step": 6,
        "last_held_out_loss": 3.0,
    }


@pytest.mark.parametrize(
    ("older", "wins"),
    [
        ([entry(4, 2.0), entry(2, 2.0)], 4),  # of equal losses the newest
        ([entry(4, None), entry(2, 9.0)], 6),
        ([entry(4, math.nan), entry(2, 9.0)], 6),
        ([entry(4, -math.inf), entry(2, 9.0)], 6),
        ([entry(4, 1.0, digest="other")], 6),
    ],
    ids=["equal", "no loss", "NaN", "infinite", "under other settings"],
)
def test_only_numbers_under_the_same_settings_count(
    older: list[CheckpointEntry], wins: int
) -> None:
    found = selected(job_for(), head_with(entry(6, 3.0), *older))
    assert found is not None
    assert found.best.step == wins


def test_which_epoch_saved_a_checkpoint_does_not_matter() -> None:
    losses = {2: 2.5, 4: 2.0, 6: 3.0}
    draw = random.Random(0)
    steps = set()
    for _ in range(20):
        entries = [entry(s, losses[s], epoch=draw.randint(1, 5)) for s in (6, 4, 2)]
        found = selected(job_for(), head_with(*entries))
        assert found is not None
        steps.add(found.best.step)
    assert steps == {4}


def test_without_being_asked_for_the_last_one_is_meant() -> None:
    head = head_with(entry(6, 3.0), entry(4, 2.0))
    assert selected(job_for("last"), head) is None
    assert final_checkpoint(job_for("last"), head) == "checkpoints/sft/6-1"
    evaluated = head.with_stage("evaluate", StageRecord("e", 0.0, "checkpoints/sft/4-1"))
    assert final_checkpoint(job_for(), evaluated) == "checkpoints/sft/4-1"


def test_a_run_that_was_trained_without_it_says_so() -> None:
    head = head_with(entry(6, None), entry(4, 2.0))
    with pytest.raises(BadInput, match=r"sft was trained without it.*evaluate\.checkpoint=last"):
        selected(job_for(), head)
