"""Keep the deadline of a rented run: at each look, let the policy decide, and carry that out."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from pion.errors import BadInput
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
from pipeline.rent.managed.markets import market_of
from pipeline.rent.managed.provider import Provider
from pipeline.rent.managed.rental_end import FORGET_SECONDS, fails_to_start, final_job
from pipeline.rent.managed.say import Say
from pipeline.rent.managed.seen import owner_outside, rental_of, rentals_of
from pipeline.rent.managed.tell_deadline import DeadlineTeller
from pipeline.rent.managed.two_markets import TwoMarkets
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
        self._beats = WatcherBeats(state)
        self._deadline: RunDeadline | None = None
        self._plan: Plan | None = None
        self._last: Decision | None = None
        self._not_before = -math.inf
        self._left_alone: dict[Market, float] = {}

    def holds(self, look: Look) -> bool:
        """Return whether the run has a deadline that is kept by renting on two markets.

        Raises PionError if that can't be found out.
        """
        try:
            self._deadline = read_deadline(self._state)
        except StoreError:
            if not look.stale:
                raise
        if self._deadline is None or self._deadline.at is None:
            return False
        self._plan = self._work.read(look)
        if self._plan is not None:
            return True
        if look.sky.job is not None and market_of(look.sky.job) is not Market.ON_DEMAND:
            self._teller.once(
                "this rental can't keep the run's deadline, because it was launched without one. "
                f"Move the run to machines that can: pion hop {self._state.url} --on SKY"
            )
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
            self._teller.once(f"no machine on demand will do for the deadline: {why}")
            return
        if self._last is None:
            self._note_unwatched(now)
        self._last = decision
        self._teller.tell(decision)
        if acting:
            self._act(decision)
            self._beats.beat(risk_at(decision), saw(decision))

    def when_to_watch_again(self) -> str:
        """Return until when nobody needs to watch; empty if that does not matter."""
        at = risk_at(self._last) if self._last is not None else None
        return words.watch_by(at, self._clock.now()) if at is not None else ""

    def _act(self, decision: Decision) -> None:
        look, action = decision.look, decision.action
        if (why := self._why_not(look)) is not None:
            self._teller.once(why)
            return
        request = action.request
        now = self._state.clock.monotonic()
        if request is not None and self._is_left_alone(look, request.market, decision.seen.now):
            request = None
        if request is not None and now < self._not_before:
            return
        jobs = [
            each.sky.job
            for market in action.cancel
            if (each := rental_of(look, market)) is not None and each.sky.job is not None
        ]
        if jobs:
            if request is not None:
                self.rentals.announce_next(look.head)
            self.rentals.cancel(jobs, wait=request is not None)
            self._log(decision, f"cancelled managed job {' and '.join(str(j.id) for j in jobs)}")
        if request is None:
            return
        plan = decision.plan
        machines = _of_market(plan.machines, request.market, decision.options)
        prices = plan.work.job.prices
        try:
            job = self.rentals.request(look, request.market, plan.like, machines, prices)
        except BadInput as error:
            self._not_before = now + AGAIN_SECONDS
            self._teller.once(f"no {request.market.value} machine can be requested: {error}")
            return
        self._log(decision, f"requested a machine {_ON[request.market]} as managed job {job}")

    def leave_alone(self, job: ManagedJob) -> None:
        """Request no machine on the market of that job for a while, because none starts the run."""
        if (market := market_of(job)) is not None:
            self._left_alone[market] = self._clock.now() + FORGET_SECONDS

    def _is_left_alone(self, look: Look, market: Market, now: float) -> bool:
        alone = now < self._left_alone.get(market, -math.inf)
        if not alone and not fails_to_start(look, market, now):
            return False
        self._teller.once(
            f"machines {_ON[market]} end before they own the run, so none is requested for a "
            f"while. To see why: sky jobs logs {look.jobs[0].id}"
        )
        return True

    def _why_not(self, look: Look) -> str | None:
        """Return why nothing may be changed now; None if it may."""
        if owner_outside(look):
            return (
                "another process owns the run, so nothing is requested or cancelled for the "
                f"deadline. To see that process: pion status {self._state.url}"
            )
        jobs = [each.sky.job for each in rentals_of(look) if each.sky.job is not None]
        markets = Counter(market_of(job) for job in jobs)
        if None in markets or any(number > 1 for number in markets.values()):
            return (
                "the run is being moved to other machines, so nothing is requested or cancelled "
                "for the deadline until then"
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
