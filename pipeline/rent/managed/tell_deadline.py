"""What a window says about a run's deadline: at the first look, at each change, and each hour."""

from __future__ import annotations

import math
from collections.abc import Iterator

from pipeline.rent.deadline import words
from pipeline.rent.deadline.policy import Market, Seen, State
from pipeline.rent.managed.deadline_decision import Decision, risk_at
from pipeline.rent.managed.say import Say
from pipeline.rent.managed.seen import gpu_of, rental_of

OUTLOOK_SECONDS = 3600.0
# That no machine on demand has come is said again after so many seconds.
REFUSED_SECONDS = 1200.0


class DeadlineTeller:
    """Prints with `say`. `unwatched` is from when to when nobody watched, in Unix seconds."""

    def __init__(self, say: Say) -> None:
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
        self._note_owner(decision.seen)
        before, self._state = self._state, action.state
        changed = before is not action.state
        if changed or now - self._told_at >= OUTLOOK_SECONDS:
            self._told_at = now
            n = action.numbers
            deadline = decision.terms.deadline
            if action.state is not State.DONE:
                self._say(words.outlook(deadline, now, n.work_left, n.slack, n.reserve))
        if changed:
            for line in self._of_change(decision, before):
                self._say(line)
        to_the_end = action.state is State.DEMAND and risk_at(decision) is None
        if to_the_end and not self._to_the_end:
            self._say(words.to_the_end(action.numbers.slack, decision.terms.loss))
        self._to_the_end = to_the_end
        self._tell_refused(decision)

    def once(self, text: str) -> None:
        """Print a line, unless it was printed before."""
        if text not in self._told:
            self._told.add(text)
            self._say(text)

    def _of_change(self, decision: Decision, before: State | None) -> Iterator[str]:
        """Yield what a new state means."""
        action, seen = decision.action, decision.seen
        numbers = action.numbers
        if action.state is State.ARMING and action.request is not None:
            costs = _costs(decision)
            yield words.renting_on_demand(
                _on_demand(decision),
                min((price for price, _ in costs), default=None),
                max((dollars for _, dollars in costs), default=None),
                now=seen.now,
                waited_since=self._unowned_since,
            )
        elif action.state is State.SPOT and before is State.DEMAND:
            spot = rental_of(decision.look, Market.SPOT)
            yield words.back_on_spot((gpu_of(spot) if spot is not None else None) or "machine")
        elif action.state is State.LATE:
            asked = seen.on_demand
            refused = seen.now - asked.since if asked is not None and not asked.machine else 0.0
            yield words.missed(
                numbers.late, now=seen.now, unwatched=self.unwatched, refused=refused
            )
        elif before is None and (at := risk_at(decision)) is not None:
            yield words.watch_by(at, seen.now)

    def _tell_refused(self, decision: Decision) -> None:
        """Print, now and then, that no machine on demand has come."""
        asked, now = decision.seen.on_demand, decision.seen.now
        if decision.seen.owner is not None or asked is None or asked.machine:
            self._refused_at = now
        elif now - max(self._refused_at, asked.since) >= REFUSED_SECONDS:
            self._refused_at = now
            slack = decision.action.numbers.slack
            self._say(words.none_on_demand(_on_demand(decision), now - asked.since, slack))

    def _note_owner(self, seen: Seen) -> None:
        if seen.owner is not None:
            self._unowned_since = None
        elif self._unowned_since is None:
            self._unowned_since = seen.now


def _on_demand(decision: Decision) -> str:
    """Return the machines that are requested on demand, in words."""
    return " or ".join(dict.fromkeys(option.gpu for option in decision.options))


def _costs(decision: Decision) -> list[tuple[float, float]]:
    """Return each machine's price, and the dollars for all the work that is left on it."""
    priced = [(option.price, option.work or 0.0) for option in decision.options]
    return [(price, price * work / 3600) for price, work in priced if price is not None]
