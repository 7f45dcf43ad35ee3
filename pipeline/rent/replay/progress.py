"""How far a run comes on a machine, and how much work is left."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from pipeline.job import Checkpoint
from pipeline.rent.replay.timed_training import Overheads, StageWork, TimedTraining
from pipeline.state.workspace import Workspace
from pipeline.training.cadence import SaveCadence


class Reached(NamedTuple):
    """How far a run has come: `step` steps of stage number `stage` are done."""

    stage: int
    step: int


class Stint(NamedTuple):
    """What a machine achieved. `finish`: the seconds until the run was done; None if it was not.

    `committed` is what is left after a loss, `reached` after a handover.
    """

    finish: float | None
    committed: Reached
    reached: Reached


class Progress:
    """The training of one run, on machines that save as `policy` and the store of `workspace`
    say."""

    def __init__(
        self, work: Sequence[StageWork], costs: Overheads, policy: Checkpoint, workspace: Workspace
    ) -> None:
        self.work, self.costs, self.policy, self._workspace = work, costs, policy, workspace
        self._trainings: dict[tuple[int, int, float, float], TimedTraining] = {}
        self._paces: dict[float, float] = {}

    @property
    def boot(self) -> float:
        """Seconds from the start of payment until the first step."""
        return self.costs.boot + self.costs.restore

    @property
    def step_seconds(self) -> float:
        """Seconds of the longest step."""
        return max(work.step_seconds for work in self.work)

    def stint(self, place: Reached, seconds: float, life: float, warning: float = 0.0) -> Stint:
        """Return what a machine achieves that trains for `seconds` from `place`, and is told of its
        end `warning` seconds before. `life` is the mean life of machines, in seconds."""
        used = 0.0
        while place.stage < len(self.work):
            training = self._training(place, life, warning)
            work = self.work[place.stage]
            steps = work.steps - place.step
            needed = training.seconds_to_finish(steps, seconds - used)
            if needed > seconds - used:
                loss = training.when_lost(seconds - used, steps)
                reached = max(loss.steps, int(loss.trained / work.step_seconds))
                return Stint(
                    None,
                    Reached(place.stage, place.step + loss.steps),
                    Reached(place.stage, place.step + reached),
                )
            used += needed
            place = Reached(place.stage + 1, 0)
        return Stint(used, place, place)

    def seconds_left(self, place: Reached, life: float) -> float:
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
            self._paces[life] = self._measure_pace(life)
        return self._paces[life]

    def _measure_pace(self, life: float) -> float:
        seconds = steps = 0.0
        for stage, work in enumerate(self.work):
            training = self._training(Reached(stage, 0), life, 0.0)
            seconds += training.seconds_to_finish(work.steps, math.inf)
            steps += work.steps * work.step_seconds
        commits = len(self.work) * (self.costs.stall + self.costs.write)
        return (seconds - commits) / steps

    def _training(self, place: Reached, life: float, warning: float) -> TimedTraining:
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
