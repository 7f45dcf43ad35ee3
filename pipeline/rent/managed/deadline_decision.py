"""Decide what a rental with a deadline needs, from one look at it. Nothing here asks or changes
anything, or reads a clock."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.rent.deadline.on_demand import OnDemand
from pipeline.rent.deadline.policy import Action, Market, Seen, State, Terms, decide
from pipeline.rent.deadline.terms import cadence_of, step_seconds, terms_of
from pipeline.rent.managed.cheapest_first import with_candidates
from pipeline.rent.managed.deadline_work import Plan
from pipeline.rent.managed.lookout import JobLook, Look
from pipeline.rent.managed.recorded_task import variable_of
from pipeline.rent.managed.seen import (
    choices,
    gpu_of,
    has_machine,
    rental_of,
    see,
    see_any,
    with_work_left,
)
from pipeline.rent.sky_yaml import SkyYaml
from pipeline.state.deadline import RunDeadline
from pipeline.state.watcher_beat import Saw


@dataclass(frozen=True)
class Decision:
    """What was known at one look, and what follows.

    `plan` is None without a deadline. `options` are the machines to request on demand, the one that
    the work is timed on first.
    """

    look: Look
    plan: Plan | None
    terms: Terms
    seen: Seen
    options: Sequence[OnDemand]
    action: Action

    def machines(self, market: Market) -> SkyYaml:
        """Return the launch's task with all its spot machines, or with those of `options`."""
        assert self.plan is not None
        entries = self.plan.machines.candidates
        wanted = [candidate for candidate in entries if candidate.use_spot]
        if market is Market.ON_DEMAND:
            wanted = [option.candidate for option in self.options]
        return with_candidates(self.plan.machines, wanted)


def decide_now(
    look: Look, plan: Plan, deadline: RunDeadline, now: float, *, floor_seconds: float
) -> Decision | None:
    """Return what follows from a look at `now` (Unix seconds); None if no machine on demand will
    do.

    `floor_seconds` is the shortest time between saves that the run's store allows.
    """
    work = plan.work

    def terms(machine: OnDemand) -> Terms:
        return terms_of(
            deadline, machine, work.job, look.head, work.measured, floor_seconds=floor_seconds
        )

    options = _options(look, work.machines, deadline, now)
    if not options:
        return None
    left = with_work_left(work, look, terms(options[0]).lag)
    options = _options(look, left.machines, deadline, now)
    first = options[0]
    cadence = cadence_of(work.job, look.head, work.measured, floor_seconds)
    pace = cadence.pace(step_seconds(first, work.job))
    seen = see(look, pace * (first.work or 0.0), now)
    return Decision(look, plan, terms(first), seen, options, decide(terms(first), seen))


def decide_without_deadline(look: Look, now: float) -> Decision:
    """Return what follows from a look at `now` (Unix seconds) if there is no hurry: infinite slack.
    So one rental is wanted, and the policy never rents on demand for lack of time."""
    terms = Terms(math.inf, margin=0.0, boot=0.0, handover=0.0, lag=0.0, notice=0.0, life=1.0)
    seen = see_any(look, now)
    return Decision(look, None, terms, seen, (), decide(terms, seen))


def risk_at(decision: Decision) -> float | None:
    """Return the last moment at which somebody must watch, in Unix seconds; None: nobody must.

    A machine on demand is replaced by SkyPilot. Only the end of waiting for spot needs a watcher.
    """
    action, seen = decision.action, decision.seen
    if action.state in (State.DONE, State.LATE, State.ARMING):
        return None
    spot = seen.spot is not None or action.request is not None
    if action.state is State.DEMAND and not spot:
        return None
    return max(action.numbers.spot_until, seen.now)


def saw(decision: Decision) -> Saw:
    """Return what the run's status shows of a decision."""
    numbers = decision.action.numbers
    return Saw(
        state=decision.action.state.value,
        slack=numbers.slack,
        reserve=numbers.reserve,
        work_left=numbers.work_left,
    )


def _options(
    look: Look, machines: Sequence[OnDemand], deadline: RunDeadline, now: float
) -> list[OnDemand]:
    """Return the machines to request on demand, the one that the work is timed on first.

    That is the machine that the run has, or else the cheapest of those that are requested. So the
    decision does not change because a request has waited for long.
    """
    options = choices(machines, deadline, now)
    stands = rental_of(look, Market.ON_DEMAND)
    if stands is None:
        return options
    gpus = _gpus(stands)
    mine = [m for m in machines if m.candidate.gpu in gpus and m.will_do and m.work is not None]
    mine.sort(key=lambda machine: (machine.price is None, machine.price or 0.0))
    return [*mine[:1], *(option for option in options if option not in mine[:1])]


def _gpus(rental: JobLook) -> set[str | None]:
    """Return the GPU that a rental has, or those that it requests."""
    gpu = gpu_of(rental)
    if has_machine(rental) and gpu is not None:
        return {gpu}
    asked = variable_of(rental.sky.job, "PION_PRICES") if rental.sky.job is not None else None
    return set(json.loads(asked or "{}"))
