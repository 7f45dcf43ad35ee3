"""What to tell people while a stage trains, before it costs them: a held-out loss that rises, a
disk that will not hold the next saves, and other programs that slow training on a CPU down. Each is
said once in an attempt. No --json has these words, so they may change."""

from __future__ import annotations

import itertools
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.console.formats import duration, size
from pipeline.console.messages import Note, Say
from pipeline.job import Job
from pipeline.job.sft_and_lora_sections import Conversations
from pipeline.machine.core_waits import LEAST_NS, Times, core_times, waited_share
from pipeline.state.checkpoints.hold import STAYS, deletes_early
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
        """Say if the held-out loss has risen in three evaluations in a row. Of rewards, this is
        chance more often: their draws are few."""
        stage, section = self._stage, self._job.section(self._stage)
        self._losses.append((step, loss))
        last = [loss for _, loss in self._losses[-RISES - 1 :]]
        rises = len(last) > RISES and all(a < b for a, b in itertools.pairwise(last))
        if not rises or self._said_loss or section.sampled:
            return
        self._said_loss = True
        best, lowest = min(self._losses, key=lambda found: found[1])
        shown = " → ".join(f"{loss:.4f} (step {at:,})" for at, loss in self._losses[-RISES - 1 :])
        epochs = section.epochs if isinstance(section, Conversations) else None
        fewer = (
            f"{stage}.steps={best}"
            if epochs is None
            else f"{stage}.epochs={epochs * best / section.total_steps:.2g}"
        )
        self._say(
            Note(
                f"warning: {stage}: the held-out loss has risen {RISES} times in a row: {shown}. "
                "If that goes on, the model learns its training data by heart: use more data, or "
                f"train less ({fewer}). The lowest was {lowest:.4f} at step {best:,}. "
                f"{self._best(best)}"
            )
        )

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
        saves, later = _growth(head, workspace, math.ceil(left / (entry.step - step)), seconds)
        folder = workspace.folder(entry.key)
        free = shutil.disk_usage(folder).free
        fits = free // max(1, entry.bytes)
        if fits >= saves:
            return
        self._said_disk = True
        self._say(
            Note(
                f"warning: the disk of {folder} has {size(free)} free. A checkpoint takes "
                f"{size(entry.bytes)}, one is saved every {duration(seconds)}{later}. The disk "
                f"holds {fits:,} more, and {left:,} steps are left. Free some space now, or stop "
                "with Ctrl-C and run the same command with a longer checkpoint.every_seconds, such "
                f"as {max(60, 60 * math.ceil(seconds / 20))}."
            )
        )


def _growth(head: Head, workspace: Workspace, saves: int, seconds: float) -> tuple[int, str]:
    """Return how many of the next `saves`, one each `seconds`, need room that is free now, and what
    becomes of replaced checkpoints."""
    if workspace.remote:  # a copy on this machine is deleted when it is replaced
        return 1, ""
    replaced = sum(item.key.startswith("checkpoints/") for item in head.trash)
    if deletes_early(workspace.store, workspace.run):
        later = f", and {STAYS} replaced ones stay for those who read them"
        return max(0, min(saves, STAYS) - replaced), later
    # What was replaced in the last hour is deleted in the next.
    needed = min(saves, math.ceil(TRASH_SECONDS / seconds)) - replaced
    return max(1, needed), ", and a replaced one is deleted an hour later"


# ---------------------------------------------------------------- other programs use the cores

# The threads of a product wait for each other. If other programs use the cores, each product waits
# until its last thread has had a core, and a tiny model has thousands of products in a step. Fewer
# threads may then be faster. Their number is not changed here: it decides how sums are rounded, so
# a resumed run would not be bit-identical.

# Below this part of the time, waiting for cores is normal: for our own uploader, for example.
SOME = 0.25
# From this part on, people should know, even if no number of threads helps.
MOST = 0.5
# A process that wants to compute for a smaller part of the time is slow for other reasons.
COMPUTES = 0.2
# A number of threads is advised if it is so many times as fast.
FASTER = 1.5
# Products of more operations take longer than the turns that programs have on a core.
SMALL_FLOPS = 1e9
# Seconds from the start of an attempt to the first look.
FIRST_SECONDS = 2.0
# Seconds between later looks, until the first trial. Each trial doubles them.
LOOK_SECONDS = 10.0
# Seconds that a number of threads is tried.
TRIAL_SECONDS = 0.1


@dataclass(frozen=True)
class Work:
    """A product as training makes it: of `rows` tokens with a matrix of `width` × `width`."""

    rows: int
    width: int

    @property
    def small(self) -> bool:
        """Whether its threads may have to wait for each other most of the time."""
        return 2.0 * self.rows * self.width**2 <= SMALL_FLOPS

    def rate(self, threads: int) -> float:
        """Return how many of these products a number of threads makes in a second, measured."""
        import torch
        from torch.nn import functional

        rows, matrix = torch.ones(self.rows, self.width), torch.ones(self.width, self.width)
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            functional.silu(rows @ matrix)  # starts the threads
            made, began = 0, time.perf_counter()
            while (took := time.perf_counter() - began) < TRIAL_SECONDS or made == 0:
                functional.silu(rows @ matrix)
                made += 1
            return made / took
        finally:
            torch.set_num_threads(before)


class BusyCores:
    """Looks at how long `threads` wait for cores: soon after an attempt has started, and later."""

    def __init__(
        self,
        work: Work,
        threads: int,
        say: Say,
        times: Callable[[], Times] = core_times,
        clock: Callable[[], float] = time.monotonic,
        rate: Callable[[int], float] | None = None,
    ) -> None:
        self._work, self._threads, self._say = work, threads, say
        self._times, self._clock = times, clock
        self._rate = work.rate if rate is None else rate
        self._first, self._pause = True, LOOK_SECONDS
        self._said: set[str] = set()
        self._at, self._before = clock(), times()

    def look(self) -> None:
        """Say if training has had to wait for cores since the last look, a while ago."""
        if self._clock() - self._at < (FIRST_SECONDS if self._first else self._pause):
            return
        self._first = False
        # While this run's own rewards judge answers, training hardly computes.
        least = max(LEAST_NS, COMPUTES * 1e9 * (self._clock() - self._at))
        share = waited_share(self._before, self._times(), least)
        if share is not None and share >= SOME and "threads" not in self._said:
            self._judge(share)
        self._at, self._before = self._clock(), self._times()

    def _judge(self, share: float) -> None:
        """Say what helps, or only why training is slow."""
        waited = (
            f"warning: other programs use this machine's cores: training waited for a core "
            f"{share:.0%} of the time"
        )
        faster = self._faster()
        if faster is not None:
            threads, now, then = faster
            self._said |= {"threads", "busy"}
            text = (
                f"{waited}. With hardware.threads={threads}, products of this model's size are now "
                f"{then / now:.2g} times as fast as with {self._threads} ({now:,.0f} → {then:,.0f} "
                "per second). Stop with Ctrl-C, and run the same command with "
                f"hardware.threads={threads}: it resumes, and sums are rounded in another order."
            )
        elif share >= MOST and "busy" not in self._said:
            self._said.add("busy")
            text = f"{waited}, so it is slow. Nothing is wrong with the run."
        else:
            return
        self._say(Note(text))

    def _faster(self) -> tuple[int, float, float] | None:
        """Return a number of threads that is faster, with the rates now and then, measured."""
        threads = self._threads
        if threads == 1 or not self._work.small:
            return None
        self._pause *= 2
        now = self._rate(threads)
        fewer = [2**n for n in range(threads.bit_length()) if 2**n < threads]
        then, best = max((self._rate(number), number) for number in fewer)
        return (best, now, then) if then >= FASTER * now else None
