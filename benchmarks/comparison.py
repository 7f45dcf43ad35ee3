"""One comparison with other software: both sides, the ratio, and whether the target is met.

Several ways of doing the same work are measured by turns, so that other load slows all of them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

WIDTHS = "{:<42}  {:<30} {:>8} {:>8}  {:<21}  {:<6}  {}"


@dataclass(frozen=True)
class Target:
    """The least or the most that a result may be."""

    value: float
    at_least: bool

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.value:g}"

    def met_by(self, result: float) -> bool:
        """Return whether the result is good enough."""
        return result >= self.value if self.at_least else result <= self.value


def at_least(value: float) -> Target:
    """Return the target of a ratio that should be high."""
    return Target(value, at_least=True)


def at_most(value: float) -> Target:
    """Return the target of a ratio that should be low."""
    return Target(value, at_least=False)


@dataclass(frozen=True)
class Comparison:
    """What was measured on both sides.

    `result` is what the target judges: the median ratio over rounds, or a difference. `quartiles`
    are of the values over rounds. `details` has what belongs to the result but has no target.
    """

    what: str
    against: str
    unit: str
    ours: float
    theirs: float
    result: float
    quartiles: tuple[float, float]
    rounds: int
    target: Target | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """Return "met", "missed", or "" without a target."""
        if self.target is None:
            return ""
        return "met" if self.target.met_by(self.result) else "missed"

    def line(self) -> str:
        """Return the comparison's row of the table."""
        lower, upper = self.quartiles
        return WIDTHS.format(
            f"{self.what}, {self.unit}",
            self.against,
            _short(self.ours),
            _short(self.theirs),
            f"{self.result:.3f} ({lower:.3f} – {upper:.3f})",
            "" if self.target is None else str(self.target),
            self.verdict,
        ).rstrip()

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison as JSON."""
        return {
            "what": self.what,
            "against": self.against,
            "unit": self.unit,
            "ours": _rounded(self.ours),
            "theirs": _rounded(self.theirs),
            "result": _rounded(self.result),
            "quartiles": [_rounded(value) for value in self.quartiles],
            "rounds": self.rounds,
            "target": None if self.target is None else str(self.target),
            "met": None if self.target is None else self.target.met_by(self.result),
            **({"details": dict(self.details)} if self.details else {}),
        }


def compare(
    what: tuple[str, str, str],
    ours: Sequence[float],
    theirs: Sequence[float],
    target: Target | None = None,
    details: Mapping[str, Any] | None = None,
) -> Comparison:
    """Return the comparison of measurements that were made by turns.

    `what` is what was measured, with what it is compared, and the unit.
    """
    found = ratios(ours, theirs)
    return Comparison(
        *what,
        ours=statistics.median(ours),
        theirs=statistics.median(theirs),
        result=statistics.median(found),
        quartiles=quartiles(found),
        rounds=len(found),
        target=target,
        details=details or {},
    )


def heading() -> str:
    """Return the first line of the table."""
    return WIDTHS.format(
        "what", "against", "ours", "theirs", "ratio (quartiles)", "target", ""
    ).rstrip()


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


# ---------------------------------------------------------------- by turns

# Returns one measurement of a round, given the round's number.
Measure = Callable[[int], float]
# Does the work of a round, and returns how much work that was.
Work = Callable[[int], float]


def alternate(
    measures: Mapping[str, Measure], rounds: int, warmup: int = 0
) -> dict[str, list[float]]:
    """Return the measurements of each side, one for each round after `warmup` rounds.

    Every second round has the opposite order, so no side always follows the same other side.
    """
    found: dict[str, list[float]] = {name: [] for name in measures}
    for number in range(warmup + rounds):
        turns = list(measures.items())
        for name, measure in turns if number % 2 == 0 else turns[::-1]:
            value = measure(number)
            if number >= warmup:
                found[name].append(value)
    return found


def speed_of(work: Work) -> Measure:
    """Return a measure of how much of the work is done in a second."""

    def measure(number: int) -> float:
        start = time.perf_counter()
        amount = work(number)
        return amount / (time.perf_counter() - start)

    return measure


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Return our measurement over theirs, round by round."""
    return [a / b for a, b in zip(ours, theirs, strict=True)]


def quartiles(values: Sequence[float]) -> tuple[float, float]:
    """Return the lower and the upper quartile; of a single value, the value twice."""
    if len(values) == 1:
        return values[0], values[0]
    lower, _, upper = statistics.quantiles(values, n=4, method="inclusive")
    return lower, upper
