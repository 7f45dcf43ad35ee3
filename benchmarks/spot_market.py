"""A simulated run on a recorded spot market, for benchmarks/replay.py.

`decide` says what to rent and `SaveCadence` when to save, as in a rented run. Here their clocks are
simulated. The assumptions:

- A machine boots, restores the newest committed checkpoint, and trains one step after another. It
  is paid for from its start to its end. Waiting costs nothing.
- A spot machine is lost without a notice, and the loss is noticed at once. Every step after the
  last committed one is lost too.
- A save stalls training. It is then written while training continues, and counts once it is
  committed. A save is skipped while the one before it is written.
- A machine on demand is there at once, and is never lost.
- When a machine takes over from another that still works, nobody trains for the handover, all
  finished steps are kept, and the old machine is paid for until its end.
- Preparing data, evaluating and publishing take no time.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path

from pipeline.rent.deadline import policy
from pipeline.rent.deadline.policy import HANDOVER_SECONDS, Action, Rental, Seen, Terms, decide
from pipeline.training.cadence import SaveCadence, mean_life

SPOT, ON_DEMAND = policy.Market.SPOT, policy.Market.ON_DEMAND
# A decision that falls due is asked for a moment later, so that rounding can't put it off.
MOMENT = 1e-3


@dataclass(frozen=True)
class Trace:
    """When a machine was available: `available` has a flag for each tick of `gap_seconds`. The end
    of a trace is followed by its beginning."""

    name: str
    gap_seconds: float
    available: tuple[bool, ...]

    @property
    def seconds(self) -> float:
        """How many seconds were recorded."""
        return self.gap_seconds * len(self.available)

    def next_machine(self, at: float) -> tuple[float, float]:
        """Return when the first machine is there, not before `at`, and when it is lost, in seconds
        from the beginning of the trace. Infinite: never."""
        if all(self.available):
            return at, math.inf
        begins, ends = self._spells
        if not begins:
            return math.inf, math.inf
        round_, place = divmod(at, self.seconds)
        # A machine that ends now, but for rounding, has ended.
        found = bisect_right(ends, place + 1e-6 * self.gap_seconds)
        if found == len(ends):
            round_, found = round_ + 1, 0
        shift = round_ * self.seconds
        return max(begins[found] + shift, at), ends[found] + shift

    def spells(self, begin: float, end: float) -> list[float]:
        """Return the seconds of every spell with a machine between two times, cut off at both."""
        found: list[float] = []
        at = begin
        while at < end:
            there, at = self.next_machine(at)
            if there < end:
                found.append(min(at, end) - there)
        return found

    @cached_property
    def _spells(self) -> tuple[list[float], list[float]]:
        """When each machine is there, and when it is lost, in the order of the trace."""
        spells: list[tuple[float, float]] = []
        tick = 0
        for there, ticks in groupby(self.available):
            begun, tick = tick, tick + sum(1 for _ in ticks)
            if there:
                spells.append((begun * self.gap_seconds, tick * self.gap_seconds))
        if self.available[0] and self.available[-1] and len(spells) > 1:
            # The last spell continues at the beginning of the trace.
            first, last = spells[0], spells.pop()
            spells[0] = (last[0] - self.seconds, first[1])
            spells.append((last[0], first[1] + self.seconds))
        return [begin for begin, _ in spells], [end for _, end in spells]


def read_trace(path: Path) -> Trace:
    """Read `{"metadata": {"gap_seconds": 32}, "data": [0, 1, 2, …]}`: how many machines were
    available in each tick."""
    raw = json.loads(path.read_text("utf-8"))
    available = tuple(count >= 1 for count in raw["data"])
    return Trace(path.stem, raw["metadata"]["gap_seconds"], available)


# ---------------------------------------------------------------- training on one machine


@dataclass(frozen=True)
class Stage:
    """A training stage: how many steps, and the seconds of each."""

    steps: int
    step_seconds: float


@dataclass(frozen=True)
class Costs:
    """What takes time besides the steps, in seconds: `boot` is from the start of payment until the
    first step, `stall` how long a save stops training, `write` from then until it is committed."""

    boot: float
    stall: float
    write: float


class Saves:
    """The saves of a stage on a machine that lasts; times and steps count from its checkpoint.

    They are computed only as far as needed. Save i began at `_begun[i]`, after `_steps[i]` steps.
    """

    def __init__(self, step_seconds: float, costs: Costs, life: float) -> None:
        self._step_seconds, self._costs = step_seconds, costs
        self._cadence = SaveCadence(None, None, preemption_seconds=life, last_save=0.0)
        self._begun: list[float] = []
        self._steps: list[int] = []
        self._now, self._step = 0.0, 0
        self._usual_steps = 1  # from one save to the next

    def seconds_to_finish(self, steps: int) -> float:
        """Return the seconds until `steps` are committed."""
        if steps == 0:
            return 0.0
        self._train(steps, math.inf)
        last = bisect_left(self._steps, steps) - 1
        resumed, before = self._resumed(last)
        done = resumed + (steps - before) * self._step_seconds
        return max(done, self._committed(last)) + self._costs.stall + self._costs.write

    def after(self, seconds: float, steps: int) -> tuple[int, int]:
        """Return how many of `steps` are committed and how many are finished after `seconds`."""
        self._train(steps, seconds)
        last = min(bisect_right(self._begun, seconds), bisect_left(self._steps, steps)) - 1
        resumed, before = self._resumed(last)
        trained = before * self._step_seconds + max(seconds - resumed, 0.0)
        if self._committed(last) > seconds:
            last -= 1
        return self._resumed(last)[1], min(int(trained / self._step_seconds), steps)

    def _train(self, steps: int, until: float) -> None:
        """Simulate at least that many steps or up to that time, whichever comes first."""
        while self._step < steps and self._now < until:
            _, before = self._resumed(len(self._begun) - 1)
            step = self._step + 1
            usual = before + self._usual_steps
            if step == before + 1 and not self._due_after(usual - 1):
                step = usual  # if a step is not due, no step before it was due
            if self._due_after(step):
                self._usual_steps = step - before
                self._save()

    def _due_after(self, step: int) -> bool:
        """Move to the end of that step, and return whether to save after it."""
        resumed, before = self._resumed(len(self._begun) - 1)
        self._step = step
        self._now = resumed + (step - before) * self._step_seconds
        return self._cadence.due(step, self._now)

    def _save(self) -> None:
        """Begin a save, unless the previous save is still being written."""
        if self._now < self._committed(len(self._begun) - 1):
            return
        # By now the write time of the previous save is known.
        written = self._costs.write if self._begun else 0.0
        self._cadence.saved(self._now, self._costs.stall, written)
        self._begun.append(self._now)
        self._steps.append(self._step)
        self._now += self._costs.stall

    def _resumed(self, save: int) -> tuple[float, int]:
        """Return when training continued after that save (-1: when it began), and the steps done
        by then."""
        return (self._begun[save] + self._costs.stall, self._steps[save]) if save >= 0 else (0.0, 0)

    def _committed(self, save: int) -> float:
        """Return when that save is committed."""
        return self._resumed(save)[0] + self._costs.write if save >= 0 else 0.0


class Stint:
    """What a machine achieved in the seconds that it could train: `finish` is when the run was
    done (infinite: it was not), `committed` what is left after the loss of the machine, `reached`
    what is left after a handover. A place is a stage and its finished steps."""

    def __init__(self, run: TimedRun, place: tuple[int, int], seconds: float, life: float) -> None:
        # Differences of times carry rounding errors, and one of them could decide about a save.
        left, used, (stage, step) = round(seconds, 6), 0.0, place
        self.finish = math.inf
        while stage < len(run.stages):
            saves, steps = run.saves(stage, life), run.stages[stage].steps - step
            if steps * run.stages[stage].step_seconds > left or (
                (needed := saves.seconds_to_finish(steps)) > left
            ):
                committed, finished = saves.after(max(left, 0.0), steps)
                self.committed, self.reached = (stage, step + committed), (stage, step + finished)
                return
            left, used, stage, step = left - needed, used + needed, stage + 1, 0
        self.finish, self.committed = used, (stage, 0)
        self.reached = self.committed


class TimedRun:
    """The training of one run. `assumed_life`: seconds that a machine is taken to live until some
    were lost. `work_seconds`: seconds of all steps if none is repeated."""

    def __init__(self, stages: Sequence[Stage], costs: Costs, assumed_life: float) -> None:
        self.stages, self.costs, self.assumed_life = stages, costs, assumed_life
        self.step_seconds = max(stage.step_seconds for stage in stages)
        self.work_seconds = sum(stage.steps * stage.step_seconds for stage in stages)
        self._saves: dict[tuple[int, float], Saves] = {}

    def saves(self, stage: int, life: float) -> Saves:
        """Return the saves of a stage. Machines whose saves would hardly differ share them."""
        key = (stage, float(f"{life:.2g}"))
        if key not in self._saves:
            self._saves[key] = Saves(self.stages[stage].step_seconds, self.costs, key[1])
        return self._saves[key]

    def seconds_left(self, place: tuple[int, int], life: float) -> float:
        """Return the seconds that one machine needs for the rest, with saves and the last commits.
        It saves as often as the mean `life` of machines, in seconds, asks for."""
        stage, step = place
        left = -step * self.stages[stage].step_seconds if step else 0.0
        left += sum(each.steps * each.step_seconds for each in self.stages[stage:])
        whole = self._with_saves(life)
        commit = self.costs.stall + self.costs.write
        pace = (whole - len(self.stages) * commit) / self.work_seconds
        return left * pace + (len(self.stages) - stage) * commit

    def _with_saves(self, life: float) -> float:
        stages = enumerate(self.stages)
        return sum(self.saves(stage, life).seconds_to_finish(of.steps) for stage, of in stages)

    def lag(self, life: float) -> float:
        """Return the most seconds of work that a loss undoes."""
        cadence = SaveCadence(
            every_steps=None,
            every_seconds=None,
            preemption_seconds=life,
            last_save=0.0,
            stall=self.costs.stall,
            write_seconds=self.costs.write,
        )
        return cadence.lag(self.step_seconds)


# ---------------------------------------------------------------- the run on a market


@dataclass(frozen=True)
class Rule:
    """A deadline in seconds from the start (infinite: none), the margin in seconds, and whether the
    run is `greedy`: it waits for spot as long as it can, and then stays on demand."""

    deadline: float
    margin: float
    greedy: bool = False


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
    """How one replay went: seconds from the start to the end, what was paid for, the spot machines
    that were lost, and how often the run went from on demand back to spot."""

    elapsed: float
    paid: Paid
    losses: int
    returns: int


def replay(run: TimedRun, trace: Trace, start: float, rule: Rule) -> Course:
    """Replay the run from `start`, in seconds from the beginning of the trace.

    Without a deadline it never ends if no machine of the trace lasts long enough for a save.
    """
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
        boot=run.costs.boot,
        handover=HANDOVER_SECONDS,
        lag=run.lag(life),
        notice=0.0,
        life=math.inf if rule.greedy else life,
    )


class _Walk:
    """A run on its way. Times are seconds from its start."""

    def __init__(self, run: TimedRun, trace: Trace, start: float, rule: Rule) -> None:
        self.run, self.trace, self.start, self.rule = run, trace, start, rule
        self.life = run.assumed_life
        self.terms = terms_of(run, rule, self.life)
        self.now, self.place = 0.0, (0, 0)
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
        self._wakes = action.situation.spot_until + MOMENT if waits else math.inf

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
            self._claim(ON_DEMAND, self.rented[ON_DEMAND].since + self.run.costs.boot)
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
        ready, ends = spot.since + self.run.costs.boot, self._spot_ends
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
        relieved = relief.since + self.run.costs.boot if relief is not None else math.inf
        stint = self._stint(max(ends - self.trains_from, 0.0))
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
        needed, ends = self.run.costs.boot + self.terms.stay, self._spot_ends
        slack = [self.rule.deadline - at - self._work_left(at) - needed for at in (self.now, ends)]
        if slack[0] < 0 or slack[1] >= 0:
            return math.inf
        # Saves come so often that the slack falls evenly.
        share = slack[0] / (slack[0] - slack[1])
        return self.now + share * (ends - self.now) + self.run.step_seconds

    def _ends_on_demand(self) -> float:
        return self.trains_from + self._stint(math.inf).finish

    def _stint(self, seconds: float) -> Stint:
        return Stint(self.run, self.place, seconds, self.life)

    def _finish(self, at: float) -> None:
        self.now = at
        for market in tuple(self.rented):
            self._end(market)
        self.finished = True
