"""What a window says about a run's deadline: at the first look, at each change, and each hour."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from pipeline.console.formats import money
from pipeline.rent.deadline.policy import Market, State
from pipeline.rent.managed.keep.decision import Decision, risk_at
from pipeline.rent.managed.keep.rental_state import rental_of
from pipeline.rent.managed.provider.jobs import place_of

OUTLOOK_SECONDS = 3600.0
# That no machine on demand has come is said again after so many seconds.
REFUSED_SECONDS = 1200.0


class DeadlineTeller:
    """Prints with `say`. `unwatched` is from when to when nobody watched, in Unix seconds."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.unwatched: tuple[float, float] | None = None
        self._say = say
        self._state: State | None = None
        self._told_at = -math.inf
        self._told: set[str] = set()
        self._unowned_since: float | None = None
        self._refused_at = -math.inf
        self._to_the_end = False

    def tell(self, decision: Decision) -> None:
        """Print what is new since the last look."""
        action, now = decision.action, decision.seen.now
        unowned = now if self._unowned_since is None else self._unowned_since
        self._unowned_since = unowned if decision.seen.owner is None else None
        before, self._state = self._state, action.state
        changed = before is not action.state
        if changed or now - self._told_at >= OUTLOOK_SECONDS:
            self._told_at = now
            if action.state is not State.DONE:
                self._say(outlook_of(decision))
        if changed:
            for line in self._of_change(decision, before):
                self._say(line)
        last = action.state is State.DEMAND and risk_at(decision) is None
        if last and not self._to_the_end:
            lost = f"a spot machine that is lost would cost {about(decision.terms.loss)}"
            self._say(f"on demand to the end: slack {about(action.numbers.slack)}, {lost}")
        self._to_the_end = last
        self._tell_refused(decision)

    def once(self, text: str) -> None:
        """Print a line, unless it was printed before."""
        if text not in self._told:
            self._told.add(text)
            self._say(text)

    def _of_change(self, decision: Decision, before: State | None) -> Iterator[str]:
        """Yield what a new state means."""
        action, seen = decision.action, decision.seen
        if action.state is State.ARMING and action.request is not None:
            priced = [(o.price, o.work or 0.0) for o in decision.options if o.price is not None]
            yield renting_on_demand(
                _on_demand(decision),
                min((price for price, _ in priced), default=None),
                max((price * work / 3600 for price, work in priced), default=None),
                now=seen.now,
                waited_since=self._unowned_since,
            )
        elif action.state is State.SPOT and before is State.DEMAND:
            spot = rental_of(decision.look, Market.SPOT)
            gpu = None if spot is None else place_of(spot.job).gpu
            yield f"back on spot {gpu or 'machine'}; on demand ended"
        elif action.state is State.LATE:
            request = seen.on_demand
            refused = (
                seen.now - request.since if request is not None and not request.machine else 0.0
            )
            yield missed(
                action.numbers.late, now=seen.now, unwatched=self.unwatched, refused=refused
            )
        elif before is None and (at := risk_at(decision)) is not None:
            yield watch_by(at, seen.now)

    def _tell_refused(self, decision: Decision) -> None:
        """Print, now and then, that no machine on demand has come."""
        request, now = decision.seen.on_demand, decision.seen.now
        if decision.seen.owner is not None or request is None or request.machine:
            self._refused_at = now
        elif now - max(self._refused_at, request.since) >= REFUSED_SECONDS:
            self._refused_at = now
            slack = decision.action.numbers.slack
            self._say(none_on_demand(_on_demand(decision), now - request.since, slack))


def _on_demand(decision: Decision) -> str:
    """Return the machines that are requested on demand, in words."""
    return " or ".join(dict.fromkeys(option.gpu for option in decision.options))


DAY = 86_400.0


def outlook_of(decision: Decision) -> str:
    """Return the outlook from a decision."""
    n, deadline = decision.action.numbers, decision.terms.deadline
    return outlook(deadline, decision.seen.now, n.work_left, n.slack, n.reserve)


def outlook(deadline: float, now: float, work: float, slack: float, reserve: float) -> str:
    """Return when the run should be done, the work that is left, and until when spot may be waited
    for.

    `work` is what a machine on demand would still do, `slack` what may still be lost, and `reserve`
    the slack at which waiting for spot ends.
    """
    left = deadline - now
    when = f"in {about(left)}" if left >= 0 else f"{about(-left)} ago"
    sentence = f"deadline {clock(deadline, now)} ({when}); {about(work)} of work on demand; "
    if slack > reserve:
        return sentence + (
            f"spot may be waited for until {clock(now + slack - reserve, now)} "
            f"({about(slack)} of slack, {about(reserve)} kept in reserve)"
        )
    if slack >= 0:
        return sentence + (
            f"spot is not waited for ({about(slack)} of slack, {about(reserve)} kept in reserve)"
        )
    return sentence + f"late by {about(-slack)}"


def watch_by(moment: float, now: float) -> str:
    """Return what to say at launch: the last moment at which somebody must watch."""
    if moment <= now:
        return "somebody must watch from now on, or the deadline is at risk"
    return (
        f"somebody must watch again by {clock(moment, now)} (in {about(moment - now)}), or the "
        "deadline is at risk"
    )


def renting_on_demand(
    machines: str,
    price: float | None,
    most: float | None,
    *,
    now: float,
    waited_since: float | None,
) -> str:
    """Return why a machine on demand is rented, and what that costs.

    `machines` are those that are requested. `price` is the lowest price, in dollars per hour of all
    nodes, and `most` the dollars for all work that is left, on the machine where they are the most;
    None if unknown. `waited_since` is when the run began to wait for spot; None if a spot machine
    owns it, but is silent or too slow.
    """
    if waited_since is None:
        why = "the spot machine is silent or slower than thought, and the margin is reached"
    else:
        why = f"no spot machine since {clock(waited_since, now)} and the reserve is reached"
    sentence = f"{why}: renting {machines} on demand"
    if price is None or most is None:
        return f"{sentence}, at an unknown price"
    return f"{sentence}, from {money(price)}/h; at most {money(most)} more"


def none_on_demand(machines: str, waited: float, slack: float) -> str:
    """Return that no machine on demand has come, and for how long the slack still lasts."""
    lasts = f"slack lasts {about(slack)} more" if slack > 0 else "the slack is used up"
    return f"no {machines} on demand in {about(waited)}; SkyPilot keeps asking; {lasts}"


def missed(
    late: float, *, now: float, unwatched: tuple[float, float] | None = None, refused: float = 0.0
) -> str:
    """Return by how much the deadline is missed, and why as far as that is known.

    `unwatched` is from when to when nobody watched; `refused` is for how long no machine on demand
    could be had.
    """
    sentence = f"the deadline is missed by {about(late)}"
    if unwatched is not None:
        sentence += (
            f": nobody watched from {clock(unwatched[0], now)} to {clock(unwatched[1], now)}"
        )
    elif refused > 0:
        sentence += f": no machine on demand could be had for {about(refused)}"
    return f"{sentence}; on demand to the end"


def about(seconds: float) -> str:
    """Return `9 min`, `2.1 h` or `31 h`."""
    if abs(seconds) < 5400:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f}".removesuffix(".0") + " h"


def clock(at: float, now: float) -> str:
    """Return `18:00 UTC` of today, `18:00 UTC Tue` within six days, else the date too."""
    then, today = datetime.fromtimestamp(at, UTC), datetime.fromtimestamp(now, UTC)
    if then.date() == today.date():
        return f"{then:%H:%M} UTC"
    if abs(at - now) < 6 * DAY:
        return f"{then:%H:%M} UTC {then:%a}"
    return f"{then:%Y-%m-%d %H:%M} UTC"
