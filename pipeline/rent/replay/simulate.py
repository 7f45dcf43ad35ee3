"""Replay a run on a recorded spot market, with the run's own checkpoint policy.

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

With a deadline, `decide`, the function that the watcher of a rented run uses, says what to rent;
here its clock is simulated. Without one, its slack is infinite, so it would only ever want the next
spot machine, and is not asked. What changes with a deadline:

- A machine on demand is there at once, and is never lost. So a replay never gives up.
- A spot machine that is there is noticed at once.
- When a machine takes over from another that still works, nobody trains for the handover, all
  finished steps are kept, and the old machine is paid for until its end.
- A spot machine is paid for until it is lost, also after a warning. How often machines are lost is
  learned from what was paid for, as the watcher learns it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from pipeline.rent.deadline import policy
from pipeline.rent.deadline.policy import HANDOVER_SECONDS, Action, Rental, Seen, Terms, decide
from pipeline.rent.replay.timed_training import START, Overheads, Stint, TimedRun
from pipeline.rent.replay.traces import Trace
from pipeline.training.cadence import mean_life
from pipeline.training.context import MAX_ATTEMPTS

SPOT, ON_DEMAND = policy.Market.SPOT, policy.Market.ON_DEMAND
CAUSES = ("boot", "restore", "recompute", "stall")
# A decision that falls due is asked for a moment later, so that rounding can't put it off.
MOMENT = 1e-3
# The largest number of machines that a sweep simulates. So many take a few seconds.
MACHINES = 500_000


@dataclass
class Outcome:
    """How one replay on spot went, in seconds. The paid time is `kept` plus `lost` of every cause.

    `stopped` says why the run did not finish; None if it did.
    """

    waiting: float = 0.0
    kept: float = 0.0
    lost: dict[str, float] = field(default_factory=lambda: dict.fromkeys(CAUSES, 0.0))
    preemptions: int = 0
    stopped: str | None = None

    def add(self, stay: float, costs: Overheads, stint: Stint) -> None:
        """Add the seconds of a machine that stayed for `stay`, by cause."""
        self.lost["boot"] += min(stay, costs.boot)
        self.lost["restore"] += min(max(stay - costs.boot, 0.0), costs.restore)
        for kept, recompute, stall in stint.spent:
            self.kept += kept
            self.lost["recompute"] += recompute
            self.lost["stall"] += stall

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


@dataclass(frozen=True)
class Paid:
    """Seconds of machines that were paid for, on `spot` and `on_demand`."""

    spot: float
    on_demand: float

    def dollars(self, spot: float, on_demand: float) -> float:
        """Return the dollars at these prices of an hour."""
        return (self.spot * spot + self.on_demand * on_demand) / 3600


@dataclass(frozen=True)
class Course:
    """How one replay with a deadline went: seconds from the start to the end, what was paid for,
    the spot machines that were lost, and how often the run went from on demand back to spot."""

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


def sweep(run: TimedRun, trace: Trace) -> dict[int, Outcome]:
    """Replay the run on spot from every tick, and return the outcomes by tick. If the run is so
    long that this would take many seconds, use evenly spaced ticks."""
    available = trace.share * trace.seconds
    machines = 1 + run.work_seconds * trace.preemptions / available
    every = math.ceil(len(trace.available) * machines / MACHINES)
    outcomes: dict[int, Outcome] = {}
    begun: dict[float, Outcome] = {}
    for tick in range(0, len(trace.available), every):
        begin = tick * trace.gap_seconds
        # A start while there is no machine only waits longer.
        there, _ = trace.next_machine(begin)
        first = there % trace.seconds
        if first not in begun:
            begun[first] = replay_on_spot(run, trace, first)
        outcomes[tick] = replace(begun[first], waiting=begun[first].waiting + (there - begin))
    return outcomes


def replay_on_demand(run: TimedRun) -> Outcome:
    """Replay the run on a machine that is never lost."""
    return replay_on_spot(run, Trace("on demand", 1.0, (True,)), 0.0)


def replay_on_spot(run: TimedRun, trace: Trace, start: float) -> Outcome:
    """Replay the run without a deadline from `start`, in seconds from the beginning of the
    trace."""
    costs, outcome, place, now = run.costs, Outcome(), START, start
    lived, ended = 0.0, 0  # of the processes that were lost
    fruitless = too_short = 0  # machines in a row
    while True:
        there, gone = trace.next_machine(now)
        if there == math.inf or too_short > trace.preemptions:
            outcome.stopped = "no machine lasts long enough"
            return outcome
        outcome.waiting += there - now
        stay = gone - there
        trains = stay > costs.boot
        if trains and fruitless >= MAX_ATTEMPTS:
            outcome.lost["boot"] += costs.boot
            outcome.stopped = f"{MAX_ATTEMPTS} attempts in a row committed nothing"
            return outcome
        life = mean_life(lived, ended, run.assumed_life)
        left = stay - costs.boot - costs.restore
        idle = Stint(math.inf, place, 0, (), 0.0)
        stint = run.stint(place, left, life, costs.warning) if left > 0 else idle
        outcome.add(stay, costs, stint)
        if stint.finish < math.inf:
            return outcome
        outcome.waiting += stint.unpaid
        outcome.preemptions += 1
        too_short = 0 if trains else too_short + 1
        if trains:
            lived, ended = lived + stay - stint.unpaid - costs.boot, ended + 1
            fruitless = fruitless + 1 if stint.committed == place else 0
        place, now = stint.committed, gone


def replay_deadline(run: TimedRun, trace: Trace, start: float, rule: Rule) -> Course:
    """Replay the run with a deadline from `start`, in seconds from the beginning of the trace."""
    walk = _Walk(run, trace, start, rule)
    while not walk.finished:
        walk.follow(decide(walk.terms, walk.seen()))
        walk.advance()
    return Course(walk.now, Paid(walk.paid[SPOT], walk.paid[ON_DEMAND]), walk.losses, walk.returns)


def terms_of(run: TimedRun, rule: Rule, life: float) -> Terms:
    """Return the terms of a run whose machines live for `life` seconds in the mean."""
    return Terms(
        deadline=rule.deadline,
        margin=rule.margin,
        boot=run.boot,
        handover=HANDOVER_SECONDS,
        lag=run.lag(life),
        notice=0.0,
        life=math.inf if rule.greedy else life,
    )


class _Walk:
    """A run with a deadline on its way. Times are seconds from its start."""

    def __init__(self, run: TimedRun, trace: Trace, start: float, rule: Rule) -> None:
        self.run, self.trace, self.start, self.rule = run, trace, start, rule
        self.life = run.assumed_life
        self.terms = terms_of(run, rule, self.life)
        self.now, self.place = 0.0, START
        self.finished = False
        self.rented: dict[policy.Market, Rental] = {}
        self.owner: policy.Market | None = None
        self.trains_from = 0.0
        self.paid = {SPOT: 0.0, ON_DEMAND: 0.0}
        self.losses = self.returns = 0
        self._spot_ends = self._wakes = math.inf

    def seen(self) -> Seen:
        """Return what a watcher would observe now."""
        spot, on_demand = self.rented.get(SPOT), self.rented.get(ON_DEMAND)
        return Seen(self.now, self._work_left(self.now), self.owner, spot, on_demand)

    def _work_left(self, at: float) -> float:
        trained = at - self.trains_from
        if self.owner is None or trained <= 0:
            return self.run.seconds_left(self.place, self.life)
        # A spot machine may save more often, and so train more slowly, than one on demand.
        return self.run.seconds_left(self._stint(trained).reached, self.life)

    def follow(self, action: Action) -> None:
        """Cancel and request what the policy says."""
        for market in action.cancel:
            self._end(market)
        if action.request is ON_DEMAND:
            self.rented[ON_DEMAND] = Rental(self.now, machine=True)
        elif action.request is SPOT and not (self.rule.greedy and self.owner is ON_DEMAND):
            self.rented[SPOT] = Rental(self.now)
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
            self._on_spot()
        elif spot is not None and spot.machine:
            self._while_spot_boots(spot)
        elif self.owner is ON_DEMAND:
            done = self._ends_on_demand()
            if spot is None or not self._spot_comes(done):
                self._finish(done)
        elif ON_DEMAND in self.rented:
            self._claim(ON_DEMAND, self.rented[ON_DEMAND].since + self.run.boot)
        elif not self._spot_comes(self._wakes):
            self.now = max(self._wakes, self.now + MOMENT)

    def _spot_comes(self, before: float) -> bool:
        """Move to when a spot machine comes, if that is `before` then; return whether it is."""
        there, gone = self.trace.next_machine(self.start + self.now)
        if there - self.start >= before:
            return False
        self.now = max(there - self.start, self.now)
        self.rented[SPOT] = Rental(self.now, machine=True)
        self._spot_ends = gone - self.start
        return True

    def _claim(self, market: policy.Market, at: float) -> None:
        self.now = self.trains_from = at
        self.owner = market

    def _while_spot_boots(self, spot: Rental) -> None:
        ready = spot.since + self.run.boot
        ends = self._spot_ends
        if self.owner is ON_DEMAND and (done := self._ends_on_demand()) <= min(ready, ends):
            self._finish(done)
        elif ends <= ready:
            self.now = ends
            self._lose()
        elif self.owner is ON_DEMAND:
            self._hand_over(ON_DEMAND, SPOT, ready)
        else:
            self._claim(SPOT, ready)

    def _lose(self) -> None:
        """Note the loss. SkyPilot asks for the next machine by itself."""
        self._end(SPOT)
        self.rented[SPOT] = Rental(self.now)
        self.losses += 1
        self.life = mean_life(self.paid[SPOT], self.losses, self.run.assumed_life)
        self.terms = terms_of(self.run, self.rule, self.life)

    def _hand_over(self, old: policy.Market, new: policy.Market, at: float) -> None:
        self.place = self._stint(at - self.trains_from).reached
        self.now = at + HANDOVER_SECONDS
        self._end(old)
        self.owner, self.trains_from = new, self.now
        self.returns += new is SPOT

    def _on_spot(self) -> None:
        """Train until the machine is lost, relieved, or so slow that it is to be relieved."""
        relief, ends = self.rented.get(ON_DEMAND), self._spot_ends
        relieved = relief.since + self.run.boot if relief is not None else math.inf
        stint = self._stint(max(ends - self.trains_from, 0.0), self.run.costs.warning)
        done = self.trains_from + stint.finish
        if relieved < min(done, ends):
            self._hand_over(SPOT, ON_DEMAND, relieved)
        elif done < math.inf:
            self._finish(done)
        elif relief is None and (short := self._short_of_slack()) < ends:
            self.now = short
        else:
            self.now, self.place, self.owner = max(ends, self.now), stint.committed, None
            self._lose()

    def _short_of_slack(self) -> float:
        """Return when the slack becomes too small for the spot machine; infinite if it does not
        before the machine is lost."""
        needed, ends = self.run.boot + policy.stay(self.terms), self._spot_ends
        slack = [self.rule.deadline - at - self._work_left(at) - needed for at in (self.now, ends)]
        if slack[0] < 0 or slack[1] >= 0:
            return math.inf
        # Saves come so often that the slack falls evenly.
        share = slack[0] / (slack[0] - slack[1])
        return self.now + share * (ends - self.now) + self.run.step_seconds

    def _ends_on_demand(self) -> float:
        return self.trains_from + self._stint(math.inf).finish

    def _stint(self, seconds: float, warning: float = 0.0) -> Stint:
        return self.run.stint(self.place, seconds, self.life, warning)

    def _finish(self, at: float) -> None:
        self.now, self.finished = at, True
        for market in tuple(self.rented):
            self._end(market)
