"""The record of a search in its store: `_ladders/NAME/try-….json`. Its runs have the results."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.state.record_file import RecordFile, strictly
from pipeline.state.record_json import Amount, Count, closed_record
from pipeline.state.stores import Store
from pipeline.state.stores.base import LADDERS

FORMAT = 1


@closed_record
@dataclass(frozen=True)
class SearchRecord:
    """A search: its settings and rounds, its cap, and why runs have no result, by their names.

    `choice` is the chosen setting; None before there is one.
    """

    stage: str
    settings: tuple[str, ...]
    seeds: tuple[Count, ...]
    rounds: tuple[Count, ...]
    hours: Amount | None = None
    dollars: Amount | None = None
    failed: Mapping[str, str] = field(default_factory=dict)
    choice: str | None = None
    format: int = FORMAT


def search_file(store: Store, job: str, runs: Sequence[str]) -> RecordFile[SearchRecord]:
    """Return the record of the search of a job with these runs, whose names hold what they are."""
    digest = hashlib.sha256("\n".join(sorted(runs)).encode()).hexdigest()[:12]
    return RecordFile(
        store,
        f"{LADDERS}/{job}/try-{digest}.json",
        strictly(SearchRecord, FORMAT),
        advice="Delete this file. The runs keep what they measured, and the same command decides "
        "again.",
    )


def open_search(file: RecordFile[SearchRecord], new: SearchRecord) -> SearchRecord:
    """Return the record of a search: `new`, if there is none.

    A cap that `new` has replaces that of the record. Raises StoreError, and Damaged.
    """
    return file.change(lambda old: _begun(old, new), None)


def _begun(old: SearchRecord | None, new: SearchRecord) -> SearchRecord:
    if old is None:
        return new
    if new.hours is None and new.dollars is None:
        return old
    return dataclasses.replace(old, hours=new.hours, dollars=new.dollars)
