"""Days of a rental as text: what happens, at what time, and which calls a watcher makes then.

The first line of a day is its name. The others begin with a time: the seconds since the day began,
such as `90` or `BOOT+60`, or `end`, which is when the watcher has come to an end.

    TIME EVENT WORDS      the day's method EVENT is called with the words
    TIME → CALL, CALL     since the arrow before, the watcher has made these calls, in this order
    TIME says WORDS       a line with these words was said; `once`: one line, `times 3`: three,
                          `never`: none, `last`: the last line
"""

import math
import re
from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass

import pytest

from pipeline.rent.managed.look.diagnose import HANG_SECONDS, LOST_BOOT_SECONDS, UNNOTICED_SECONDS
from pipeline.rent.managed.provider.jobs import ARRIVE_SECONDS, BOOT_SECONDS

TIMES = {
    "ARRIVE": ARRIVE_SECONDS,
    "BOOT": BOOT_SECONDS,
    "HANG": HANG_SECONDS,
    "LOST": LOST_BOOT_SECONDS,
    "UNNOTICED": UNNOTICED_SECONDS,
    # About what is kept in reserve for a deadline: a boot, a save, a loss, the margin, and nearly
    # no work.
    "RESERVE": 2300.0,
}
# A watcher that has not come to its end so long after the last line never will.
LONGEST = 3600.0


@dataclass(frozen=True)
class Line:
    """What happens at a time, or what has been called or said by then."""

    at: float
    event: str
    words: str


def seconds(text):
    """Return the seconds of a sum such as `RESERVE+300`."""
    terms = re.findall(r"([+-]?)([A-Z]+|\d+)", text)
    return sum(float(f"{sign}{TIMES.get(term, term)}") for sign, term in terms)


def lines_of(text):
    """Return the lines of a day without its name."""
    lines = []
    for line in text.strip().splitlines():
        at, event, words = (*line.split(maxsplit=2), "")[:3]
        lines.append(Line(math.inf if at == "end" else seconds(at), event, words))
    return lines


def days(text):
    """Return each day of a text as a parameter of a test. Between days is an empty line."""
    parameters = []
    for day in text.strip().split("\n\n"):
        name, _, rest = day.partition("\n")
        marks = [pytest.mark.slow] if name.startswith("(slow) ") else []
        name = name.removeprefix("(slow) ")
        parameters.append(pytest.param(lines_of(rest), id=name, marks=marks))
    return parameters


class Day(ABC):
    """A rental and whoever watches it. Its methods are the events that the lines of a day name."""

    def __init__(self, sky, run, time, said):
        self.sky, self.run, self.time, self.said = sky, run, time, said
        self.begun, self.over, self.left = time.time, False, deque()
        self._checked = 0

    def play(self, lines):
        """Let a day pass, and check it. The lines may be a text without a name."""
        self.left = deque(lines_of(lines) if isinstance(lines, str) else lines)
        while self.left:
            if self.left[0].at > self.elapsed:
                self.watch_until(self.left[0].at)
            self.happen()
        assert self.new_orders() == []

    @property
    def elapsed(self):
        """The seconds since the day began; infinite once the watcher has come to its end."""
        return math.inf if self.over else self.time.time - self.begun

    def happen(self):
        """Let the next line happen."""
        line = self.left.popleft()
        if line.event == "→":
            calls = [call for call in line.words.split(", ") if call]
            assert (new := self.new_orders()) == calls, f"at {self.elapsed:.0f} s: {new}"
        else:
            getattr(self, line.event.replace("-", "_"))(line.words)

    def new_orders(self):
        """Return the calls since this was asked last."""
        new = self.sky.orders[self._checked :]
        self._checked += len(new)
        return new

    @abstractmethod
    def watch_until(self, at):
        """Let a watcher watch until it is that time."""

    def says(self, words):
        assert any(words in line for line in self.said), self.said

    def once(self, words):
        self.times(f"1 {words}")

    def times(self, text):
        count, words = text.split(maxsplit=1)
        assert [words in line for line in self.said].count(True) == int(count), self.said

    def never(self, words):
        assert not any(words in line for line in self.said), self.said

    def last(self, words):
        assert words in self.said[-1]
