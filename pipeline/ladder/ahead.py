"""What a rented machine would do of a ladder or of a search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.ladder.cap import Cap
from pipeline.state.head import Spent


@dataclass(frozen=True)
class Ahead:
    """What is left of a ladder or of a search.

    Attributes:
        run: the run that a rented machine owns while it works (at_work.py).
        runs: all its runs, by name.
        left: how many of them are not done; 0: nothing is left.
        next_run, next_hours: the first of those that are left, and how many hours it is expected
            to take; None if nothing is known.
        largest: the one with the largest model of those that are left.
        overrides: what it changes of the job.
        times: the work that is left, in that of the largest run.
        cap: over all runs, as the store has it or as it was given now.
        spent, spent_by_others: what all runs have cost, and all but the largest.
    """

    run: str
    runs: Sequence[str]
    left: int
    next_run: str
    next_hours: float | None
    largest: str
    overrides: Sequence[str]
    times: float
    cap: Cap
    spent: Spent
    spent_by_others: Spent
