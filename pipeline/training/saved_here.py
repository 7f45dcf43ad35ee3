"""Let each rank of a sharded model read the checkpoint that rank 0 has found."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pion.errors import PionError
from pipeline.state.checkpoints.memory_file import machine
from pipeline.state.checkpoints.restore import FoundCheckpoint, Loaded, check_entry, load_folder

if TYPE_CHECKING:
    from pipeline.state.head import CheckpointEntry
    from pipeline.training.context import TrainingContext


def saved_here(context: TrainingContext, found: FoundCheckpoint, saved: Loaded | None) -> Loaded:
    """Return the content of the checkpoint, mapped from files on this rank's machine.

    Rank 0 has `found` it, and has its content, `saved`. On every other machine, one rank downloads
    and verifies it, and deletes the copies that this machine needs no more. Every rank calls this.
    Raises PionError on every rank if a machine can't get it.
    """
    # The other ranks wait for a download, which may take longer than the watchdog allows.
    with context.watchdog.paused():
        folder = _folder_here(context, found)
    return saved if saved is not None else load_folder(folder)


def _folder_here(context: TrainingContext, found: FoundCheckpoint) -> Path:
    """Return the folder with the checkpoint on this rank's machine, once every machine has it."""
    group = context.group
    entry, folder, listed = group.from_rank_0((found.entry, found.folder, found.listed))
    # A rank that can't tell its machine counts as alone on one.
    machines = group.of_all_ranks(machine() or f"rank {group.rank}")
    first = machines.index(machines[group.rank])  # the first rank on this machine
    problem = None
    if first > 0 and not listed:
        problem = (
            f"only the machine of worker 0 has it, in {folder}. To continue from the last save in "
            "the store, delete this folder and run the same command again"
        )
    elif first > 0 and group.rank == first:
        problem = context.patiently(lambda: _download(context, entry))
    problems = [one for one in group.of_all_ranks(problem) if one is not None]
    if problems:
        raise PionError(
            "Each worker of a sharded model needs the checkpoint, but not every machine can read "
            f"{entry.key}: {problems[0]}. Nothing was changed."
        )
    here: Path = context.workspace.folder(entry.key) if first > 0 else folder
    return here


def _download(context: TrainingContext, entry: CheckpointEntry) -> str | None:
    """Bring the checkpoint to this machine; return why it can't be used, or None.

    No save leaves a copy here, and each start may need another checkpoint. So the copies from
    earlier starts are deleted first, but those of finished stages may be needed again.
    """
    head = context.run.read()
    finished = [] if head is None else [record.checkpoint for record in head.stages.values()]
    context.workspace.forget(keep=[entry.key, *filter(None, finished)])
    return check_entry(context.workspace, entry)
