"""Decide which machines to rent so that a run meets its deadline and costs little.

The rule: wait for spot machines until the slack has fallen to a reserve. From then on, never be
idle: rent on demand, and go back to spot whenever there is a spot machine and enough slack for its
loss. The rule needs no forecast and no price.

Slack is the time that may still be lost. Boots, idling and repeated work use it up, and nothing
gives it back. So all spot time before the deadline should be used, and the reserve is for the
losses of later spot machines.

`decide` sees only what can be observed. It reads no clock and remembers nothing. So a watcher that
is restarted decides as before, and a wrong clock does no harm once it is right again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import Enum

# How long to wait for a cancelled rental to end before requesting the next one anyway. The run's
# fence keeps two machines from doing the same work.
CANCEL_SECONDS = 60.0
# How long no machine trains when one takes over from another that works. Assumed: handovers in the
# rental tests are shorter, but their machines are near.
HANDOVER_SECONDS = 30.0


class Market(Enum):
    """How a machine is rented."""

    SPOT = "spot"
    ON_DEMAND = "on demand"


class State(Enum):
    """What a run with a deadline does.

    SPOT: a spot machine owns the run. WAITING: nobody owns it; a spot machine is waited for, or
    boots. ARMING: a machine on demand is requested and does not own the run yet. DEMAND: a machine
    on demand owns the run. LATE: as ARMING or DEMAND, but the deadline will be missed. DONE:
    nothing is left to do.
    """

    SPOT = "spot"
    WAITING = "waiting"
    ARMING = "arming"
    DEMAND = "on demand"
    LATE = "late"
    DONE = "done"


@dataclass(frozen=True)
class Terms:
    """What is fixed while nothing new is measured. Everything but `deadline` is in seconds.

    Attributes:
        deadline: Unix seconds by which everything must be done.
        margin: slack to keep in hand after the loss of a spot machine, for what was not foreseen.
        boot: from the request for a machine until its first step, where machines can be had.
        handover: how long no machine trains when one takes over from another that still works.
        lag: the most work that the loss of a machine undoes, as seconds of that work: from one
            save to the next, and until the save is committed.
        notice: from the loss of a machine until it is noticed, also by whoever asks `decide`: the
            time between two looks is part of it.
        life: the mean life of a spot machine (paid time ÷ losses, without waiting); above 0.
    """

    deadline: float
    margin: float
    boot: float
    handover: float
    lag: float
    notice: float
    life: float

    @property
    def loss(self) -> float:
        """Seconds of slack that one loss of a spot machine costs at most: the work it undoes, the
        time until it is noticed, the boot of the next machine, and the handover back to spot."""
        return self.boot + self.handover + self.lag + self.notice


@dataclass(frozen=True)
class Rental:
    """A request for a machine that was submitted and has not ended, nor is being cancelled.

    Attributes:
        since: Unix seconds of the request, or of its present machine if it has one.
        machine: whether it has a machine now, which may still be booting.
        relieved: whether its machine owned the run until another one took over.
        takes_over: whether its machine has asked the owner to hand the run over to it. The owner
            may have left already.
    """

    since: float
    machine: bool = False
    relieved: bool = False
    takes_over: bool = False


@dataclass(frozen=True)
class Seen:
    """What is observed now.

    Attributes:
        now: Unix seconds, by the clock of the store or the provider, not of this computer.
        work_left: seconds that a machine on demand would still work, the last commit, evaluation
            and publishing included. Steps that a living owner has reported count as done, and it
            is taken to have worked since its last report, for `lag` at most. Without an owner, only
            committed steps count. 0 or less: the run is finished.
        owner: the market of the machine that owns the run; None if there is no owner, or its
            machine is known to be gone.
        spot: the rental on spot; None if there is none.
        on_demand: the rental on demand; None if there is none.
        stale: whether the store can't be read, so that `work_left` and `owner` are older than
            `now`.
    """

    now: float
    work_left: float
    owner: Market | None = None
    spot: Rental | None = None
    on_demand: Rental | None = None
    stale: bool = False

    @property
    def rentals(self) -> dict[Market, Rental]:
        """The rentals that there are."""
        both = {Market.SPOT: self.spot, Market.ON_DEMAND: self.on_demand}
        return {market: rental for market, rental in both.items() if rental is not None}


@dataclass(frozen=True)
class Numbers:
    """The numbers behind a decision, for messages. In seconds, unless they say Unix seconds.

    Attributes:
        work_left: as in `Seen`.
        slack: see `slack`.
        reserve: see `reserve`.
        spot_until: Unix seconds until which spot may be waited for, if nothing owns the run from
            now on. In the past or now: no longer.
        late: how much the deadline will be missed by, as far as is known; 0 if it will be met.
    """

    work_left: float
    slack: float
    reserve: float
    spot_until: float
    late: float


@dataclass(frozen=True)
class Action:
    """What to do now: first cancel rentals, and wait CANCEL_SECONDS at most until they have ended;
    then submit `request`.

    Attributes:
        state: what the run does.
        numbers: why.
        cancel: the markets whose rental is to be cancelled.
        request: the market of the rental to submit; None if those that stand are enough. If
            somebody owns the run, its machine relieves the owner.
    """

    state: State
    numbers: Numbers
    cancel: tuple[Market, ...] = ()
    request: Market | None = None


# ---------------------------------------------------------------- amounts of slack, in seconds


def slack(terms: Terms, seen: Seen) -> float:
    """Return the seconds that may still be lost: deadline − now − boot − work left.

    The boot is that of a machine on demand, even while one owns the run: after a way back to spot,
    a loss needs it.
    """
    return terms.deadline - seen.now - terms.boot - seen.work_left


def stay(terms: Terms) -> float:
    """Return the least slack, in seconds, with which a spot machine may own the run: lag + notice +
    margin. If the machine is lost, the margin is left; the boot of the next one is part of the
    slack."""
    return terms.lag + terms.notice + terms.margin


def enter(terms: Terms) -> float:
    """Return the least slack, in seconds, with which an idle run may take a spot machine: boot +
    lag + notice + margin. While the machine boots, nobody works."""
    return terms.boot + stay(terms)


def come_back(terms: Terms) -> float:
    """Return the least slack, in seconds, with which a run on demand may go back to spot: handover
    + lag + notice + margin. The spot machine boots while the other one still works."""
    return terms.handover + stay(terms)


def reserve(terms: Terms, seen: Seen) -> float:
    """Return the slack, in seconds, at which waiting for spot ends: enter + loss × (n + √n), where
    n = min(time left, work left) ÷ life.

    n losses are to be expected if all work that is left is done on spot, and √n is their standard
    deviation if they are independent (Poisson). A reserve that runs out is dear: the run stays on
    demand to its end. A life shorter than what a loss costs counts as that long.
    """
    ahead = max(min(terms.deadline - seen.now, seen.work_left), 0.0)
    losses = ahead / max(terms.life, terms.loss)
    return enter(terms) + terms.loss * (losses + math.sqrt(losses))


def late(terms: Terms, seen: Seen) -> float:
    """Return the seconds by which the deadline will be missed if everything that is left is done on
    demand, from now on; 0 if it will be met."""
    boot = 0.0 if seen.owner is Market.ON_DEMAND else _boot_left(terms, seen, seen.on_demand)
    return max(seen.now + boot + seen.work_left - terms.deadline, 0.0)


def _boot_left(terms: Terms, seen: Seen, rental: Rental | None) -> float:
    """Return the seconds that the machine of a rental still boots, if it boots as fast as usual."""
    if rental is None or not rental.machine:
        return terms.boot
    return terms.boot - min(max(seen.now - rental.since, 0.0), terms.boot)


# ---------------------------------------------------------------- the decision


def decide(terms: Terms, seen: Seen) -> Action:
    """Return what to do now. The same facts always give the same action.

    While the store can't be read, nothing is changed as long as a machine may be at work. Without
    any machine, the action follows from the last known work.
    """
    action = _decide(terms, seen)
    if seen.stale and any(rental.machine for rental in seen.rentals.values()):
        return replace(action, cancel=(), request=None)
    return action


def _decide(terms: Terms, seen: Seen) -> Action:
    """Cancel what has been relieved, and decide as if it had ended."""
    relieved = tuple(market for market, rental in seen.rentals.items() if rental.relieved)
    spot = None if Market.SPOT in relieved else seen.spot
    on_demand = None if Market.ON_DEMAND in relieved else seen.on_demand
    action = _by_owner(terms, replace(seen, spot=spot, on_demand=on_demand))
    return replace(action, cancel=(*relieved, *action.cancel))


def _by_owner(terms: Terms, seen: Seen) -> Action:
    left, reserved = slack(terms, seen), reserve(terms, seen)
    numbers = Numbers(
        work_left=seen.work_left,
        slack=left,
        reserve=reserved,
        spot_until=seen.now + left - reserved,
        late=late(terms, seen),
    )
    if seen.work_left <= 0:
        return _done(numbers, seen)
    if seen.owner is Market.ON_DEMAND:
        return _while_on_demand(terms, seen, numbers)
    if seen.owner is Market.SPOT:
        return _while_on_spot(terms, seen, numbers)
    return _without_owner(terms, seen, numbers)


def _done(numbers: Numbers, seen: Seen) -> Action:
    """Cancel what still waits for a machine. A machine sees that the run is finished, and ends."""
    waiting = tuple(market for market, rental in seen.rentals.items() if not rental.machine)
    return Action(State.DONE, numbers, waiting)


def _while_on_demand(terms: Terms, seen: Seen, numbers: Numbers) -> Action:
    """Keep a request for spot standing as long as there is slack for the way back and a loss.

    A new request needs `lag` more. Slack moves by as much between two reports of the owner, and
    the request should not come and go with them. A machine that takes over is kept: without it,
    nobody would own the run.
    """
    state = State.LATE if numbers.late > 0 else State.DEMAND
    if seen.spot is not None:
        enough = numbers.slack >= come_back(terms) or seen.spot.takes_over
        return Action(state, numbers, () if enough else (Market.SPOT,))
    more = numbers.slack >= come_back(terms) + terms.lag
    return Action(state, numbers, request=Market.SPOT if more else None)


def _while_on_spot(terms: Terms, seen: Seen, numbers: Numbers) -> Action:
    """Let the spot machine work until its slack is below `stay`: it is silent, or slower than
    thought, or it came without being asked for, right after a loss. It keeps working until a
    machine on demand relieves it.

    That request stands until there is `lag` more slack, so that it does not come and go. Once it
    has a machine, that machine may already have asked the spot machine to hand over: it takes over.
    """
    needed = stay(terms) + (terms.lag if seen.on_demand is not None else 0.0)
    if numbers.slack < needed:
        return _arm(seen, numbers, cancel=())
    waiting = seen.on_demand is not None and not seen.on_demand.machine
    return Action(State.SPOT, numbers, (Market.ON_DEMAND,) if waiting else ())


def _without_owner(terms: Terms, seen: Seen, numbers: Numbers) -> Action:
    if seen.on_demand is not None and seen.on_demand.machine:
        waits = False  # it is paid for
    elif seen.spot is not None and seen.spot.machine:
        # As `enter`, without the part of the boot that is over.
        waits = numbers.slack >= stay(terms) + _boot_left(terms, seen, seen.spot)
    else:
        waits = numbers.slack > numbers.reserve
    if not waits:
        keep = seen.spot is None or _may_take_over(terms, seen, numbers)
        return _arm(seen, numbers, cancel=() if keep else (Market.SPOT,))
    not_needed = (Market.ON_DEMAND,) if seen.on_demand is not None else ()
    request = Market.SPOT if seen.spot is None else None
    return Action(State.WAITING, numbers, not_needed, request)


def _may_take_over(terms: Terms, seen: Seen, numbers: Numbers) -> bool:
    """Return whether the spot machine of an idle run may stay next to one on demand.

    The run may be between two machines: one has left it to the other, and only the other can
    continue. If both just boot, the spot machine would take over from the one on demand, so there
    must be slack for that boot and the way back. SkyPilot may have replaced a lost spot machine
    after the one on demand was requested for lack of slack.
    """
    spot, on_demand = seen.spot, seen.on_demand
    if spot is None or on_demand is None or not (spot.machine and on_demand.machine):
        return False
    if spot.takes_over or on_demand.takes_over:
        return True
    return numbers.slack >= come_back(terms) + _boot_left(terms, seen, on_demand)


def _arm(seen: Seen, numbers: Numbers, cancel: tuple[Market, ...]) -> Action:
    """Get a machine on demand. A request that stands is enough: it tries every on-demand entry."""
    state = State.LATE if numbers.late > 0 else State.ARMING
    request = Market.ON_DEMAND if seen.on_demand is None else None
    return Action(state, numbers, cancel, request)
