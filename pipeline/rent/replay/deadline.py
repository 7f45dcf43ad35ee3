"""Replay a run with a deadline on a recorded spot market.

`decide`, the function that the watcher of a rented run uses, says what to rent; here its clock is
simulated. The assumptions, besides those of `pipeline/rent/replay/simulate.py`:

- A machine on demand is there at once, and is never lost.
- A loss, and a spot machine that is there, are noticed at once.
- When a machine takes over from another that still works, nobody trains for the handover, all
  finished steps are kept, and the old machine is paid for until its end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from pipeline.rent.deadline import policy
from pipeline.rent.deadline.policy import HANDOVER_SECONDS, Action, Rental, Seen, Terms, decide
from pipeline.rent.replay.costs import Paid
from pipeline.rent.replay.market import Market
from pipeline.rent.replay.progress import Progress, Reached, Stint

SPOT, ON_DEMAND = policy.Market.SPOT, policy.Market.ON_DEMAND
# Losses to see before their mean says more than `checkpoint.preemption_hours`.
LOSSES_TO_TRUST = 3
# A decision that falls due is asked for a moment later, so that rounding can't put it off.
MOMENT = 1e-3
START = Reached(0, 0)


@dataclass(frozen=True)
class Course:
    """How one replay went: seconds from the start to the end, what was paid for, the spot machines
    that were lost, and how often the run went from on demand back to spot."""

    elapsed: float
    paid: Paid
    losses: int
    returns: int


@dataclass(frozen=True)
class Rule:
    """A deadline in seconds from the start, the margin in seconds, and whether the run is `greedy`:
    it waits for spot as long as it can, and then stays on demand."""

    deadline: float
    margin: float
    greedy: bool = False


def replay_deadline(progress: Progress, market: Market, start: float, rule: Rule) -> Course:
    """Replay the run from `start`, in seconds from the beginning of the market."""
    walk = _Walk(progress, market, start, rule)
    while not walk.finished:
        walk.follow(decide(walk.terms, walk.seen()))
        walk.advance()
    return Course(walk.now, Paid(walk.paid[SPOT], walk.paid[ON_DEMAND]), walk.losses, walk.returns)


def first_terms(progress: Progress, rule: Rule) -> Terms:
    """Return the terms of a run that has lost no machine yet."""
    return _terms(progress, rule, progress.policy.preemption_hours * 3600)


def _terms(progress: Progress, rule: Rule, life: float) -> Terms:
    return Terms(
        deadline=rule.deadline,
        margin=rule.margin,
        boot=progress.boot,
        handover=HANDOVER_SECONDS,
        lag=progress.lag(life),
        notice=0.0,
        life=math.inf if rule.greedy else life,
    )


@dataclass
class _Rented:
    """A rental: when its machine came (None: it has none yet), and when that will be lost."""

    since: float
    machine: bool = False
    ends: float = math.inf


@dataclass
class _Walk:
    """A run on its way. Times are seconds from its start."""

    progress: Progress
    market: Market
    start: float
    rule: Rule
    terms: Terms = field(init=False)
    now: float = 0.0
    place: Reached = START
    finished: bool = False
    losses: int = 0
    returns: int = 0

    def __post_init__(self) -> None:
        self.life = self.progress.policy.preemption_hours * 3600
        self.terms = first_terms(self.progress, self.rule)
        self.paid = {SPOT: 0.0, ON_DEMAND: 0.0}
        self.rented: dict[policy.Market, _Rented] = {}
        self.owner: policy.Market | None = None
        self.trains_from = 0.0
        self._wakes = math.inf

    def seen(self) -> Seen:
        """Return what a watcher would observe now."""
        return Seen(
            now=self.now,
            work_left=self._work_left(self.now),
            owner=self.owner,
            spot=self._rental(SPOT),
            on_demand=self._rental(ON_DEMAND),
        )

    def _work_left(self, at: float) -> float:
        trained = at - self.trains_from
        if self.owner is None or trained <= 0:
            return self.progress.seconds_left(self.place, self.life)
        # A spot machine may save more often, and so train more slowly, than one on demand.
        return self.progress.seconds_left(self._stint(trained).reached, self.life)

    def _rental(self, market: policy.Market) -> Rental | None:
        rented = self.rented.get(market)
        return None if rented is None else Rental(rented.since, rented.machine)

    def follow(self, action: Action) -> None:
        """Cancel and request what the policy says."""
        for market in action.cancel:
            self._end(market)
        wanted = action.request.market if action.request else None
        if wanted is ON_DEMAND:
            self.rented[ON_DEMAND] = _Rented(self.now, machine=True)
        elif wanted is SPOT and not (self.rule.greedy and self.owner is ON_DEMAND):
            self.rented[SPOT] = _Rented(self.now)
        waits = self.owner is None and ON_DEMAND not in self.rented
        self._wakes = action.numbers.spot_until + MOMENT if waits else math.inf

    def _end(self, market: policy.Market) -> None:
        """Stop paying for a machine, if there is one."""
        rented = self.rented.pop(market)
        if rented.machine:
            self.paid[market] += self.now - rented.since

    # ------------------------------------------------------------ what happens next

    def advance(self) -> None:
        """Move to the next event: a machine comes, is ready or is lost, the run ends, or waiting
        does."""
        spot = self.rented.get(SPOT)
        if self.owner is SPOT:
            self._on_spot(self.rented[SPOT])
        elif spot is not None and spot.machine:
            self._while_spot_boots(spot)
        elif self.owner is ON_DEMAND:
            self._on_demand(spot)
        elif ON_DEMAND in self.rented:
            self._claim(ON_DEMAND, self.rented[ON_DEMAND].since + self.progress.boot)
        else:
            assert spot is not None  # the policy never rents nothing
            self._wait(spot)

    def _wait(self, spot: _Rented) -> None:
        there, gone = self._next_machine()
        if there > self._wakes:
            self.now = max(self._wakes, self.now + MOMENT)
        else:
            self._came(spot, there, gone)

    def _next_machine(self) -> tuple[float, float]:
        there, gone = self.market.next_machine(self.start + self.now)
        return there - self.start, gone - self.start

    def _came(self, spot: _Rented, there: float, gone: float) -> None:
        self.now = spot.since = max(there, self.now)
        spot.machine, spot.ends = True, gone

    def _claim(self, market: policy.Market, at: float) -> None:
        self.now = self.trains_from = at
        self.owner = market

    def _while_spot_boots(self, spot: _Rented) -> None:
        ready = spot.since + self.progress.boot
        done = self._ends_on_demand()
        if self.owner is ON_DEMAND and done <= min(ready, spot.ends):
            self._finish(done)
        elif spot.ends <= ready:
            self.now = spot.ends
            self._lose(spot)
        elif self.owner is ON_DEMAND:
            self._hand_over(ON_DEMAND, SPOT, ready)
        else:
            self._claim(SPOT, ready)

    def _lose(self, spot: _Rented) -> None:
        """Note the loss. SkyPilot asks for the next machine by itself."""
        self._end(SPOT)
        self.rented[SPOT] = _Rented(self.now)
        self.losses += 1
        if self.losses >= LOSSES_TO_TRUST:
            self.life = max(self.paid[SPOT] / self.losses, 60.0)
            self.terms = _terms(self.progress, self.rule, self.life)

    def _hand_over(self, old: policy.Market, new: policy.Market, at: float) -> None:
        self.place = self._stint(at - self.trains_from).reached
        self.now = at + HANDOVER_SECONDS
        self._end(old)
        self.owner, self.trains_from = new, self.now
        self.returns += new is SPOT

    def _on_spot(self, spot: _Rented) -> None:
        """Train until the machine is lost, relieved, or so slow that it is to be relieved."""
        relief = self.rented.get(ON_DEMAND)
        relieved = relief.since + self.progress.boot if relief is not None else math.inf
        lives = max(spot.ends - self.trains_from, 0.0)
        stint = self._stint(lives, self.progress.costs.warning)
        done = math.inf if stint.finish is None else self.trains_from + stint.finish
        if done < math.inf and relieved == math.inf:
            self._finish(done)
        elif relieved < min(done, spot.ends):
            self._hand_over(SPOT, ON_DEMAND, relieved)
        elif done < math.inf:
            self._finish(done)
        elif relief is None and (short := self._short_of_slack(spot.ends)) < spot.ends:
            self.now = short
        else:
            self.now, self.place, self.owner = max(spot.ends, self.now), stint.committed, None
            self._lose(spot)

    def _short_of_slack(self, ends: float) -> float:
        """Return when the slack becomes too small for the spot machine that is lost at `ends`;
        infinite if it does not."""
        needed = self.progress.boot + policy.stay(self.terms)
        slack = [self.rule.deadline - at - self._work_left(at) - needed for at in (self.now, ends)]
        if slack[0] < 0 or slack[1] >= 0:
            return math.inf
        # Saves come so often that the slack falls evenly.
        share = slack[0] / (slack[0] - slack[1])
        return self.now + share * (ends - self.now) + self.progress.step_seconds

    def _on_demand(self, spot: _Rented | None) -> None:
        done = self._ends_on_demand()
        there, gone = self._next_machine() if spot is not None else (math.inf, math.inf)
        if spot is None or there >= done:
            self._finish(done)
        else:
            self._came(spot, there, gone)

    def _ends_on_demand(self) -> float:
        if self.owner is not ON_DEMAND:
            return math.inf
        finish = self._stint(math.inf).finish
        assert finish is not None
        return self.trains_from + finish

    def _stint(self, seconds: float, warning: float = 0.0) -> Stint:
        return self.progress.stint(self.place, seconds, self.life, warning)

    def _finish(self, at: float) -> None:
        self.now, self.finished = at, True
        for market in tuple(self.rented):
            self._end(market)
