"""Do one run of a search after the other, under one cap, and keep the record of the search.

The record lies in `_ladders/NAME/try-….json` of the store. Results are those of the runs.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pion.errors import PionError
from pipeline.console.formats import duration
from pipeline.cost.budget import price_per_hour
from pipeline.search.cap import Cap, budget_of, check_cap, refuse_beyond, total
from pipeline.search.runs import Run, Runs
from pipeline.state.head import Head, Spent
from pipeline.state.record_file import RecordFile, strictly
from pipeline.state.record_json import Amount, Count, closed_record
from pipeline.state.stores import Store
from pipeline.state.stores.base import LADDERS

FORMAT = 1


@closed_record
@dataclass(frozen=True, kw_only=True)
class SearchRecord:
    """A search.

    Attributes:
        settings, seeds, rounds: what it compares, and the steps at which its rounds end.
        choice: the chosen setting; None before there is one.
        hours, dollars: the cap over all runs; None: there is none.
        failed: why a run has no result, by its name.
    """

    stage: str
    settings: tuple[str, ...]
    seeds: tuple[Count, ...]
    rounds: tuple[Count, ...]
    choice: str | None = None
    hours: Amount | None = None
    dollars: Amount | None = None
    failed: Mapping[str, str] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def cap(self) -> Cap:
        """The cap over all runs."""
        return Cap(self.hours, self.dollars)


def search_file(store: Store, job: str, runs: Iterable[str]) -> RecordFile[SearchRecord]:
    """Return the record of the search of a job with these runs, whose names hold what they are."""
    digest = hashlib.sha256("\n".join(sorted(runs)).encode()).hexdigest()[:12]
    return RecordFile(
        store,
        f"{LADDERS}/{job}/try-{digest}.json",
        strictly(SearchRecord, FORMAT),
        advice="Delete this file. The runs keep what they measured, and the same command decides "
        "again.",
    )


class Work:
    """One start of a search.

    `new` is the record of a search that has not begun. A cap that `new` has replaces the cap in the
    store. Raises BadInput and StoreError.

    Attributes:
        record: as it was last read or written.
    """

    def __init__(self, runs: Runs, file: RecordFile[SearchRecord], new: SearchRecord) -> None:
        def begin(old: SearchRecord | None) -> SearchRecord:
            if old is None:
                return new
            if new.hours is None and new.dollars is None:
                return old
            return dataclasses.replace(old, hours=new.hours, dollars=new.dollars)

        check_cap(new.cap, runs.job.budget)
        self._runs, self._file = runs, file
        self.record: SearchRecord = file.change(begin, None)
        runs.store.flush()
        check_cap(self.record.cap, runs.job.budget)

    def advance(
        self,
        run: Run,
        title: str,
        spent: Mapping[str, Spent],
        expected: float | None,
        *,
        pause: Mapping[str, Any] | None = None,
        until: str | None = None,
    ) -> int:
        """Advance a run, and return its exit code as `Runs.start` does.

        `spent` is what each run has cost, by its name. The run is `expected` to take so many more
        hours. `pause` are settings that end it before its end. Raises as `Runs.start` does, and
        Stopped if the run would exceed the cap.
        """
        price = price_per_hour(self._runs.job.budget)
        cap = self.record.cap
        refuse_beyond(cap, total(spent), run.name, expected, price)
        self._runs.say(title + ("" if expected is None else f", about {duration(3600 * expected)}"))
        limits = budget_of(run.job.budget, cap, total(spent, without=run.name))
        return self._runs.start(run, limits | dict(pause or {}), until=until)

    def why_diverged(self, run: Run, stage: str, otherwise: str) -> str:
        """Return why training of a run diverged, in words. Raises PionError, which says
        `otherwise`, if no step of it went wrong."""
        head = self._runs.heads([run.name]).get(run.name, Head())
        digest = run.digests.stages[stage]
        wrong = [rows for rows in head.skipped.get(stage, ()) if rows.digest == digest]
        if not wrong:
            raise PionError(
                f"run {run.name} {otherwise} Fix the cause, and run the same command again to "
                "continue."
            )
        last = wrong[-1]
        times = "once" if len(wrong) == 1 else f"{len(wrong)} times"
        return f"diverged: step {last.step:,} gave {last.why}, after it was rolled back {times}"

    def give_up(self, run: Run, why: str, so: str) -> None:
        """Record that a run will have no result, and say why, and what follows."""
        self._runs.say(f"{run.name}: {why}. {so}")
        self.change(lambda old: {"failed": {**old.failed, run.name: why}})

    def change(self, change: Callable[[SearchRecord], Mapping[str, Any]]) -> None:
        """Change fields of the record in the store, as it is there now."""
        self.record = self._file.change(
            lambda old: dataclasses.replace(old, **change(old)), self.record
        )
        self._runs.store.flush()
