"""A cap in hours or dollars over all runs of a search, on all their machines.

What a run has spent is what its HEAD says, as for `budget.hours` of a single run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pion.errors import BadInput, Stopped
from pipeline.console.formats import duration, money
from pipeline.cost.budget import price_per_hour
from pipeline.job import Budget
from pipeline.machine.rented import PRICE_VARIABLE
from pipeline.state.head import Spent

# The bounds of a cap.
MOST_HOURS, MOST_DOLLARS = 10**7, 10**9
# A run that its budget has stopped has spent at least this share of it: HEAD counts at commits.
_REACHED = 0.99


@dataclass(frozen=True)
class Cap:
    """At most so many hours, or dollars; None: no limit."""

    hours: float | None = None
    dollars: float | None = None

    def __str__(self) -> str:
        given = [] if self.hours is None else [f"{self.hours:g} hours"]
        given += [] if self.dollars is None else [f"${self.dollars:g}"]
        return " and ".join(given) or "none"


def check_cap(cap: Cap, budget: Budget) -> None:
    """Raise BadInput for a cap out of bounds, and for one in dollars if no price is known."""
    for option, value, most in (
        ("--hours", cap.hours, MOST_HOURS),
        ("--dollars", cap.dollars, MOST_DOLLARS),
    ):
        if value is not None and not 0 < value <= most:
            raise BadInput(
                f"{option} {value:g}: give a number above 0, and at most {most:,}. Nothing was "
                "started."
            )
    if cap.dollars is not None and price_per_hour(budget) is None:
        raise BadInput(
            f"--dollars {cap.dollars:g}: the price of this machine is not known. Nothing was "
            f"started. Set budget.dollars_per_hour or {PRICE_VARIABLE}, or limit --hours instead."
        )


def total(spent: Mapping[str, Spent], without: str = "") -> Spent:
    """Return what all runs but one have cost together. `spent` is by their names."""
    each = [one for name, one in spent.items() if name != without]
    return Spent(sum(one.hours for one in each), sum(one.dollars for one in each))


def _limits(cap: Cap, spent: Spent) -> list[tuple[str, float, float]]:
    """Return each limit of a cap: its name, the most, and what is spent of it."""
    both = (("hours", cap.hours, spent.hours), ("dollars", cap.dollars, spent.dollars))
    return [(name, most, own) for name, most, own in both if most is not None]


def reached(cap: Cap, spent: Spent) -> bool:
    """Return whether nothing is left of the cap."""
    return any(own >= _REACHED * most for _, most, own in _limits(cap, spent))


def refuse_beyond(
    cap: Cap, spent: Spent, run: str, expected: float | None, price: float | None
) -> None:
    """Raise Stopped if the cap is reached, or a run that is `expected` to take so many more hours,
    at `price` dollars per hour, would exceed it."""
    if reached(cap, spent):
        raise Stopped(
            f"the cap over all runs is reached: {describe(spent)} of {cap}. {raise_it(cap)}"
        )
    if expected is None:
        return
    then = spent.plus(3600 * expected, price, spent.until)
    if any(own > most for _, most, own in _limits(cap, then)):
        raise Stopped(
            f"run {run} would exceed the cap over all runs: {describe(spent)} of {cap} are spent, "
            f"and it would take about {duration(3600 * expected)} more. {raise_it(cap)}"
        )


def why_stopped(cap: Cap, spent: Spent, run: str) -> Stopped:
    """Return why a run stopped before its end: the cap, or a request."""
    if reached(cap, spent):
        return Stopped(
            f"the cap over all runs is reached in {run}: {describe(spent)} of {cap}. "
            f"{raise_it(cap)}"
        )
    return Stopped(
        f"run {run} was stopped (see above). Everything that is done is kept. To continue, run "
        "the same command again."
    )


def raise_it(cap: Cap) -> str:
    """Return what to do when a cap ends the work."""
    option = "--dollars" if cap.dollars is not None else "--hours"
    return (
        f"Every finished run is kept. To continue, run the same command again with a larger "
        f"{option}."
    )


def describe(spent: Spent) -> str:
    """Return what was spent, in words."""
    dollars = f", {money(spent.dollars)}" if spent.dollars else ""
    return f"{duration(3600 * spent.hours)}{dollars}"


def budget_of(budget: Budget, cap: Cap, others: Spent) -> dict[str, Any]:
    """Return the budget of a run as runtime settings: what the `others` leave of the cap, and at
    most what the job allows."""
    limits: dict[str, Any] = {}
    for name, most, spent in _limits(cap, others):
        own, left = getattr(budget, name), max(1e-9, most - spent)
        limits[f"budget.{name}"] = left if own is None else min(own, left)
    return limits
