"""Keep a run on a rented machine: at each look, let the policy decide, and carry that out.

A run without a deadline follows the same policy, with infinite slack: one rental is wanted, and it
is replaced once it makes no progress.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Collection
from dataclasses import replace

from pion.errors import BadInput, PionError
from pipeline.cost.budget import over_budget
from pipeline.rent.deadline.policy import CANCEL_SECONDS, Market
from pipeline.rent.managed.keep.deadline_words import DeadlineTeller, outlook_of, watch_by
from pipeline.rent.managed.keep.decision import (
    Decision,
    Plan,
    decide_now,
    decide_without_deadline,
    read_plan,
    risk_at,
    saw,
)
from pipeline.rent.managed.keep.rental_state import (
    CANCELLED,
    final_job,
    has_machine,
    only_job_has_ended,
    owner_of,
    rental_of,
    rentals_of,
    why_not,
)
from pipeline.rent.managed.keep.replace_rental import FUTILE_RESTARTS, Renter
from pipeline.rent.managed.look.diagnose import Finding, dear_pods, diagnose
from pipeline.rent.managed.look.look import Look, Lookout, log_finding
from pipeline.rent.managed.provider.jobs import ManagedJob
from pipeline.rent.managed.provider.provider import Provider
from pipeline.rent.managed.provider.recorded_task import (
    MACHINES,
    NextRental,
    market_of,
    variable_of,
)
from pipeline.rent.managed.request import submitting_alone
from pipeline.state.notes.deadline import RunDeadline, read_deadline
from pipeline.state.notes.stop_requests import is_asked_to_stop
from pipeline.state.notes.watcher_beat import WatcherBeats, nobody_watches, read_beat
from pipeline.state.stores import StoreError
from pipeline.state.stores.clock import StoreClock

# How many seconds SkyPilot may take to cancel a job and end its machine, if there is no hurry.
PATIENT_CANCEL_SECONDS = 300.0
# A rental that was refused is requested again after so many seconds.
AGAIN_SECONDS = 60.0


class RentalKeeper:
    """Keeps the run of the rental that `lookout` looks at on a machine. `say` prints a line.

    `renter` cancels and requests. `unended` has the pods that could not be ended yet, and why.
    """

    def __init__(self, lookout: Lookout, provider: Provider, say: Callable[[str], None]) -> None:
        self._lookout, self._provider, self._say = lookout, provider, say
        self._state = lookout.state
        self.renter = Renter(self._state, lookout.name, provider)
        self._teller = DeadlineTeller(say)
        self._clock = StoreClock(self._state.clock, self._state.store)
        self._beats = WatcherBeats(self._state, self._clock.now)
        self._deadline: RunDeadline | None = None
        # The plan that was last read; and that which is kept: None if there is no deadline, or if
        # this rental can't keep it.
        self._known: Plan | None = None
        self._plan: Plan | None = None
        # The last decision, and when it was made, by the monotonic clock.
        self._last: Decision | None = None
        self._decided_at = 0.0
        self._not_before = -math.inf
        self.unended: dict[str, str] = {}

    # ------------------------------------------------------------ what is known at a look

    def has_deadline(self, look: Look, *, acting: bool) -> bool:
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
        self._plan = None
        if self._deadline is None:
            return False
        if self._deadline.at is None:
            if acting:
                self._let_go(look)
            return False
        self._plan = self._known = read_plan(self._state, look, self._known)
        if self._plan is not None:
            return True
        sentence = "this rental is on demand only, so nothing more is requested for the deadline"
        if market_of(look.followed.job) is not Market.ON_DEMAND:
            sentence = (
                "this rental can't keep the run's deadline, because it was launched without one. "
                f"Move the run to machines that can: pion hop {self._state.url} --on SKY"
            )
        self._teller.once(sentence)
        if acting:
            self._beats.beat(None)
        return False

    def final_job(self, look: Look) -> ManagedJob | None:
        """Return the job with which the rental has ended; None while it goes on.

        Raises PionError if that can't be found out.
        """
        if look.stale:
            return None
        if self.renter.gave_up:
            return look.followed.job
        if self._plan is None:
            return only_job_has_ended(look, self.renter.replacing)
        announced = self.renter.is_next_announced(look) or self.renter.replacing is not None
        return final_job(look, stopped=self._is_stopped(look), next_announced=announced)

    def findings(self, look: Look, over: ManagedJob | None) -> list[tuple[Finding, ManagedJob]]:
        """Return what is wrong, and with which job. Of the job `over` that ends the rental, that is
        only what to know."""
        findings: list[tuple[Finding, ManagedJob]] = []
        if look.stale:
            return findings
        for each in look.of_jobs if self._plan else look.of_jobs[:1]:
            if over in (None, each.job):
                here = [*diagnose(each.sky, each.run, look.at), *dear_pods(each.sky)]
                findings += [(finding, each.job) for finding in here]
        if over is not None:
            return [(finding, job) for finding, job in findings if finding.action == "note"]
        if self._plan is None:
            return findings
        # The policy decides how long to wait for a machine. And the other market may start the
        # run, so this is no reason to end it.
        never = "it never starts"
        return [
            (replace(finding, action="relaunch") if finding.what == never else finding, job)
            for finding, job in findings
            if finding.what != "no machine available"
        ]

    # ------------------------------------------------------------ what is done

    def fix(self, finding: Finding, job: ManagedJob, look: Look) -> list[str]:
        """End pods, or cancel or restart the job, as the finding says; return what was done, in
        words.

        Raises PionError if SkyPilot fails.
        """
        if finding.action == "relaunch" and job.id not in self.renter.given_up:
            return self._restart(finding, job, look)
        done = self.end_pods(finding.pods)
        if finding.action == "cancel":
            done += self._cancel_only(job)
        return done

    def end_pods(self, pods: Collection[str]) -> list[str]:
        """End pods; return what was done, in words. Those that can't be ended are `unended`."""
        failed = self._provider.end_pods(pods)
        ended = [pod for pod in pods if pod not in failed]
        self.unended = {p: why for p, why in (self.unended | failed).items() if p not in ended}
        return [f"terminated pod {pod}" for pod in ended]

    def keep(self, look: Look, *, acting: bool) -> None:
        """Say what the deadline needs now; if `acting`, do it, and complete what was begun.

        Raises PionError if SkyPilot or the store fails. The next look tries again.
        """
        if self._plan is None and self.renter.replacing is None:
            return  # without a deadline, a rental that ends is over
        if self._plan is not None and not look.stale and self._is_stopped(look):
            return
        decision = self._decide(look)
        if decision.plan is not None:
            self._keep_deadline(decision, acting=acting)
            return
        if self._plan is not None:
            why = "; ".join(f"{m.gpu}: {m.words}" for m in self._plan.on_demand)
            self._teller.once(
                f"no machine on demand will do for the deadline: {why}. So spot is waited for as "
                f"without a deadline. Name others: pion hop {self._state.url} --on SKY"
            )
            if acting:
                self._beats.beat(decision.seen.now)
        if acting and self.renter.replacing is not None and not self.unended:
            if (following := self._following(decision)) is not None:
                self._say(self._submit(decision, following))
            else:
                self._cancel(decision)
            self.renter.replacing = None

    def end(self, look: Look) -> None:
        """End what is left of a rental that is over."""
        if self._plan is not None:
            self.renter.end_all(look)

    def when_to_watch_again(self) -> str:
        """Return until when nobody needs to watch; empty if that does not matter.

        Ask no store for the time: it may hang, and this is asked after Ctrl-C.
        """
        at = risk_at(self._last) if self._last is not None else None
        if self._last is None or at is None:
            return ""
        since = self._state.clock.monotonic() - self._decided_at
        return watch_by(at, self._last.seen.now + since)

    # ------------------------------------------------------------ a job that makes no progress

    def _restart(self, finding: Finding, job: ManagedJob, look: Look) -> list[str]:
        """End a job that makes no progress, and its pods, and request what the policy wants then;
        return what was done, in words.

        If what is wanted can't be requested, leave the job alone. A market on which restarts don't
        help is left alone. If nothing is left to try, end the job for good. Raises PionError if
        SkyPilot fails.
        """
        renter, market = self.renter, market_of(job)
        if self._must_wait(look):
            return []
        decision = self._decide(look, job.id)
        owned = owner_of(look) not in (None, market)  # by a machine of the other market
        no_use = renter.restarts(job, look) >= FUTILE_RESTARTS or finding.what == "it never starts"
        if no_use and (decision.plan is None or not (market is Market.SPOT or owned)):
            return self._give_up(finding, job, look, decision)
        held = decision.plan is not None and why_not(look, self._state) is not None
        try:
            following = None if no_use or held else self._following(decision, job, finding)
        except BadInput as error:
            why = f"left the job alone, because it can't be submitted again: {error}"
            if decision.plan is None and not job.live:
                renter.gave_up = why
            return [why]
        done = self.end_pods(finding.pods)
        renter.give_up(job, look)
        if no_use:
            renter.leave_alone(market)
        if decision.plan is None:
            renter.replacing = job  # set before it is cancelled, because that may half fail
            if self.unended:  # another machine would cost as much again, so `keep` requests it
                renter.cancel([job])
                return [*done, f"ended managed job {job.id}, to request another once its pods end"]
        if job.live and (following is None or decision.plan is not None):
            another = "" if following is None else ", to request another machine"
            done.append(f"cancelled managed job {job.id}{another}")
        if following is not None:
            return [*done, self._submit(decision, following)]
        if finding.avoid is not None:
            renter.avoid(finding.avoid)
        if self._plan is not None and not owned:  # else the owner's job says whether it is over
            renter.announce(look.head, renter.next_launch)
        renter.cancel([job])
        renter.replacing = None
        return done

    def _give_up(
        self, finding: Finding, job: ManagedJob, look: Look, decision: Decision
    ) -> list[str]:
        """End a job for good. With it, the rental ends, unless another job of the run lives."""
        done = self.end_pods(finding.pods)
        why = "no machine on demand starts the run, so nothing more is requested"
        if decision.plan is None:
            restarts = self.renter.restarts(job, look)
            after = f" after {restarts} restarts" if restarts else ""
            why = f"no machine has owned the run{after}"
        if decision.plan is not None or not job.live:
            self.renter.gave_up = why
            return [*done, why]
        return [*done, *self._cancel_only(job), why]

    def _cancel_only(self, job: ManagedJob) -> list[str]:
        self._provider.cancel([job.id])
        return [f"cancelled managed job {job.id}"]

    # ------------------------------------------------------------ what the policy decides

    def _decide(self, look: Look, *giving_up: int) -> Decision:
        """Return what follows from a look, without the jobs that are given up."""
        look = replace(look, given_up=frozenset({*self.renter.given_up, *giving_up}))
        if self._plan is None or self._deadline is None:
            return decide_without_deadline(look, self._state.clock.now())
        floor, now = self._state.store.save_seconds, self._clock.now()
        decision = decide_now(look, self._plan, self._deadline, now, floor_seconds=floor)
        return decision or decide_without_deadline(look, now)

    def _keep_deadline(self, decision: Decision, *, acting: bool) -> None:
        now = decision.seen.now
        if self._last is None:
            with contextlib.suppress(StoreError):
                beat = read_beat(self._state)
                if beat is not None and nobody_watches(self._state, beat, now):
                    self._teller.unwatched = (beat.at, now)  # nobody watched before
        self._last, self._decided_at = decision, self._state.clock.monotonic()
        self._teller.tell(decision)
        if not acting:
            return
        try:
            done = self._act(decision)
        except PionError:
            self._beats.beat(now, saw(decision))
            raise
        self._beats.beat(risk_at(decision) if done else now, saw(decision))

    def _act(self, decision: Decision) -> bool:
        """Cancel and request what was decided; return whether that was possible."""
        if (why := why_not(decision.look, self._state)) is not None:
            self._teller.once(why)
            return False
        if decision.action.request is None:
            self._cancel(decision)
            return True
        if self._must_wait(decision.look):
            return False
        try:
            # Before anything is cancelled: what can't be requested must not cost what stands.
            following = self._following(decision)
            if following is not None:
                self._log(decision, self._submit(decision, following))
                return True
        except PionError as error:
            self._not_before = self._state.clock.monotonic() + AGAIN_SECONDS
            if not isinstance(error, BadInput):
                raise
            self._teller.once(
                f"no machine {_ON[decision.action.request]} can be requested, which is "
                f"tried again each minute: {error}"
            )
        return False

    def _following(
        self,
        decision: Decision,
        given_up: ManagedJob | None = None,
        finding: Finding | None = None,
    ) -> NextRental | None:
        """Return what to submit, for the job that `finding` gives up; None if nothing is to be
        requested, or not now.

        Raises BadInput if it can't be submitted from here.
        """
        look, plan, market = decision.look, decision.plan, decision.action.request
        if market is None:
            return None
        if plan is None:
            like = given_up or self.renter.replacing
            assert like is not None  # without a deadline, a request replaces a job
            return self.renter.prepare(NextRental(like), finding)
        if self.renter.is_left_alone(look, market):
            self._teller.once(
                f"machines {_ON[market]} end before they own the run, so none is requested for up "
                f"to an hour. To see why: sky jobs logs {look.jobs[0].id}"
            )
            return None  # and what stands is kept
        wanted = NextRental(
            plan.like,
            decision.machines(market),
            market,
            self.renter.next_launch,
            None if look.head is None else look.head.epoch,
            plan.job.prices,
        )
        return self.renter.prepare(wanted, finding)

    def _submit(self, decision: Decision, following: NextRental) -> str:
        """Cancel what was decided and given up, and submit what follows; return what was done, in
        words. Raises as `Renter.submit` does."""
        with submitting_alone(self._lookout.name):
            over = self._cancel(decision, following)
            if over is not None:
                self.renter.replacing = None
                return (
                    f"managed job {over.id} was already over ({over.status}), so it was not "
                    "restarted"
                )
            self._lookout.job_id = self.renter.submit(decision.look, following)
        if following.market is not None:
            return (
                f"requested a machine {_ON[following.market]} as managed job {self._lookout.job_id}"
            )
        avoid = sorted(map(str, following.avoid))
        elsewhere = f" and excluded {' and '.join(avoid)}" if avoid else ""
        return f"restarted the run as managed job {self._lookout.job_id}{elsewhere}"

    def _cancel(self, decision: Decision, following: NextRental | None = None) -> ManagedJob | None:
        """Cancel what was decided, and what was given up. If a rental follows, announce it first,
        and wait for the end of what is cancelled.

        Return a given-up job that ended by itself before it could be cancelled.
        """
        look, patient = decision.look, following is not None and following.launch_id is None
        rentals = (rental_of(look, market) for market in decision.action.cancel)
        decided = [each.job for each in rentals if each is not None]
        given_up = [
            job
            for job in look.jobs
            if job.id in look.given_up and job.live and (patient or job.status != "CANCELLING")
        ]
        if not (given_up or decided):
            return None
        wait = 0.0
        if following is not None:
            self.renter.announce(look.head, following.launch_id)
            wait = PATIENT_CANCEL_SECONDS if patient else CANCEL_SECONDS
        jobs = self.renter.cancel([*given_up, *decided], wait=wait, must_end=patient)
        if decided:
            ids = " and ".join(str(job.id) for job in decided)
            self._log(decision, f"cancelled managed job {ids}")
        by_itself = (job for job in jobs if not job.live and job.status not in CANCELLED)
        return next((job for job in by_itself if job.id in look.given_up), None)

    def _must_wait(self, look: Look) -> bool:
        """Return whether nothing may be requested now. A request was refused just now. Or it may
        have been submitted: SkyPilot lists a job some seconds later, so it might be submitted
        twice. Or a person cancels the rental: it is over when that has ended."""
        if self._plan is None:
            return False
        clock, asked_at = self._state.clock, self.renter.asked_at
        just_now = asked_at is not None and 0 <= clock.now() - asked_at < AGAIN_SECONDS
        stands = bool(rentals_of(look)) or self.renter.announced
        cancelled = not stands and any(job.status == "CANCELLING" for job in look.jobs)
        return cancelled or just_now or clock.monotonic() < self._not_before

    def _let_go(self, look: Look) -> None:
        """Cancel the request that stands next to the owner's machine and has no machine."""
        owner = owner_of(look)
        jobs = [
            each.job
            for each in rentals_of(look)
            if variable_of(each.job, MACHINES)
            and owner not in (None, market_of(each.job))
            and not has_machine(each)
        ]
        if jobs:
            self.renter.cancel(jobs)
            ids = " and ".join(str(job.id) for job in jobs)
            self._say(f"cancelled managed job {ids}, because the deadline is off")

    def _log(self, decision: Decision, done: str) -> None:
        """Print what was done, and record it in the run's events with the reason."""
        self._say(done)
        why = f"{decision.action.state.value}: {outlook_of(decision)}"
        log_finding(self._state, decision.look, Finding("deadline", why, "note"), [done])

    def _is_stopped(self, look: Look) -> bool:
        """Return whether a person asked the run to stop, or its budget is spent."""
        assert self._plan is not None
        head, budget = look.head, self._plan.job.budget
        spent = head is not None and over_budget(budget, head.spent) is not None
        return spent or is_asked_to_stop(self._state)


_ON = {Market.SPOT: "on spot", Market.ON_DEMAND: "on demand"}
