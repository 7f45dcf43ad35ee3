"""When a recorded market has a spot machine, in seconds instead of ticks."""

from __future__ import annotations

import math
from bisect import bisect_right
from itertools import groupby

from pipeline.rent.replay.traces import Trace


class Market:
    """The spells of a trace: from when to when it has a machine. The trace repeats forever."""

    def __init__(self, trace: Trace) -> None:
        self.period = trace.seconds
        spells: list[tuple[float, float]] = []
        tick = 0
        for there, ticks in groupby(trace.available):
            begun, tick = tick, tick + sum(1 for _ in ticks)
            if there:
                spells.append((begun * trace.gap_seconds, tick * trace.gap_seconds))
        if trace.available[0] and trace.available[-1] and len(spells) > 1:
            # The last spell continues at the beginning of the trace.
            first, last = spells[0], spells.pop()
            spells[0] = (last[0] - self.period, first[1])
            spells.append((last[0], first[1] + self.period))
        self._always = all(trace.available)
        self._begins = [begin for begin, _ in spells]
        self._ends = [end for _, end in spells]

    def next_machine(self, at: float) -> tuple[float, float]:
        """Return when the first machine is there, not before `at`, and when it is lost (infinite:
        never). In seconds from the beginning of the trace."""
        if self._always:
            return at, math.inf
        round_, place = divmod(at, self.period)
        found = bisect_right(self._ends, place)
        if found == len(self._ends):
            round_, found = round_ + 1, 0
        shift = round_ * self.period
        return max(self._begins[found] + shift, at), self._ends[found] + shift

    def spells(self, begin: float, end: float) -> list[float]:
        """Return the seconds of every spell between two times, cut off at both."""
        if self._always:
            return [end - begin]
        found: list[float] = []
        at = begin
        while True:
            there, gone = self.next_machine(at)
            if there >= end:
                return found
            found.append(min(gone, end) - there)
            at = gone
