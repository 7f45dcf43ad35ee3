"""A made-up market and a run on it, second by second, that `decide` steers at every look.

Between two looks, machines come, boot, claim the run and are lost without being asked, as with
SkyPilot. Losses are noticed late. A machine on demand may be refused or lost.
"""

import math
import random
from dataclasses import dataclass, field

from pipeline.rent.deadline.policy import Market, Rental, Seen, State, Terms, decide

SPOT, ON_DEMAND = Market.SPOT, Market.ON_DEMAND
LOOK = 30.0


class Spells:
    """When there is a spot machine: lives and gaps with these means, in seconds."""

    def __init__(self, life, gap, seed):
        self._random, self._life, self._gap = random.Random(seed), life, gap
        self._made_from = (life, gap, seed)
        self._spells = [(0.0, self._random.expovariate(1 / life))]
        if self._random.random() < gap / (life + gap):
            self._spells = [(-1.0, 0.0)]

    def __repr__(self):
        return f"Spells{self._made_from}"

    def next(self, at):
        while self._spells[-1][1] <= at:
            begin = self._spells[-1][1] + self._random.expovariate(1 / self._gap)
            self._spells.append((begin, begin + self._random.expovariate(1 / self._life)))
        begin, end = next(spell for spell in self._spells if spell[1] > at)
        return max(begin, at), end


@dataclass
class Machine:
    """A rental: when it was requested, and from when to when it has a machine."""

    since: float
    begins: float
    ends: float
    relieved: bool = False


@dataclass
class World:
    """A run of `work` seconds. Saves begin every `interval` seconds and are committed `write`
    seconds later. `refused`: when no machine on demand can be had. `lost_at`: when the machine on
    demand that is there is lost. `silent_at`: when the spot machine that is there stops training.
    `jump`: a time, and by how much the clock is wrong at the looks of the ten minutes from then."""

    terms: Terms
    work: float
    spells: Spells
    interval: float
    write: float
    refused: tuple[float, float] = (0.0, 0.0)
    lost_at: float = math.inf
    silent_at: float = math.inf
    jump: tuple[float, float] = (math.inf, 0.0)
    now: float = 0.0
    done: float = 0.0  # committed, or handed over, when the owner began
    owner: Market | None = None
    trains_from: float = 0.0
    finished: float | None = None
    machines: dict[Market, Machine] = field(default_factory=dict)
    slack_at_entries: list[float] = field(default_factory=list)
    states: list[State] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    requests: list[tuple[float, Market]] = field(default_factory=list)
    _unnoticed: tuple[Market, float, float] | None = None

    @property
    def _noticed_after(self):
        """Return the seconds from a loss until SkyPilot and the heartbeat show it."""
        return self.terms.notice - LOOK

    # ------------------------------------------------------------ the run

    def run(self):
        """Look and act until the run is finished."""
        while self.finished is None:
            self._act()
            self._until(self.now + LOOK)
            assert self.now < self.terms.deadline + 100 * 3600, "it never ends"
        return self

    @property
    def lateness(self):
        return max(self.finished - self.terms.deadline, 0.0)

    def trained(self):
        """Return the seconds for which the owner has trained."""
        end = self.now
        if self.owner is SPOT and self.trains_from <= self.silent_at:
            end = min(end, self.silent_at)
        return max(end - self.trains_from, 0.0)

    def _committed(self):
        saves = math.floor(max(self.trained() - self.write, 0.0) / self.interval)
        return self.done + saves * self.interval

    # ------------------------------------------------------------ what is seen and done

    def seen(self):
        begin, by = self.jump
        clock = self.now + (by if begin <= self.now < begin + 600 else 0.0)
        owner, done = self.owner, self.done + (self.trained() if self.owner else 0.0)
        if owner is None and self._unnoticed is not None:
            market, until, reported = self._unnoticed
            if self.now < until:
                owner, done = market, reported
        rentals = {market: self._rental(market) for market in Market}
        return Seen(clock, self.work - done, owner, rentals[SPOT], rentals[ON_DEMAND])

    def _rental(self, market):
        machine = self.machines.get(market)
        if machine is None:
            return None
        up = machine.begins <= self.now
        since = machine.begins if up else machine.since
        return Rental(since, up, machine.relieved)

    def _act(self):
        action = decide(self.terms, self.seen())
        self.states.append(action.state)
        if action.situation.late:
            self.late.append(action.situation.late)
        for market in action.cancel:
            del self.machines[market]
            assert market is not self.owner, "it ends a machine that works"
        if action.request is not None:
            self._rent(action.request, self.now)
            self.requests.append((self.now, action.request))

    def _rent(self, market, at):
        begins, ends = self.spells.next(at) if market is SPOT else self._on_demand(at)
        self.machines[market] = Machine(self.now, begins, ends)

    def _on_demand(self, at):
        refused, until = self.refused
        begins = until if refused <= at < until else at
        return begins, (self.lost_at if self.lost_at > begins else math.inf)

    # ------------------------------------------------------------ what happens by itself

    def _until(self, end):
        while self.finished is None:
            at, event, market = min(self._events(), default=(math.inf, "", ""))
            if at > end:
                break
            self.now = max(at, self.now)
            getattr(self, f"_{event}")(Market(market))
        self.now = end

    def _events(self):
        found = []
        for market, machine in self.machines.items():
            if machine.relieved:
                continue
            found.append((machine.ends, "lose", market.value))
            ready = machine.begins + self.terms.boot
            if market is not self.owner and ready < machine.ends:
                found.append((ready, "claim", market.value))
        silent = self.owner is SPOT and self.trains_from <= self.silent_at < math.inf
        if self.owner is not None:
            done = self.trains_from + self.work - self.done
            if not silent or done <= self.silent_at:
                found.append((done, "finish", self.owner.value))
        return found

    def _lose(self, market):
        if self.owner is market:
            seen_until = self.now + self._noticed_after
            self._unnoticed = (market, seen_until, self.done + self.trained())
            self.done, self.owner = self._committed(), None
        # SkyPilot notices, and asks for the next one without being told to.
        self._rent(market, self.now + self._noticed_after)

    def _claim(self, market):
        old, handover = self.owner, 0.0
        if old is not None:
            silent = old is SPOT and self.trains_from <= self.silent_at < self.now
            self.done = self._committed() if silent else self.done + self.trained()
            handover = self.terms.handover
            self.machines[old].relieved = True
        self.owner, self._unnoticed = market, None
        self.trains_from = self.now + handover
        if market is SPOT:
            left = self.terms.deadline - self.trains_from - self.terms.boot
            self.slack_at_entries.append(left - (self.work - self.done))

    def _finish(self, _):
        self.finished = self.now
