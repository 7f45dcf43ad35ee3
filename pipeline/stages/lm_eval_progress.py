"""How far a task of lm-eval is: the last bar that it has drawn in its standard error."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

# Between two lines, in looks.
LOOKS = 150
# Where the end of the file is searched.
LAST_BYTES = 4096
_BAR = re.compile(r"Running \w+ requests: +\d+%\|[^|]*\| (\d+)/(\d+) \[")


class Progress:
    """Says now and then how many requests a task has answered.

    Attributes:
        errors: the task's standard error.
        say: gets `120 of 1,319 requests`, if that has changed.
    """

    def __init__(self, errors: Path, say: Callable[[str], None]) -> None:
        self.errors, self.say = errors, say
        self._looks = 0
        self._said = ""

    def look(self) -> None:
        """Look at the file each LOOKS calls."""
        self._looks += 1
        if self._looks % LOOKS == 0 and (now := progress_of(self.errors)) not in ("", self._said):
            self._said = now
            self.say(now)


def progress_of(errors: Path) -> str:
    """Return what the last bar in a file says; empty if there is none."""
    with errors.open("rb") as file:
        file.seek(max(0, errors.stat().st_size - LAST_BYTES))
        bars = _BAR.findall(file.read().decode(errors="replace"))
    return "" if not bars else f"{int(bars[-1][0]):,} of {int(bars[-1][1]):,} requests"
