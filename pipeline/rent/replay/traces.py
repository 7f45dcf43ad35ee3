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
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
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

    def next_machine(self, tick: int) -> tuple[int | None, float]:
        """Return the first tick, from `tick` on, that has a machine (None: never), and the seconds
        from then until the machine is lost (infinite: never)."""
        wait = self._until_there[tick % len(self.available)]
        if wait is None:
            return None, 0.0
        stay = self._until_gone[(tick + wait) % len(self.available)]
        return tick + wait, math.inf if stay is None else stay * self.gap_seconds

    @cached_property
    def _until_there(self) -> list[int | None]:
        return _ticks_until(self.available)

    @cached_property
    def _until_gone(self) -> list[int | None]:
        return _ticks_until([not there for there in self.available])


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


def _ticks_until(flags: Sequence[bool]) -> list[int | None]:
    """Return for each tick how many ticks later a flag is set, wrapping around at the end; None if
    no flag is set."""
    found: list[int | None] = [None] * len(flags)
    distance: int | None = None
    for tick in reversed(range(2 * len(flags))):
        if flags[tick % len(flags)]:
            distance = 0
        elif distance is not None:
            distance += 1
        found[tick % len(flags)] = distance
    return found
