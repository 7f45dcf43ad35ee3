"""What training on one machine comes to, second by second, without training.

A run's `SaveCadence` decides about every save. Its clock moves by the time of a step. Saves take as
long as they would, but write nothing.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass

from pipeline.job import Checkpoint
from pipeline.state.workspace import Workspace
from pipeline.training.cadence import SaveCadence


@dataclass(frozen=True)
class StageWork:
    """A training stage: how many steps, and the seconds that each takes."""

    stage: str
    steps: int
    step_seconds: float


@dataclass(frozen=True)
class Overheads:
    """What takes time beside the steps, in seconds.

    Attributes:
        boot: from the start of payment until the process restores.
        restore: from there until the first step begins.
        stall: how long a save stops training.
        write: from then until the save is committed.
        warning: how long before its loss a machine is told.
    """

    boot: float
    restore: float
    stall: float
    write: float
    warning: float = 0.0


class _TimedSaver:
    """The saves of one machine, on a clock that they move; nothing is written.

    Seconds and steps count from where training was restored. Save i began at `begun[i]`, after
    `steps[i]` steps.
    """

    def __init__(self, costs: Overheads) -> None:
        self.stall, self.write = costs.stall, costs.write
        self.now, self.step = 0.0, 0
        self.begun: list[float] = []
        self.steps: list[int] = []

    def save(self, cadence: SaveCadence) -> None:
        """Begin a save and tell `cadence`, unless the save before is still being written."""
        if self.now < self.committed(len(self.begun) - 1):
            return
        # The save before this one has told by now how long it took.
        cadence.saved(self.now, self.stall, self.write if self.begun else 0.0)
        self.begun.append(self.now)
        self.steps.append(self.step)
        self.now += self.stall

    def resumed(self, save: int) -> tuple[float, int]:
        """When training went on after that save (-1: began), and how many steps were done."""
        return (self.begun[save] + self.stall, self.steps[save]) if save >= 0 else (0.0, 0)

    def committed(self, save: int) -> float:
        """When that save counts."""
        return self.begun[save] + self.stall + self.write if save >= 0 else 0.0


class TimedTraining:
    """Training one stage on a machine that lasts, from a checkpoint at `first_step` on.

    `policy`, the store of `workspace` and `preemption_seconds` say when it saves, as in a run. Time
    and steps count from that checkpoint, and are worked out as far as they are asked for.
    """

    def __init__(
        self,
        work: StageWork,
        costs: Overheads,
        policy: Checkpoint,
        workspace: Workspace,
        preemption_seconds: float,
        *,
        first_step: int,
    ) -> None:
        saver = _TimedSaver(costs)
        self._saver = saver
        self._cadence = SaveCadence(
            every_steps=policy.every_steps,
            every_seconds=policy.every_seconds,
            preemption_seconds=preemption_seconds,
            last_save=saver.now,
            floor_seconds=workspace.store.save_seconds,
        )
        self._first_step, self._step_seconds = first_step, work.step_seconds
        self._warning = costs.warning
        self._losses: dict[float, tuple[int, float]] = {}
        self._by_clock = policy.every_steps is None
        self._usual_steps = 1  # from one save to the next

    def seconds_to_finish(self, steps: int, seconds: float) -> float:
        """Until `steps` are done and committed, on a machine that is lost after `seconds`; infinite
        if the last is not done before that, or before it is told so."""
        if steps == 0:
            return 0.0
        end = seconds - self._warning
        if steps * self._step_seconds > end:
            return math.inf
        saver = self._saver
        self._train(steps, math.inf)
        last = bisect_left(saver.steps, steps) - 1
        resumed, before = saver.resumed(last)
        done = resumed + (steps - before) * self._step_seconds
        if done > end:
            return math.inf
        return max(done, saver.committed(last)) + saver.stall + saver.write

    def when_lost(self, seconds: float, steps: int) -> tuple[int, float]:
        """How many of `steps` are committed when the machine is lost after `seconds`, before all
        are, and how long it has trained, the step in flight included."""
        known = self._losses.get(seconds)
        if known is not None and known[1] < steps * self._step_seconds:
            return known
        found = self._when_lost(seconds, steps)
        if found[1] < steps * self._step_seconds:  # so more steps would not change it
            self._losses[seconds] = found
        return found

    def _when_lost(self, seconds: float, steps: int) -> tuple[int, float]:
        end = max(seconds - self._warning, 0.0)
        self._train(steps, end)
        saver, step_seconds = self._saver, self._step_seconds
        last = min(bisect_right(saver.begun, end), bisect_left(saver.steps, steps)) - 1
        resumed, before = saver.resumed(last)
        trained = min(before * step_seconds + max(end - resumed, 0.0), steps * step_seconds)
        saved_last = max(end, saver.committed(last)) + saver.stall + saver.write
        if self._warning and saved_last <= seconds:
            return min(before + int(max(end - resumed, 0.0) / step_seconds), steps), trained
        if saver.committed(last) > seconds:
            last -= 1
        return saver.resumed(last)[1], trained

    def _train(self, steps: int, until: float) -> None:
        """Work it out up to that many steps or that time at least, whichever comes first."""
        saver = self._saver
        while saver.step < steps and saver.now < until:
            _, before = saver.resumed(len(saver.begun) - 1)
            step = saver.step + 1
            usual = before + self._usual_steps
            if self._by_clock and step == before + 1 and not self._due_after(usual - 1):
                step = usual  # what is not due by the clock was not due before
            if self._due_after(step):
                self._usual_steps = step - before
                saver.save(self._cadence)

    def _due_after(self, step: int) -> bool:
        """Whether to save after that step, the clock being where it then is."""
        resumed, before = self._saver.resumed(len(self._saver.begun) - 1)
        self._saver.step = step
        self._saver.now = resumed + (step - before) * self._step_seconds
        return self._cadence.due(self._first_step + step, self._saver.now)
