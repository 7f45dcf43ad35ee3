"""Decide which checkpoints a run keeps, and which one is evaluated and published.

The others are deleted without disturbing readers: a checkpoint is first removed from HEAD's list,
and its folder is marked as trash. Its files are deleted an hour later. In a store on this machine's
own disk, only the newest of these folders stays that long, and those that a reader holds; the
newest one goes, too, if the next save would not fit. A checkpoint that HEAD lists is never deleted.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pion.errors import BadInput
from pipeline.state.checkpoints.hold import deletes_early, has_room, unless_held
from pipeline.state.claim import Claim
from pipeline.state.head import TRASH_SECONDS, CheckpointEntry, Head
from pipeline.state.stores import StoreError

if TYPE_CHECKING:
    from pipeline.job import Job

# The metric of a checkpoint by which the best one is chosen.
HELD_OUT_LOSS = "held_out_loss"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Keep:
    """What to keep besides the newest two checkpoints and the last one of every finished stage.

    `last` keeps that many of the newest checkpoints. `every` keeps the steps that it divides.
    `best` keeps each stage's checkpoint with the lowest value of that metric. `steps` keeps these
    steps, each with its stage.
    """

    last: int = 2
    every: int | None = None
    best: str | None = None
    steps: frozenset[tuple[str, int]] = frozenset()


def kept(head: Head, keep: Keep) -> set[str]:
    """Return the keys of the checkpoints in `head` that stay listed."""
    entries = head.checkpoints  # newest first
    keys = {entry.key for entry in entries[: max(2, keep.last)]}
    keys |= {record.checkpoint for record in head.stages.values() if record.checkpoint}
    keys |= {entry.key for entry in entries if (entry.stage, entry.step) in keep.steps}
    if keep.every:
        keys |= {entry.key for entry in entries if entry.step % keep.every == 0}
    if keep.best:
        keys |= {entry.key for entry in best_of(entries, keep.best).values()}
    return keys


def forget(head: Head, keep: Keep, now: float) -> Head:
    """Return `head` with only the checkpoints to keep. The others are deleted an hour after
    `now`."""
    keys = kept(head, keep)
    return head.without_checkpoints([e.key for e in head.checkpoints if e.key not in keys], now)


def sweep(claim: Claim) -> list[str]:
    """Delete the trash that is due and return its keys. If none is due, HEAD is not changed."""
    deleted = delete_due(claim)
    if deleted:
        claim.commit(lambda head: head.without_trash(deleted))
    return deleted


def delete_due(claim: Claim) -> list[str]:
    """Delete the trash that is due, and return its keys. The caller's next commit removes them.

    A StoreError is only logged: trash that stays only costs space.
    """
    if not claim.head.trash:
        return []
    now, state = claim.store_now(), claim.state
    listed = claim.head.listed()
    trash = [item for item in claim.head.trash if item.key not in listed]
    due = [item.key for item in trash if item.not_before <= now]
    replaced = [item for item in trash if item.key.startswith("checkpoints/")]
    early = [item.key for item in replaced if item.not_before > now]
    if early and not deletes_early(state.store, state.name):
        early = []
    if not due and not early:
        return []
    claim.check()
    try:
        for key in due:
            _delete_folder(claim, key)
        for key in early:
            # The newest one stays: somebody may have read just now that HEAD lists it. But without
            # room for the next save, the run would end. Whoever reads it is told to read again.
            if key == replaced[-1].key and _has_room(claim):
                continue
            with unless_held(state.store, state.key(key)) as free:
                if free:
                    _delete_folder(claim, key)
                    due.append(key)
    except StoreError as error:
        _log.warning("Old checkpoints were not removed: %s", error)
        return []
    return due


def _has_room(claim: Claim) -> bool:
    """Return whether another checkpoint as large as the newest fits on the disk of the run."""
    needed = max((entry.bytes for entry in claim.head.checkpoints[:1]), default=0)
    return has_room(claim.store, claim.state.name, needed)


def _delete_folder(claim: Claim, key: str) -> None:
    files = [entry.key for entry in claim.store.list(claim.state.key(key + "/"))]
    # The manifest first: a checkpoint without a manifest is visibly incomplete.
    for file in sorted(files, key=lambda name: not name.endswith("/manifest.json")):
        claim.store.delete(file)


def sweep_abandoned(claim: Claim) -> list[str]:
    """Mark the unlisted checkpoint folders of older epochs as trash, once per claim.

    `sweep` deletes them an hour later. Temporary files of dead writers that are already an hour old
    are deleted at once. Returns the folders' keys.
    """
    sweep_unused(claim)
    listed = claim.head.listed() | {item.key for item in claim.head.trash}
    folders = {
        entry.key.removeprefix(claim.state.key("")).rpartition("/")[0]
        for entry in claim.store.list(claim.state.key("checkpoints/"))
    }
    abandoned = sorted(folder for folder in folders - listed if _epoch_of(folder) < claim.epoch)
    if abandoned:
        now = claim.store_now()
        claim.commit(lambda head: head.with_trash(abandoned, now))
    return abandoned


def sweep_unused(claim: Claim) -> None:
    """Remove files that dead writers left unfinished or that no key uses, once an hour old.

    A StoreError is only logged: files that stay only cost space.
    """
    try:
        claim.store.sweep_unfinished(claim.state.key(""), claim.state.clock.now() - TRASH_SECONDS)
    except StoreError as error:
        _log.warning("Unused files were not removed: %s", error)


def best_of(entries: Iterable[CheckpointEntry], metric: str) -> dict[str, CheckpointEntry]:
    """Return each stage's checkpoint with the lowest value of `metric`, the newest of equal ones.

    `entries` are newest first. Checkpoints without a finite value do not count.
    """
    best: dict[str, tuple[float, CheckpointEntry]] = {}
    for entry in entries:
        value = entry.metrics.get(metric)
        if value is None or not math.isfinite(value):
            continue
        if entry.stage not in best or value < best[entry.stage][0]:
            best[entry.stage] = value, entry
    return {stage: entry for stage, (_, entry) in best.items()}


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


def _epoch_of(folder: str) -> float:
    """Return the epoch in `checkpoints/<stage>/<step>-<epoch>`; for other names, infinity."""
    epoch = folder.rpartition("-")[2]
    return int(epoch) if epoch.isdigit() else math.inf
