"""Simulate training on one machine, second by second.

A run's `SaveCadence` decides about every save. The simulated clock moves by the time of a step.
Saves take time, but write nothing. `TimedRun` puts the stages of a run together.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from pipeline.job import Checkpoint
from pipeline.state.workspace import Workspace
from pipeline.training.cadence import LONG_NOTICE, SaveCadence, seconds_to_leave


@dataclass(frozen=True)
class StageWork:
    """A training stage: how many steps, and the seconds of each."""

    stage: str
    steps: int
    step_seconds: float


@dataclass(frozen=True)
class Overheads:
    """What takes time besides the steps, in seconds.

    Attributes:
        boot: from the start of payment until the process restores.
        restore: from then until the first step begins.
        stall: how long a save stops training.
        write: from then until the save is committed.
        warning: how long before its loss a machine is warned.
    """

    boot: float
    restore: float
    stall: float
    write: float
    warning: float = 0.0


class Loss(NamedTuple):
    """What a machine has done when it is lost.

    Attributes:
        steps: how many steps are committed.
        trained: the seconds of training, including the step in flight.
        paid: the seconds until the machine was given back after a warning, or was lost.
    """

    steps: int
    trained: float
    paid: float


class TimedTraining:
    """Training of one stage on a machine that lasts, from a checkpoint at `first_step`.

    `policy`, the store of `workspace` and `preemption_seconds` decide when it saves, as in a run.
    Time and steps count from that checkpoint. They are computed only as far as needed. Save i began
    at `_begun[i]`, after `_steps[i]` steps.
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
        self._stall, self._write, self._warning = costs.stall, costs.write, costs.warning
        self._now, self._step = 0.0, 0
        self._begun: list[float] = []
        self._steps: list[int] = []
        self._cadence = SaveCadence(
            every_steps=policy.every_steps,
            every_seconds=policy.every_seconds,
            preemption_seconds=preemption_seconds,
            last_save=0.0,
            floor_seconds=workspace.store.save_seconds,
        )
        self._first_step, self._step_seconds = first_step, work.step_seconds
        self._needed = seconds_to_leave(costs.stall, costs.write)
        self._losses: dict[float, Loss] = {}
        self._by_clock = policy.every_steps is None
        self._usual_steps = 1  # from one save to the next

    def seconds_to_finish(self, steps: int, seconds: float) -> float:
        """Return the seconds until `steps` are committed on a machine that is lost after `seconds`;
        infinite if the loss, or its warning, comes before the last step is done."""
        if steps == 0:
            return 0.0
        end = self._stops(seconds, steps)
        if steps * self._step_seconds > end:
            return math.inf
        self._train(steps, math.inf)
        last = bisect_left(self._steps, steps) - 1
        resumed, before = self._resumed(last)
        done = resumed + (steps - before) * self._step_seconds
        if done > end:
            return math.inf
        return max(done, self._committed(last)) + self._stall + self._write

    def when_lost(self, seconds: float, steps: int) -> Loss:
        """Return what a machine that is lost after `seconds` has done of `steps`."""
        known = self._losses.get(seconds)
        if known is not None and known.trained < steps * self._step_seconds:
            return known
        found = self._when_lost(seconds, steps)
        if found.trained < steps * self._step_seconds:  # more steps would not change the result
            self._losses[seconds] = found
        return found

    def _when_lost(self, seconds: float, steps: int) -> Loss:
        end = self._stops(seconds, steps)
        if end <= 0:
            return Loss(0, 0.0, 0.0)  # warned before the first step: there is nothing to save
        self._train(steps, end)
        step_seconds = self._step_seconds
        last = min(bisect_right(self._begun, end), bisect_left(self._steps, steps)) - 1
        resumed, before = self._resumed(last)
        trained = min(before * step_seconds + max(end - resumed, 0.0), steps * step_seconds)
        saved_last = max(end, self._committed(last)) + self._stall + self._write
        if self._warning and saved_last <= seconds:
            done = min(before + int(max(end - resumed, 0.0) / step_seconds), steps)
            return Loss(done, trained, saved_last)
        if self._committed(last) > seconds:
            last -= 1
        return Loss(self._resumed(last)[1], trained, seconds)

    def _stops(self, seconds: float, steps: int) -> float:
        """Return when training stops on a machine that is lost after `seconds`: as a run does, at a
        warning, or as late as the last save allows if the warning is long and a save was
        measured."""
        warned = seconds - self._warning
        if self._warning < LONG_NOTICE or warned < 0:
            return warned
        self._train(steps, warned)
        measured = self._begun and self._committed(0) <= warned
        return max(warned, seconds - self._needed) if measured else warned

    def _train(self, steps: int, until: float) -> None:
        """Simulate at least that many steps or up to that time, whichever comes first."""
        while self._step < steps and self._now < until:
            _, before = self._resumed(len(self._begun) - 1)
            step = self._step + 1
            usual = before + self._usual_steps
            if self._by_clock and step == before + 1 and not self._due_after(usual - 1):
                step = usual  # if the clock says a step is not due, no step before it was due
            if self._due_after(step):
                self._usual_steps = step - before
                self._save()

    def _save(self) -> None:
        """Begin a save, unless the previous save is still being written. It stalls training."""
        if self._now < self._committed(len(self._begun) - 1):
            return
        # By now the write time of the previous save is known.
        self._cadence.saved(self._now, self._stall, self._write if self._begun else 0.0)
        self._begun.append(self._now)
        self._steps.append(self._step)
        self._now += self._stall

    def _resumed(self, save: int) -> tuple[float, int]:
        """Return when training continued after that save (-1: when it began), and the steps done
        by then."""
        return (self._begun[save] + self._stall, self._steps[save]) if save >= 0 else (0.0, 0)

    def _committed(self, save: int) -> float:
        """Return when that save is committed."""
        return self._begun[save] + self._stall + self._write if save >= 0 else 0.0

    def _due_after(self, step: int) -> bool:
        """Move to the end of that step, and return whether to save after it."""
        resumed, before = self._resumed(len(self._begun) - 1)
        self._step = step
        self._now = resumed + (step - before) * self._step_seconds
        return self._cadence.due(self._first_step + step, self._now)


class Place(NamedTuple):
    """How far a run has come: `step` steps of stage number `stage` are done."""

    stage: int
    step: int


START = Place(0, 0)


class Stint(NamedTuple):
    """What a machine achieved in the seconds that it could train.

    Attributes:
        finish: the seconds until the run was done; infinite if it was not.
        committed: what is left after the loss of the machine.
        undone: how many finished steps the loss undoes.
        spent: for each stage, the seconds of steps that are kept, of steps that are undone, and for
            which saves stalled training, until the loss.
        unpaid: how many seconds before its loss the machine was given back after a warning.
    """

    finish: float
    committed: Place
    undone: int
    spent: Sequence[tuple[float, float, float]]
    unpaid: float

    @property
    def reached(self) -> Place:
        """What is left after a handover."""
        return Place(self.committed.stage, self.committed.step + self.undone)


class TimedRun:
    """The training of one run, on machines that save as `policy` and the store of `workspace` say.

    Attributes:
        boot: seconds from the start of payment until the first step.
        step_seconds: seconds of the longest step.
        work_seconds: seconds of all steps if none is repeated.
        assumed_life: seconds that a machine is taken to live until some were lost.
    """

    def __init__(
        self, work: Sequence[StageWork], costs: Overheads, policy: Checkpoint, workspace: Workspace
    ) -> None:
        self.work, self.costs, self.policy, self._workspace = work, costs, policy, workspace
        self.boot = costs.boot + costs.restore
        self.step_seconds = max(each.step_seconds for each in work)
        self.work_seconds = sum(each.steps * each.step_seconds for each in work)
        self.assumed_life = policy.preemption_hours * 3600
        self._trainings: dict[tuple[int, int, float, float], TimedTraining] = {}
        self._paces: dict[float, float] = {}

    def stint(self, place: Place, seconds: float, life: float, warning: float = 0.0) -> Stint:
        """Return what a machine achieves that trains for `seconds` from `place`, and is told of its
        end `warning` seconds before. `life` is the mean life of machines, in seconds."""
        # Differences of times carry rounding errors, and one of them could decide about a save.
        left, used = round(seconds, 6), 0.0
        spent: list[tuple[float, float, float]] = []
        while place.stage < len(self.work):
            training = self._training(place, life, warning)
            work = self.work[place.stage]
            steps = work.steps - place.step
            needed = training.seconds_to_finish(steps, left)
            if needed > left:
                loss = training.when_lost(left, steps)
                kept = loss.steps * work.step_seconds
                spent.append((kept, loss.trained - kept, loss.paid - loss.trained))
                undone = max(int(loss.trained / work.step_seconds) - loss.steps, 0)
                place = Place(place.stage, place.step + loss.steps)
                return Stint(math.inf, place, undone, spent, left - loss.paid)
            trained = steps * work.step_seconds
            spent.append((trained, 0.0, needed - trained))
            left, used = left - needed, used + needed
            place = Place(place.stage + 1, 0)
        return Stint(used, place, 0, spent, 0.0)

    def seconds_left(self, place: Place, life: float) -> float:
        """Return the seconds that one machine needs for the rest, with saves and the last commits.
        It saves as often as the mean `life` of machines, in seconds, asks for."""
        steps = sum(work.steps * work.step_seconds for work in self.work[place.stage :])
        if place.stage < len(self.work):
            steps -= place.step * self.work[place.stage].step_seconds
        commits = (len(self.work) - place.stage) * (self.costs.stall + self.costs.write)
        return steps * self._pace(life) + commits

    def lag(self, life: float) -> float:
        """Return the most seconds of work that a loss undoes: from one save to the next, and until
        that is committed."""
        cadence = SaveCadence(
            every_steps=self.policy.every_steps,
            every_seconds=self.policy.every_seconds,
            preemption_seconds=life,
            last_save=0.0,
            floor_seconds=self._workspace.store.save_seconds,
            stall=self.costs.stall,
            write_seconds=self.costs.write,
        )
        return cadence.lag(self.step_seconds)

    def _pace(self, life: float) -> float:
        """Return the seconds that a second of steps takes on a machine that lasts, because of
        saves."""
        life = _two_digits(life)
        if life not in self._paces:
            seconds = sum(
                self._training(Place(stage, 0), life, 0.0).seconds_to_finish(work.steps, math.inf)
                for stage, work in enumerate(self.work)
            )
            commits = len(self.work) * (self.costs.stall + self.costs.write)
            self._paces[life] = (seconds - commits) / self.work_seconds
        return self._paces[life]

    def _training(self, place: Place, life: float, warning: float) -> TimedTraining:
        """Return the training from `place`. Machines that save at the same times share one."""
        every = self.policy.every_steps
        rounded = _two_digits(life)
        key = (place.stage, place.step % every if every else 0, rounded, warning)
        if key not in self._trainings:
            self._trainings[key] = TimedTraining(
                self.work[place.stage],
                replace(self.costs, warning=warning),
                self.policy,
                self._workspace,
                rounded,
                first_step=key[1],
            )
        return self._trainings[key]


def _two_digits(life: float) -> float:
    """Round, so that machines whose saves would hardly differ share one training."""
    return float(f"{life:.2g}")
