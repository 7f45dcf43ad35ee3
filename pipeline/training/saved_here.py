"""Let each rank of a sharded model read the checkpoint that rank 0 has found."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pion.errors import PionError
from pipeline.state.checkpoints.memory_file import machine
from pipeline.state.checkpoints.restore import Found, Loaded, check_entry, load_folder

if TYPE_CHECKING:
    from pipeline.training.context import TrainingContext


def saved_here(context: TrainingContext, found: Found, saved: Loaded | None) -> Loaded:
    """Return the content of the checkpoint, mapped from files on this rank's machine.

    Rank 0 has `found` it, and has its content, `saved`. On every other machine, one rank downloads
    and verifies it. Every rank calls this. Raises PionError on every rank if a machine can't get
    it.
    """
    group = context.group
    entry, folder, listed = group.from_rank_0((found.entry, found.folder, found.listed))
    machines = group.of_all_ranks(machine())
    first = machines.index(machines[group.rank])  # the first rank on this machine
    problem = None
    if first > 0 and not listed:
        problem = (
            f"only the machine of worker 0 has it, in {folder}. To continue from the last save in "
            "the store, delete this folder and run the same command again"
        )
    elif first > 0 and group.rank == first:
        problem = context.patiently(lambda: check_entry(context.workspace, entry))
    problems = [one for one in group.of_all_ranks(problem) if one is not None]
    if problems:
        raise PionError(
            "Each worker of a sharded model needs the checkpoint, but not every machine can read "
            f"{entry.key}: {problems[0]}. Nothing was changed."
        )
    if saved is not None:
        return saved
    return load_folder(context.workspace.folder(entry.key) if first > 0 else folder)
