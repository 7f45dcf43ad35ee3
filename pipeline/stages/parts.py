"""The parts of a measurement: each is computed once and kept, so an interruption loses little."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from pipeline.console.messages import Note, Say
from pipeline.stages.measures import Result


class Parts(Protocol):
    """Where finished parts are kept."""

    def load(self, name: str) -> Result | None:
        """Return the part as it was saved, or None."""

    def save(self, name: str, result: Result) -> Result:
        """Keep a part durably; return the kept result, which another owner may have saved first."""


@dataclass(frozen=True)
class KeptParts:
    """Computes parts that are not kept yet. `say` gets a note as each of them starts."""

    parts: Parts
    say: Say

    def __call__(self, name: str, label: str, compute: Callable[[], Result]) -> Result:
        """Return the part of this name, computed unless it is kept; `label` says what it is."""
        result = self.parts.load(name)
        if result is None:
            self.say(Note(f"evaluate: {label}"))
            result = self.parts.save(name, compute())
        return result
