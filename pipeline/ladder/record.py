"""The record of a ladder in its store: its runs, its cap, its predictions, and the fit.

It lies in `_ladders/NAME.json`. Results are not in it: they are those of the runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pion.errors import BadInput
from pipeline.job import Job
from pipeline.job.digest import Digests, Inputs, differences, digest_job
from pipeline.ladder.grid import Rung
from pipeline.state.record_file import RecordFile, strictly
from pipeline.state.record_json import Amount, Count, Time, closed_record
from pipeline.state.stores import Store
from pipeline.state.stores.base import LADDERS

FORMAT = 1
# A difference of more runs than this is shown by its first ones.
SHOWN = 6


@closed_record
@dataclass(frozen=True)
class RungRecord:
    """A run of the ladder. `digest` is that of its evaluate stage: of all its settings and data."""

    name: str
    digest: str
    macs_per_token: Count
    tokens: Count
    held_out: bool


@closed_record
@dataclass(frozen=True)
class PredictionRecord:
    """What was predicted of a held-out run before it started, in bits per byte, and when."""

    bits_per_byte: float
    low: float
    high: float
    at: Time


@closed_record
@dataclass(frozen=True)
class LadderRecord:
    """A ladder.

    Attributes:
        settings: those of the job that its runs follow from, by dotted key.
        rungs: its runs: those to fit, then those held out, the cheapest first of each.
        hours, dollars: the cap over all its runs; None: there is none.
        predictions: by the name of the held-out run.
        failed: why a run has no result, by its name.
        fit: the record of the fit; None before there is one.
    """

    settings: Mapping[str, Any]
    rungs: tuple[RungRecord, ...]
    hours: Amount | None = None
    dollars: Amount | None = None
    predictions: Mapping[str, PredictionRecord] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)
    fit: Mapping[str, Any] | None = None
    format: int = FORMAT


def record_key(name: str) -> str:
    """Return the store's key of a ladder's record."""
    return f"{LADDERS}/{name}.json"


def page_key(name: str) -> str:
    """Return the store's key of a ladder's page."""
    return f"{LADDERS}/{name}/ladder.html"


def ladder_file(store: Store, name: str) -> RecordFile[LadderRecord]:
    """Return the record of the ladder called `name`."""
    return RecordFile(
        store,
        record_key(name),
        strictly(LadderRecord, FORMAT),
        advice="Delete this file. The runs of the ladder keep their results, and the next "
        "`pion ladder` fits them again.",
    )


def new_record(
    job: Job, rungs: Sequence[Rung], jobs: Mapping[str, tuple[Job, Digests]]
) -> LadderRecord:
    """Return the record of a ladder of `job` that has not begun. `jobs` has each rung's job, by
    name."""
    own = digest_job(job).inputs
    changed = {key for rung in rungs for key in rung.changes}
    _, digests = jobs[rungs[0].name]
    evaluated = {k: v for k, v in digests.inputs["evaluate"].items() if k not in changed}
    inputs: Inputs = own["data.pretrain"] | own["pretrain"] | evaluated
    shared = {key: value for key, value in inputs.items() if not key.startswith("input.")}
    return LadderRecord(
        settings=shared,
        rungs=tuple(
            RungRecord(
                name=rung.name,
                digest=jobs[rung.name][1].stages["evaluate"],
                macs_per_token=rung.macs_per_token,
                tokens=rung.tokens,
                held_out=rung.held_out,
            )
            for rung in rungs
        ),
    )


def refuse_other(old: LadderRecord, new: LadderRecord, before: Inputs, where: str) -> None:
    """Raise BadInput, with the difference, if `new` has other runs than the ladder `old` has."""
    if old.rungs == new.rungs:
        return
    lines = [str(d) for d in differences(dict(old.settings), dict(new.settings), before)]
    lines += _other_rungs(old.rungs, new.rungs)
    if not lines:
        lines = ["its runs follow from the job by other rules, of another version of Pion"]
    raise BadInput(
        "\n".join(
            [
                f"{where} was begun with other settings:",
                *(f"    {line}" for line in lines),
                "Nothing was changed. Your options:",
                "  put the old values back, to continue it;",
                "  pion ladder JOB name=NAME    a separate new ladder.",
            ]
        )
    )


def _other_rungs(old: Sequence[RungRecord], new: Sequence[RungRecord]) -> list[str]:
    """Return how the runs differ, by name."""
    lines = []
    for words, ours, theirs in (("no longer", old, new), ("new", new, old)):
        names = {rung.name for rung in theirs}
        found = [rung.name for rung in ours if rung.name not in names]
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        if found:
            lines.append(f"{words}: {', '.join(found[:SHOWN])}{more}")
    held = {rung.name: rung.held_out for rung in old}
    moved = [rung.name for rung in new if held.get(rung.name, rung.held_out) != rung.held_out]
    if moved:
        lines.append(f"held out before, or now: {', '.join(moved[:SHOWN])}")
    return lines


def open_ladder(
    file: RecordFile[LadderRecord], store: Store, name: str, new: LadderRecord, before: Inputs
) -> LadderRecord:
    """Return the record of the ladder in `file`, which is `new` if the ladder has not begun.

    A cap that `new` has replaces that of the record. `before` has the values of a job's later
    fields. Raises BadInput if the ladder was begun with other settings, and StoreError.
    """
    where = f"the ladder {name!r} in {store.url}"
    record = file.change(lambda old: _begun(old, new, before, where), None)
    store.flush()
    return record


def _begun(old: LadderRecord | None, new: LadderRecord, before: Inputs, where: str) -> LadderRecord:
    if old is None:
        return new
    refuse_other(old, new, before, where)
    if new.hours is None and new.dollars is None:
        return old
    return dataclasses.replace(old, hours=new.hours, dollars=new.dollars)
