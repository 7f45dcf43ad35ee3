"""Keep the deadline of a rented run: at each look, let the policy decide, and carry that out."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pion.errors import BadInput, PionError
from pipeline.cost.budget import over_budget
from pipeline.rent.deadline import words
from pipeline.rent.deadline.on_demand import OnDemand
from pipeline.rent.deadline.policy import Market
from pipeline.rent.managed.act import log_finding
from pipeline.rent.managed.cheapest_first import with_candidates
from pipeline.rent.managed.deadline_decision import Decision, decide_now, risk_at, saw
from pipeline.rent.managed.deadline_work import DeadlineWork, Plan
from pipeline.rent.managed.diagnose import Finding
from pipeline.rent.managed.lookout import Look
from pipeline.rent.managed.managed_jobs import ManagedJob
from pipeline.rent.managed.markets import MACHINES, market_of
from pipeline.rent.managed.moving import moving
from pipeline.rent.managed.provider import Provider
from pipeline.rent.managed.recorded_task import variable_of
from pipeline.rent.managed.rental_end import final_job
from pipeline.rent.managed.say import Say
from pipeline.rent.managed.seen import (
    has_machine,
    owner_of,
    owner_outside,
    rental_of,
    rentals_of,
)
from pipeline.rent.managed.tell_deadline import DeadlineTeller
from pipeline.rent.managed.two_markets import Next, TwoMarkets
from pipeline.rent.sky_yaml import SkyYaml
from pipeline.state.deadline import RunDeadline, read_deadline
from pipeline.state.run_state import RunState
from pipeline.state.stop_requests import is_asked_to_stop
from pipeline.state.stores import StoreError
from pipeline.state.stores.clock import StoreClock
from pipeline.state.watcher_beat import WatcherBeats, is_silent, read_beat

# A rental that was refused is requested again after so many seconds.
AGAIN_SECONDS = 60.0


class DeadlineKeeper:
    """Keeps the deadline of the run that the rental `name` works on. `say` prints a line."""

    def __init__(self, state: RunState, name: str, provider: Provider, say: Say) -> None:
        self.rentals = TwoMarkets(state, name, provider)
        self._state, self._say = state, say
        self._teller = DeadlineTeller(say)
        self._work = DeadlineWork(state)
        self._clock = StoreClock(state.clock, state.store)
        self._beats = WatcherBeats(state, self._clock.now)
        self._deadline: RunDeadline | None = None
        self._plan: Plan | None = None
        self._last: Decision | None = None
        self._not_before = -math.inf

    def holds(self, look: Look, *, acting: bool) -> bool:
        """Return whether the run has a deadline that is kept by renting on two markets.

        If `acting`, say in the store that somebody watches although there is nothing to keep, and
        cancel what was requested for a deadline that is off. Raises PionError if that can't be
        found out.
        """
        try:
            self._deadline = read_deadline(self._state)
        except StoreError:
            if not look.stale:
                raise
        if self._deadline is None:
            return False
        if self._deadline.at is None:
            if acting:
                self._let_go(look)
            return False
        self._plan = self._work.read(look)
        if self._plan is not None:
            return True
        if look.sky.job is not None and market_of(look.sky.job) is Market.ON_DEMAND:
            self._teller.once(
                "this rental is on demand only, so nothing more is requested for the deadline"
            )
        else:
            self._teller.once(
                "this rental can't keep the run's deadline, because it was launched without one. "
                f"Move the run to machines that can: pion hop {self._state.url} --on SKY"
            )
        if acting:
            self._beats.beat(None)
        return False

    def final_job(self, look: Look) -> ManagedJob | None:
        """Return the job with which the rental has ended; None while it goes on.

        Raises PionError if that can't be found out.
        """
        if look.stale:
            return None
        if self.rentals.gave_up:
            return look.sky.job
        announced = self.rentals.is_next_announced(look)
        return final_job(look, stopped=self._is_stopped(look), next_announced=announced)

    def is_stopped(self, look: Look) -> bool:
        """Return whether nothing more should be rented, because a person or the budget says so."""
        return not look.stale and self._is_stopped(look)

    def keep(self, look: Look, *, acting: bool) -> None:
        """Say what the deadline needs now; if `acting`, do it.

        Raises PionError if SkyPilot or the store fails. The next look tries again.
        """
        assert self._deadline is not None
        assert self._plan is not None
        floor, now = self._state.store.save_seconds, self._clock.now()
        decision = decide_now(look, self._plan, self._deadline, now, floor_seconds=floor)
        if decision is None:
            why = "; ".join(f"{m.gpu}: {m.words}" for m in self._plan.work.machines)
            self._teller.once(
                f"no machine on demand will do for the deadline: {why}. So spot is waited for as "
                f"without a deadline. Name others: pion hop {self._state.url} --on SKY"
            )
            if acting:
                self._beats.beat(now)
            return
        if self._last is None:
            self._note_unwatched(now)
        self._last = decision
        self._teller.tell(decision)
        if not acting:
            return
        try:
            done = self._act(decision)
        except PionError:
            self._beats.beat(decision.seen.now, saw(decision))
            raise
        self._beats.beat(risk_at(decision) if done else decision.seen.now, saw(decision))

    def when_to_watch_again(self) -> str:
        """Return until when nobody needs to watch; empty if that does not matter."""
        at = risk_at(self._last) if self._last is not None else None
        return words.watch_by(at, self._clock.now()) if at is not None else ""

    def _act(self, decision: Decision) -> bool:
        """Cancel and request what was decided; return whether that was possible."""
        look, action = decision.look, decision.action
        if (why := self._why_not(look, self._state.clock.now())) is not None:
            self._teller.once(why)
            return False
        if action.request is None:
            self._cancel(decision)
            return True
        market = action.request.market
        if self.rentals.is_left_alone(look, market):
            self._teller.once(
                f"machines {_ON[market]} end before they own the run, so none is requested for up "
                f"to an hour. To see why: sky jobs logs {look.jobs[0].id}"
            )
            return False  # and what stands is kept
        if self._must_wait():
            return False
        plan = decision.plan
        machines = _of_market(plan.machines, market, decision.options)
        try:
            # Before anything is cancelled: what can't be requested must not cost what stands.
            following = self.rentals.prepare(look, plan.like, machines, plan.work.job.prices)
            self._cancel(decision, following)
            job = self.rentals.submit(look, market, following)
        except PionError as error:
            self._not_before = self._state.clock.monotonic() + AGAIN_SECONDS
            if not isinstance(error, BadInput):
                raise
            self._teller.once(
                f"no machine {_ON[market]} can be requested, which is tried again each minute: "
                f"{error}"
            )
            return False
        self._log(decision, f"requested a machine {_ON[market]} as managed job {job}")
        return True

    def _cancel(self, decision: Decision, following: Next | None = None) -> None:
        """Cancel what was decided. If a rental follows, announce it first, and wait for the end of
        what is cancelled."""
        rentals = (rental_of(decision.look, market) for market in decision.action.cancel)
        jobs = [each.sky.job for each in rentals if each is not None and each.sky.job is not None]
        if not jobs:
            return
        if following is not None:
            self.rentals.announce(decision.look.head, following.launch_id)
        self.rentals.cancel(jobs, wait=following is not None)
        self._log(decision, f"cancelled managed job {' and '.join(str(j.id) for j in jobs)}")

    def _must_wait(self) -> bool:
        """Return whether a request was refused just now, or may have been submitted: SkyPilot lists
        a job some seconds later, so it might be submitted twice."""
        clock, asked = self._state.clock, self.rentals.asked_at
        just_now = asked is not None and 0 <= clock.now() - asked < AGAIN_SECONDS
        return just_now or clock.monotonic() < self._not_before

    def _let_go(self, look: Look) -> None:
        """Cancel the request that stands next to the owner's machine and has no machine."""
        owner = owner_of(look)
        jobs = [
            each.sky.job
            for each in rentals_of(look)
            if each.sky.job is not None
            and variable_of(each.sky.job, MACHINES)
            and owner not in (None, market_of(each.sky.job))
            and not has_machine(each)
        ]
        if jobs:
            self.rentals.cancel(jobs, wait=False)
            ids = " and ".join(str(job.id) for job in jobs)
            self._say(f"cancelled managed job {ids}, because the deadline is off")

    def _why_not(self, look: Look, now: float) -> str | None:
        """Return why nothing may be changed now; None if it may."""
        if owner_outside(look):
            return (
                "another process owns the run, so nothing is requested or cancelled for the "
                f"deadline. To see that process: pion status {self._state.url}"
            )
        if (job := moving(look, now, self._state.store)) is not None:
            return (
                f"the run is being moved to managed job {job.id}, so nothing is requested or "
                f"cancelled for the deadline until then. To call that off: sky jobs cancel {job.id}"
            )
        return None

    def _log(self, decision: Decision, done: str) -> None:
        """Print what was done, and record it in the run's events with the reason."""
        self._say(done)
        n, deadline = decision.action.numbers, decision.terms.deadline
        why = words.outlook(deadline, decision.seen.now, n.work_left, n.slack, n.reserve)
        finding = Finding("deadline", f"{decision.action.state.value}: {why}", "note")
        log_finding(self._state, decision.look, finding, [done])

    def _is_stopped(self, look: Look) -> bool:
        """Return whether a person asked the run to stop, or its budget is spent."""
        assert self._plan is not None
        budget = self._plan.work.job.budget
        if look.head is not None and over_budget(budget, look.head.spent) is not None:
            return True
        return is_asked_to_stop(self._state)

    def _note_unwatched(self, now: float) -> None:
        """Remember for how long nobody watched before this watcher began."""
        try:
            beat = read_beat(self._state)
        except StoreError:
            return
        if beat is not None and is_silent(self._state, beat, now):
            self._teller.unwatched = (beat.at, now)


_ON = {Market.SPOT: "on spot", Market.ON_DEMAND: "on demand"}


def _of_market(sky_yaml: SkyYaml, market: Market, options: Sequence[OnDemand]) -> SkyYaml:
    """Return the task with all its spot machines, or with those of `options`."""
    if market is Market.ON_DEMAND:
        return with_candidates(sky_yaml, [option.candidate for option in options])
    spot = [candidate for candidate in sky_yaml.candidates if candidate.use_spot]
    return with_candidates(sky_yaml, spot)
