"""The record of a search in `_ladders/NAME/try-….json` of its store."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from pipeline.search.cap import Cap
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
