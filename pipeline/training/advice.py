"""What to tell people while a stage trains, before it costs them: a held-out loss that rises, and a
disk that will not hold the next saves. Each is said once in an attempt."""

from __future__ import annotations

import itertools
import math
import shutil
import time
from collections.abc import Callable

from pipeline.console.formats import duration, size
from pipeline.console.messages import Note, Say
from pipeline.job import Job
from pipeline.job.train_sections import Sft
from pipeline.state.head import TRASH_SECONDS, CheckpointEntry, Head
from pipeline.state.workspace import Workspace

# A held-out loss that rises this many times in a row rises by more than chance.
RISES = 3


class Advice:
    """Advice about one attempt at a stage, which begins after `step`.

    `run` is what the command line calls the run.
    """

    def __init__(
        self,
        job: Job,
        stage: str,
        step: int,
        run: str,
        say: Say,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._job, self._stage, self._run, self._say, self._clock = job, stage, run, say, clock
        self._losses: list[tuple[int, float]] = []
        self._said_loss = self._said_disk = False
        self._saved = (step, clock())

    def evaluated(self, step: int, loss: float) -> None:
        """Say if the held-out loss has risen in three evaluations in a row."""
        self._losses.append((step, loss))
        last = [loss for _, loss in self._losses[-RISES - 1 :]]
        rises = len(last) > RISES and all(a < b for a, b in itertools.pairwise(last))
        if not rises or self._said_loss:
            return
        self._said_loss = True
        stage, section = self._stage, self._job.section(self._stage)
        best, lowest = min(self._losses, key=lambda found: found[1])
        shown = " → ".join(f"{loss:.4f} (step {at:,})" for at, loss in self._losses[-RISES - 1 :])
        fewer = f"{stage}.steps={best}"
        if isinstance(section, Sft) and section.epochs is not None:
            fewer = f"{stage}.epochs={section.epochs * best / section.total_steps:.2g}"
        text = (
            f"warning: {stage}: the held-out loss has risen {RISES} times in a row: {shown}. If "
            "that goes on, the model learns its training data by heart: use more data, or train "
            f"less ({fewer}). The lowest was {lowest:.4f} at step {best:,}. {self._best(best)}"
        )
        self._say(Note(text))

    def _best(self, step: int) -> str:
        """Return what happens to the checkpoint of the best step."""
        if self._job.selects_best(self._stage):
            return "This job publishes the checkpoint with the lowest loss."
        if self._job.checkpoint.keep.best:
            return f"Its checkpoint is kept: {self._run}@{step}."
        return (
            "Its checkpoint may not be kept. To publish the checkpoint with the lowest loss, set "
            "evaluate.checkpoint=best."
        )

    def saved(self, entry: CheckpointEntry, head: Head, workspace: Workspace) -> None:
        """Say if this machine's disk will not hold the saves that follow `entry`."""
        (step, at), now = self._saved, self._clock()
        self._saved = (entry.step, now)
        left = self._job.section(self._stage).total_steps - entry.step
        if self._said_disk or step >= entry.step or left <= 0:
            return
        seconds = max(now - at, 1e-3)
        saves = 1
        if not workspace.remote:  # else, a copy on this machine is deleted when it is replaced
            saves = min(math.ceil(left / (entry.step - step)), math.ceil(TRASH_SECONDS / seconds))
            # What was replaced in the last hour is deleted in the next.
            saves -= sum(item.key.startswith("checkpoints/") for item in head.trash)
        folder = workspace.folder(entry.key)
        free = shutil.disk_usage(folder).free
        fits = free // max(1, entry.bytes)
        if fits >= max(1, saves):
            return
        self._said_disk = True
        later = "" if workspace.remote else ", and a replaced one is deleted an hour later"
        text = (
            f"warning: the disk of {folder} has {size(free)} free. A checkpoint takes "
            f"{size(entry.bytes)}, one is saved every {duration(seconds)}{later}. The disk holds "
            f"{fits:,} more, and {left:,} steps are left. Free some space now, or stop with Ctrl-C "
            "and run the same command with a longer checkpoint.every_seconds, such as "
            f"{max(60, 60 * math.ceil(seconds / 20))}."
        )
        self._say(Note(text))
