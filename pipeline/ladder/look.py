"""A ladder as its store has it now: what each run has reached, and what all of them have cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pion.errors import BadInput, PionError
from pipeline.console.formats import counted
from pipeline.job import Job
from pipeline.ladder.cap import Cap, expected_hours, total
from pipeline.ladder.fit import Fit
from pipeline.ladder.grid import Rung
from pipeline.ladder.law import Point
from pipeline.ladder.record import LadderRecord, PredictionRecord, record_key
from pipeline.ladder.runs import Result, Run, Runs, result_in
from pipeline.state.head import Spent


@dataclass(frozen=True)
class Step:
    """A rung of the ladder as it is now.

    Attributes:
        result: None: it has none yet, or it failed.
        failed: why it has no result and will have none.
        prediction: what was predicted before it started.
        spent: what its run has cost; None: it has not begun.
        data: the fingerprint of the prepared data that it trains on.
    """

    rung: Rung
    result: Result | None = None
    failed: str | None = None
    prediction: PredictionRecord | None = None
    spent: Spent | None = None
    data: str = ""

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        return self.result is not None or self.failed is not None

    @property
    def error(self) -> float | None:
        """By which share the result is above the prediction; None if one of the two is missing."""
        if self.result is None or self.prediction is None:
            return None
        return self.result.bits_per_byte / self.prediction.bits_per_byte - 1.0


@dataclass(frozen=True)
class Ladder:
    """A ladder as it is now.

    Attributes:
        url: the address of its runs, without `-ladder-…`.
        steps: its rungs: those to fit, then those held out, the cheapest first of each.
        fit: None before there is one.
        stopped: why it ended before its last run; None if it did not.
    """

    name: str
    url: str
    steps: Sequence[Step]
    fit: Fit | None
    cap: Cap
    stopped: PionError | None = None

    @property
    def spent_by_run(self) -> dict[str, Spent]:
        """What each run that has begun has cost."""
        return {step.rung.name: step.spent for step in self.steps if step.spent is not None}

    @property
    def spent(self) -> Spent:
        """What all runs have cost together."""
        return total(self.spent_by_run)

    def step(self, name: str) -> Step:
        """Return the rung of this name as it is now."""
        return next(step for step in self.steps if step.rung.name == name)

    def points(self) -> list[Point]:
        """Return the results to fit. Raises BadInput if runs trained on different data."""
        found = [s for s in self.steps if not s.rung.held_out and s.result is not None]
        _require_same_data(found)
        return [
            Point(
                step.rung.name,
                step.rung.macs_per_token,
                step.rung.tokens,
                step.result.bits_per_byte,
                step.result.sem,
            )
            for step in found
            if step.result is not None
        ]

    def expected_hours(self, step: Step) -> float | None:
        """Return how many more hours a run takes; None if nothing is known."""
        finished = [
            (other.rung.flops, other.spent.hours)
            for other in self.steps
            if other.result is not None and other.spent is not None
        ]
        whole = expected_hours(step.rung.flops, sorted(finished, key=lambda run: run[0]))
        if whole is None or step.spent is None:
            return whole
        return max(0.0, whole - step.spent.hours)


def look(
    job: Job, rungs: Sequence[Rung], of: Mapping[str, Run], record: LadderRecord, runs: Runs
) -> Ladder:
    """Return the ladder of `job` as its record and the HEADs of its runs say.

    `of` has the run of each rung, by name. Raises Damaged and StoreError.
    """
    heads = runs.heads(of)
    steps = []
    for rung in rungs:
        name, head = rung.name, heads.get(rung.name)
        failed = record.failed.get(name)
        steps.append(
            Step(
                rung=rung,
                result=None
                if failed
                else result_in(head, of[name].digests, f"{runs.store.url}/{name}"),
                failed=failed,
                prediction=record.predictions.get(name),
                spent=None if head is None else head.spent,
                data="" if head is None else head.data.get("pretrain", "").rpartition("/")[0],
            )
        )
    file = f"{runs.store.url}/{record_key(job.name)}"
    return Ladder(
        name=job.name,
        url=f"{runs.store.url}/{job.name}",
        steps=steps,
        fit=None if record.fit is None else Fit.from_record(record.fit, file),
        cap=Cap(record.hours, record.dollars),
    )


def _require_same_data(steps: Sequence[Step]) -> None:
    """Raise BadInput if runs trained on different data: a file may change between two runs."""
    by_data: dict[str, list[str]] = {}
    for step in steps:
        by_data.setdefault(step.data, []).append(step.rung.name)
    if len(by_data) < 2:
        return
    most, *others = sorted(by_data.values(), key=len, reverse=True)
    names = [name for other in others for name in other]
    raise BadInput(
        f"{counted(len(names), 'run')} of this ladder trained on other data than the other "
        f"{len(most)}: {', '.join(names[:4])}{' …' if len(names) > 4 else ''}. The files of the "
        "job have changed between them, or its tokenizer has. Nothing was fitted, and every run "
        f"is kept. Remove the runs on the old data (pion rm {names[0]} …), and run the same "
        "command again."
    )
