"""Which checkpoint of a run is evaluated and published: the last one, or the best where asked."""

from __future__ import annotations

from dataclasses import dataclass

from pion.errors import BadInput
from pipeline.job import Job
from pipeline.state.checkpoints.retention import HELD_OUT_LOSS, best_of
from pipeline.state.records import CheckpointEntry, Head


@dataclass(frozen=True)
class Selected:
    """The best checkpoint of the last training stage, and its last one.

    The best has the lowest held-out loss. Of equal ones, it is the newest.
    """

    best: CheckpointEntry
    last: CheckpointEntry

    def result(self) -> dict[str, float | None]:
        """Return the steps of both and their held-out losses, as a result of the evaluation."""
        return {
            "step": self.best.step,
            HELD_OUT_LOSS: self.best.metrics[HELD_OUT_LOSS],
            "last_step": self.last.step,
            f"last_{HELD_OUT_LOSS}": self.last.metrics[HELD_OUT_LOSS],
        }


def selected(job: Job, head: Head) -> Selected | None:
    """Return the best checkpoint if the job asks for it; None: the last one is meant.

    All training stages must be finished. Raises BadInput if HEAD does not tell which is the best,
    because the job asked for it only after training.
    """
    stage = job.train_stages[-1]
    if not job.selects_best(stage):
        return None
    record = head.stages[stage]
    entries = [e for e in head.checkpoints if (e.stage, e.digest) == (stage, record.digest)]
    last = next((entry for entry in entries if entry.key == record.checkpoint), None)
    if last is None or last.metrics.get(HELD_OUT_LOSS) is None:
        raise BadInput(
            f"evaluate.checkpoint: best: {stage} was trained without it, so the run has not "
            "recorded which checkpoint is the best. Nothing was lost. Evaluate and publish the "
            f"last one (evaluate.checkpoint=last), or train {stage} again: --redo {stage}"
        )
    return Selected(best_of(entries, HELD_OUT_LOSS)[stage], last)


def final_checkpoint(job: Job, head: Head) -> str:
    """Return the key of the checkpoint that the evaluate stage has evaluated."""
    stages = ("evaluate", job.train_stages[-1])
    keys = [head.stages[stage].checkpoint for stage in stages if stage in head.stages]
    return next(key for key in keys if key is not None)
