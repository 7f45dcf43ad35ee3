"""What a page has to be told of a run: the newest parts and curves, and what changed since when.

Each change gets the next sequence number. One number covers all stages and epochs, because a rewind
or a late row of an earlier epoch changes points in the middle of a curve. A page sends the cursor
that it got with its last answer (`GENERATION.SEQUENCE`), and gets what changed after it.
"""

from __future__ import annotations

import re
import secrets
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.report.curves import CurveKey, Point, Rewound

CURSOR = re.compile(r"(?P<generation>[0-9a-f]{8})\.(?P<sequence>\d{1,12})", re.ASCII)
# A page that missed more changes gets everything.
MOST_CHANGES = 1000


@dataclass(frozen=True)
class _Change:
    """From `step` on, a curve has other points than before. `sequence` numbers the change."""

    sequence: int
    curve: CurveKey
    step: int


class Feed:
    """What pages know of one run, and what they don't know yet. Holds no lock."""

    def __init__(self) -> None:
        # Another feed numbers its changes differently: a restarted server, or a replaced run.
        self._generation = secrets.token_hex(4)
        self._sequence = 0
        self._parts: dict[str, tuple[int, Any]] = {}
        self._curves: dict[CurveKey, list[Point]] = {}
        self._changes: deque[_Change] = deque(maxlen=MOST_CHANGES)
        self._rewound: deque[tuple[int, Rewound]] = deque(maxlen=MOST_CHANGES)

    @property
    def cursor(self) -> str:
        """What a page sends that knows everything until now."""
        return f"{self._generation}.{self._sequence}"

    def update(
        self,
        parts: Mapping[str, Any],
        curves: Mapping[CurveKey, Sequence[Point]],
        rewinds: Sequence[Rewound] = (),
    ) -> None:
        """Take over the present parts and curves, and number what changed."""
        number = self._sequence + 1
        for name, value in parts.items():
            if name not in self._parts or self._parts[name][1] != value:
                self._parts[name] = (number, value)
                self._sequence = number
        for key in {**self._curves, **curves}:
            points = list(curves.get(key, ()))
            step = _first_difference(self._curves.get(key, []), points)
            if step is not None:
                self._curves[key] = points
                self._changes.append(_Change(number, key, step))
                self._sequence = number
        self._rewound.extend((number, rewind) for rewind in rewinds)

    def since(self, cursor: str | None) -> dict[str, Any]:
        """Return what changed after `cursor`, or everything if the cursor is not one of this feed.

        A curve's `points` replace all points from the step `from` on. `rewound` names the steps
        that no longer count.
        """
        known = self._known(cursor)
        first: dict[CurveKey, int] = {}
        for change in self._changes:
            if change.sequence > (known or 0):
                step = min(change.step, first.get(change.curve, change.step))
                first[change.curve] = step
        if known is None:
            first = dict.fromkeys(self._curves, 0)
        return {
            "cursor": self.cursor,
            "whole": known is None,
            "parts": {
                name: value
                for name, (sequence, value) in self._parts.items()
                if known is None or sequence > known
            },
            "curves": [
                {
                    "stage": key.stage,
                    "name": key.name,
                    "from": step,
                    "points": [point for point in self._curves[key] if point[0] >= step],
                }
                for key, step in first.items()
            ],
            "rewound": [
                asdict(rewind)
                for sequence, rewind in self._rewound
                if known is not None and sequence > known
            ],
        }

    def _known(self, cursor: str | None) -> int | None:
        """Return the last change that a page knows; None if the page needs everything."""
        match = CURSOR.fullmatch(cursor or "")
        if match is None or match["generation"] != self._generation:
            return None
        sequence = int(match["sequence"])
        forgotten = len(self._changes) == MOST_CHANGES and sequence < self._changes[0].sequence
        return None if forgotten or sequence > self._sequence else sequence


def _first_difference(before: Sequence[Point], now: Sequence[Point]) -> int | None:
    """Return the first step at which the curves differ; None if they are equal."""
    for old, new in zip(before, now):
        if old != new:
            return min(old[0], new[0])
    if len(before) == len(now):
        return None
    return (before if len(before) > len(now) else now)[min(len(before), len(now))][0]
