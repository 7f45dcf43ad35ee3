"""Replay a run on recorded spot availability, with the run's own checkpoint policy.

The assumptions:

- A machine starts as soon as the trace has one. It is paid for from then until it is lost or the
  run ends. Waiting costs nothing. How long a manager takes to notice a loss is not modelled.
- The machine boots, restores the newest committed checkpoint, and trains one step after another.
  The first machine has no checkpoint; building the model is assumed to take as long as a restore.
- `SaveCadence`, the class that a run uses, decides when to save; here it runs on a simulated clock.
  A save stalls training. It is then written and uploaded while training continues, and counts once
  it is committed. A save is skipped if the uploader is busy.
- When the machine is lost, so is every step after the last committed one: the next machine repeats
  these steps. If there is a warning, training ends when it comes, or after a long warning as late
  as the last save allows, as in a run (`seconds_to_leave`). The last finished step is committed too
  if there is time for stall, write and upload. The machine is then given back, and not paid for
  until it would have been lost.
- At the end of a stage, training waits until the last step is committed. Preparing data,
  evaluating and publishing take no time here.
- Like a run, a replay gives up (exit code 1) after five machines in a row that began to train but
  committed nothing. As a run does, it learns from how long its processes lived how often machines
  are lost.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from pipeline.job import Checkpoint
from pipeline.rent.replay.timed_training import Overheads, StageWork, TimedTraining
from pipeline.rent.replay.traces import Trace
from pipeline.state.workspace import Workspace
from pipeline.training.cadence import mean_life
from pipeline.training.context import MAX_ATTEMPTS

CAUSES = ("boot", "restore", "recompute", "stall")


@dataclass
class Outcome:
    """How one replay went, in seconds. The paid time is `kept` plus `lost` of every cause.

    `stopped` says why the run did not finish; None if it did.
    """

    waiting: float = 0.0
    kept: float = 0.0
    lost: dict[str, float] = field(default_factory=lambda: dict.fromkeys(CAUSES, 0.0))
    preemptions: int = 0
    stopped: str | None = None

    @property
    def paid(self) -> float:
        return self.kept + sum(self.lost.values())

    @property
    def elapsed(self) -> float:
        """Seconds from the request for the first machine to the end."""
        return self.waiting + self.paid

    @property
    def goodput(self) -> float:
        """The share of the paid time that trained kept steps."""
        return self.kept / self.paid if self.paid else 0.0


# The largest number of machines that a sweep simulates. So many take a few seconds.
MACHINES = 500_000


class Replay:
    """Replays of one run. `policy` and the store of `workspace` decide how often it saves."""

    def __init__(
        self, work: Sequence[StageWork], costs: Overheads, policy: Checkpoint, workspace: Workspace
    ) -> None:
        self.work, self.costs, self.policy = work, costs, policy
        self._workspace = workspace
        self._trainings: dict[tuple[int, int, float], TimedTraining] = {}

    @property
    def work_seconds(self) -> float:
        """The seconds of all steps if none is repeated."""
        return sum(work.steps * work.step_seconds for work in self.work)

    def on_demand(self) -> Outcome:
        """Replay the run on a machine that is never lost."""
        return self.from_tick(Trace("on demand", 1.0, (True,)), 0)

    def sweep(self, trace: Trace) -> dict[int, Outcome]:
        """Replay the run from every tick, and return the outcomes by tick. If the run is so long
        that this would take many seconds, use evenly spaced ticks."""
        available = trace.share * trace.seconds
        machines = 1 + self.work_seconds * trace.preemptions / available
        every = math.ceil(len(trace.available) * machines / MACHINES)
        outcomes: dict[int, Outcome] = {}
        begun: dict[int, Outcome] = {}
        for tick in range(0, len(trace.available), every):
            first, _ = trace.next_machine(tick)
            # A start while there is no machine only waits longer.
            at = tick if first is None else first % len(trace.available)
            if at not in begun:
                begun[at] = self.from_tick(trace, at)
            wait = 0 if first is None else (first - tick) * trace.gap_seconds
            outcomes[tick] = replace(begun[at], waiting=begun[at].waiting + wait)
        return outcomes

    def from_tick(self, trace: Trace, tick: int) -> Outcome:
        """Replay the run with the first machine requested at the start of `tick`."""
        outcome, place = Outcome(), _Reached(0, 0)
        lived, ended = 0.0, 0  # of the processes that were lost
        assumed = self.policy.preemption_hours * 3600
        fruitless = too_short = 0  # machines in a row
        while True:
            first, stay = trace.next_machine(tick)
            if first is None or too_short > trace.preemptions:
                outcome.stopped = "no machine lasts long enough"
                return outcome
            outcome.waiting += (first - tick) * trace.gap_seconds
            trains = stay > self.costs.boot
            if trains and fruitless >= MAX_ATTEMPTS:
                outcome.lost["boot"] += self.costs.boot
                outcome.stopped = f"{MAX_ATTEMPTS} attempts in a row committed nothing"
                return outcome
            between = _rounded(mean_life(lived, ended, assumed))
            before = place
            place, unpaid = self._machine(outcome, place, stay, between)
            if place.stage == len(self.work):
                return outcome
            outcome.waiting += unpaid
            outcome.preemptions += 1
            too_short = 0 if trains else too_short + 1
            if trains:
                lived, ended = lived + stay - unpaid - self.costs.boot, ended + 1
                fruitless = fruitless + 1 if place == before else 0
            tick = first + round(stay / trace.gap_seconds)

    def _machine(
        self, outcome: Outcome, place: _Reached, stay: float, between: float
    ) -> tuple[_Reached, float]:
        """Continue from `place` on a machine that is lost after `stay` seconds. Return the place
        that is committed then, and how many seconds before its loss the machine was given back."""
        costs, lost = self.costs, outcome.lost
        lost["boot"] += min(stay, costs.boot)
        lost["restore"] += min(max(stay - costs.boot, 0.0), costs.restore)
        left = stay - costs.boot - costs.restore
        while left > 0 and place.stage < len(self.work):
            work = self.work[place.stage]
            training = self._training(place, between)
            steps = work.steps - place.step
            seconds = training.seconds_to_finish(steps, left)
            if seconds > left:
                loss = training.when_lost(left, steps)
                kept = loss.steps * work.step_seconds
                outcome.kept += kept
                lost["recompute"] += loss.trained - kept
                lost["stall"] += loss.paid - loss.trained
                return _Reached(place.stage, place.step + loss.steps), left - loss.paid
            outcome.kept += steps * work.step_seconds
            lost["stall"] += seconds - steps * work.step_seconds
            left -= seconds
            place = _Reached(place.stage + 1, 0)
        return place, 0.0

    def _training(self, place: _Reached, between: float) -> TimedTraining:
        """Return the training from `place`. Machines that save at the same times share one."""
        every = self.policy.every_steps
        key = (place.stage, place.step % every if every else 0, between)
        if key not in self._trainings:
            work = self.work[place.stage]
            self._trainings[key] = TimedTraining(
                work, self.costs, self.policy, self._workspace, between, first_step=key[1]
            )
        return self._trainings[key]


class _Reached(NamedTuple):
    """How far a run has come: `step` steps of stage number `stage` are committed."""

    stage: int
    step: int


def _rounded(seconds: float) -> float:
    """Round to two digits, so that machines whose saves would hardly differ share one training."""
    return float(f"{seconds:.2g}")
