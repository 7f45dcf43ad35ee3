"""Measure several ways of doing the same work by turns, so that other load slows all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

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
