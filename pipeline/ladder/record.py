"""The records of ladders and of searches in their store. Results are those of the runs.

The record of a ladder lies in `_ladders/NAME.json`, and that of a search in
`_ladders/NAME/try-….json`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pion.errors import BadInput
from pipeline.console.formats import some
from pipeline.job import Job
from pipeline.job.digest import Difference, Digests, Inputs, differences, digest_job
from pipeline.ladder.cap import Cap
from pipeline.ladder.grid import Rung
from pipeline.ladder.law import training_flops
from pipeline.ladder.prediction import Fit, Prediction
from pipeline.state.record_file import RecordFile, strictly
from pipeline.state.record_json import Amount, Count, Time, closed_record
from pipeline.state.stores import Store
from pipeline.state.stores.base import LADDERS, is_run_name

FORMAT = 1
# A difference of more runs than this is shown by its first ones.
SHOWN = 6
# Settings that decide which text is predicted and how it is counted, but for those that decide only
# the order of its rows, or how much of it there is.
_OF_THE_TEXT = ("data.", "tokenizer.")
_ORDER_OR_AMOUNT = ("data.window", "data.shard_rows", ".max_documents")


@closed_record
@dataclass(frozen=True)
class RungRecord:
    """A run of the ladder. `digest` is that of its evaluate stage: of all its settings and data."""

    name: str
    digest: str
    macs_per_token: Count
    tokens: Count
    held_out: bool

    @property
    def flops(self) -> float:
        """The FLOPs of its training with the model's weights."""
        return training_flops(self.macs_per_token, self.tokens)


@closed_record
@dataclass(frozen=True)
class PredictionRecord(Prediction):
    """What was predicted of a held-out run before it started, and when."""

    at: Time


@closed_record
@dataclass(frozen=True, kw_only=True)
class WorkRecord:
    """What a ladder and a search keep alike.

    Attributes:
        hours, dollars: the cap over all runs; None: there is none.
        failed: why a run has no result, by its name.
    """

    hours: Amount | None = None
    dollars: Amount | None = None
    failed: Mapping[str, str] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def cap(self) -> Cap:
        """The cap over all runs."""
        return Cap(self.hours, self.dollars)


@closed_record
@dataclass(frozen=True)
class LadderRecord(WorkRecord):
    """A ladder.

    Attributes:
        settings: those of the job that its runs follow from, by dotted key.
        rungs: its runs: those to fit, then those held out, the cheapest first of each.
        predictions: by the name of the held-out run.
        fit: None before there is one.
    """

    settings: Mapping[str, Any]
    rungs: tuple[RungRecord, ...]
    predictions: Mapping[str, PredictionRecord] = field(default_factory=dict)
    fit: Fit | None = None

    def other_text(self, digests: Digests) -> list[Difference]:
        """Return the settings of the data and the tokenizer in which the ladder's runs differ from
        a job with these digests: bits per byte of other text are not comparable."""
        own = digests.inputs["data.pretrain"] | digests.inputs["pretrain"]
        return [
            one
            for one in differences(dict(self.settings), own, digests.before)
            if one.path.startswith(_OF_THE_TEXT) and not one.path.endswith(_ORDER_OR_AMOUNT)
        ]


@closed_record
@dataclass(frozen=True)
class SearchRecord(WorkRecord):
    """A search: its settings and rounds. `choice` is the chosen setting; None before there is
    one."""

    stage: str
    settings: tuple[str, ...]
    seeds: tuple[Count, ...]
    rounds: tuple[Count, ...]
    choice: str | None = None


def ladder_file(store: Store, name: str) -> RecordFile[LadderRecord]:
    """Return the record of the ladder called `name`."""
    return RecordFile(
        store,
        f"{LADDERS}/{name}.json",
        strictly(LadderRecord, FORMAT),
        advice="Delete this file. The runs of the ladder keep their results, and the next "
        "`pion ladder` fits them again.",
    )


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


def new_ladder(job: Job, rungs: Sequence[Rung], cap: Cap) -> LadderRecord:
    """Return the record of a ladder of `job` that has not begun."""
    own = digest_job(job).inputs
    changed = {change.partition("=")[0] for rung in rungs for change in rung.overrides}
    evaluated = rungs[0].digests.inputs["evaluate"]
    evaluated = {key: value for key, value in evaluated.items() if key not in changed}
    inputs: Inputs = own["data.pretrain"] | own["pretrain"] | evaluated
    shared = {key: value for key, value in inputs.items() if not key.startswith("input.")}
    return LadderRecord(
        settings=shared,
        rungs=tuple(
            RungRecord(
                name=rung.name,
                digest=rung.digests.stages["evaluate"],
                macs_per_token=rung.macs_per_token,
                tokens=rung.tokens,
                held_out=rung.held_out,
            )
            for rung in rungs
        ),
        hours=cap.hours,
        dollars=cap.dollars,
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
        if found:
            lines.append(f"{words}: {some(found, SHOWN)}")
    held = {rung.name: rung.held_out for rung in old}
    moved = [rung.name for rung in new if held.get(rung.name, rung.held_out) != rung.held_out]
    if moved:
        lines.append(f"held out before, or now: {', '.join(moved[:SHOWN])}")
    return lines


# ---------------------------------------------------------------- a finished ladder


WITHOUT = "Without --ladder, sizes follow a rule, and no loss is predicted."


def read_fitted(store: Store, name: str) -> LadderRecord:
    """Return the record of the ladder `name`, which has a fit.

    Raises BadInput if there is no such ladder, if it has no fit yet, and for a record that can't be
    read; and StoreError.
    """
    if not is_run_name(name):
        raise BadInput(f"--ladder {name!r:.200}: a ladder has a name, such as small.")
    record, _ = ladder_file(store, name).read()
    if record is None:
        raise BadInput(
            f"there is no ladder {name!r} in {store.url}{_those_there(store)} To make one: pion "
            f"ladder JOB, with a job of this name and store. {WITHOUT}"
        )
    if record.fit is None:
        raise BadInput(
            f"the ladder {name!r} in {store.url} is not finished, so it predicts nothing yet. To "
            f"finish it, run the same `pion ladder` command again. {WITHOUT}"
        )
    return record


def _those_there(store: Store) -> str:
    """Return the end of a sentence, with the names of ladders that are there."""
    keys = sorted(entry.key for entry in store.list(f"{LADDERS}/"))
    names = [key.removeprefix(f"{LADDERS}/") for key in keys]
    names = [name.removesuffix(".json") for name in names if "/" not in name]
    if not names:
        return "."
    return f", which has {', '.join(names[:8])}{', …' if len(names) > 8 else ''}."
