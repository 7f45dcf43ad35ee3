"""A ladder as its store has it now: what each run has reached, and what all of them have cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pion.errors import BadInput, PionError
from pipeline.console.formats import counted
from pipeline.ladder.cap import Cap, expected_hours, total
from pipeline.ladder.law import Point
from pipeline.ladder.prediction import Fit
from pipeline.ladder.record import LadderRecord, PredictionRecord, RungRecord
from pipeline.ladder.runs import Runs
from pipeline.report.results import Evaluated, result_of
from pipeline.state.head import Head, Spent


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

    rung: RungRecord
    result: Point | None = None
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
        return [step.result for step in found if step.result is not None]

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


def look(name: str, record: LadderRecord, runs: Runs) -> Ladder:
    """Return the ladder of this name as its record and the HEADs of its runs say.

    Raises Damaged and StoreError.
    """
    heads, url = runs.heads(rung.name for rung in record.rungs), runs.store.url
    return Ladder(
        name=name,
        url=f"{url}/{name}",
        steps=[
            _step(rung, record, heads.get(rung.name), f"{url}/{rung.name}") for rung in record.rungs
        ],
        fit=record.fit,
        cap=record.cap,
    )


def _step(rung: RungRecord, record: LadderRecord, head: Head | None, where: str) -> Step:
    """Return what the run at the address `where`, whose HEAD this is, has reached."""
    prediction, failed = record.predictions.get(rung.name), record.failed.get(rung.name)
    if head is None:
        return Step(rung, failed=failed, prediction=prediction)
    result = None if failed else result_in(head, rung, where)
    if result is not None and not 0 < result.bits_per_byte < math.inf:
        result, failed = None, "its held-out loss is not a number"
    return Step(
        rung=rung,
        result=result,
        failed=failed,
        prediction=prediction,
        spent=head.spent,
        data=head.data.get("pretrain", "").rpartition("/")[0],
    )


def result_in(head: Head, rung: RungRecord, where: str) -> Point | None:
    """Return the result of a finished run; None if it is not finished with the rung's settings.

    A loss that is not finite is NaN: the store keeps it as null. Raises Damaged.
    """
    evaluated = head.stages.get("evaluate")
    if evaluated is None or evaluated.digest != rung.digest:
        return None
    measured = result_of(Evaluated, head, "evaluate", where).get("pretrain", {})
    bits, sem = measured.get("bits_per_byte"), measured.get("bits_per_byte_sem")
    bits = math.nan if bits is None else bits
    return Point(rung.name, rung.macs_per_token, rung.tokens, bits, sem)


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
