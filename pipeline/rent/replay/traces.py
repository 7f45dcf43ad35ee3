"""Recorded spot availability: when a machine was available, tick by tick.

A trace is a JSON file. Other fields than these are ignored:

    {"metadata": {"gap_seconds": 32}, "data": [0, 1, 1, 2, 0, …]}

`data` says how many machines were available in each tick of `gap_seconds`. A run has its machine
while the count is 1 or more, and loses it at the start of the first tick whose count is below 1.
The end of a trace is followed by its beginning, so a run may start at any tick and take longer than
the recording.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

from pion.errors import BadInput
from pion.untrusted import LARGEST_LISTING, parse_json, read_file


@dataclass(frozen=True)
class Trace:
    """When a machine was available: `available` has a flag for each tick of `gap_seconds`."""

    name: str
    gap_seconds: float
    available: tuple[bool, ...]

    @property
    def seconds(self) -> float:
        """How many seconds were recorded."""
        return self.gap_seconds * len(self.available)

    @cached_property
    def share(self) -> float:
        """The share of the time in which a machine was available."""
        return sum(self.available) / len(self.available)

    @cached_property
    def preemptions(self) -> int:
        """How often a machine was lost."""
        following = (*self.available[1:], self.available[0])
        return sum(now and not then for now, then in zip(self.available, following))

    def next_machine(self, at: float) -> tuple[float, float]:
        """Return when the first machine is there, not before `at`, and when it is lost, in seconds
        from the beginning of the trace. Infinite: never."""
        if self.share == 1:
            return at, math.inf
        begins, ends, period, moment = self._spells
        round_, place = divmod(at, period)
        found = bisect_right(ends, place + moment)
        if found == len(ends):
            round_, found = round_ + 1, 0
        shift = round_ * period
        begin = begins[found] + shift
        return (begin if begin > at else at), ends[found] + shift

    def spells(self, begin: float, end: float) -> list[float]:
        """Return the seconds of every spell with a machine between two times, cut off at both."""
        found: list[float] = []
        at = begin
        while at < end:
            there, gone = self.next_machine(at)
            if there < end:
                found.append(min(gone, end) - there)
            at = gone
        return found

    @cached_property
    def _spells(self) -> tuple[list[float], list[float], float, float]:
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
        spells = spells or [(math.inf, math.inf)]
        return (
            [begin for begin, _ in spells],
            [end for _, end in spells],
            self.seconds,
            1e-6 * self.gap_seconds,
        )


def read_trace(path: str | Path) -> Trace:
    """Read the trace in a file, and name it after the file. Raises BadInput if it is not a
    trace."""
    path = Path(path)
    try:
        # What is not finite is refused below, with its place.
        raw = parse_json(read_file(path, LARGEST_LISTING), f"the trace {path}", strict=False)
    except OSError as error:
        raise BadInput(f"can't read the trace {path}: {error.strerror or error}.") from None
    metadata = raw.get("metadata") if isinstance(raw, dict) else None
    gap = metadata.get("gap_seconds") if isinstance(metadata, dict) else None
    if not isinstance(gap, int | float) or not _is_amount(gap) or gap == 0:
        given = "is missing" if gap is None else f"is {gap!r:.40}"
        raise BadInput(
            f"the trace {path}: metadata.gap_seconds {given}; it must be the seconds between two "
            'values of `data`, as in {"metadata": {"gap_seconds": 32}, "data": [0, 1, 1]}.'
        )
    data = raw.get("data")
    if not isinstance(data, list) or not data:
        given = "is missing" if data is None else "is empty" if data == [] else "is not a list"
        raise BadInput(
            f"the trace {path}: data {given}; it must list how many machines were available in "
            f"each tick of {gap:g} s."
        )
    for tick, count in enumerate(data):
        if not _is_amount(count):
            raise BadInput(
                f"the trace {path}: data[{tick}] is {count!r:.40}; it must be a number of "
                "machines, 0 or more."
            )
    if max(data) < 1:
        raise BadInput(
            f"the trace {path} never has a machine: no value of `data` is 1 or more, so no run "
            "would ever start."
        )
    return Trace(path.stem, float(gap), tuple(count >= 1 for count in data))


def _is_amount(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 <= value < math.inf
