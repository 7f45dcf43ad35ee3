"""Compare two runs by the scores of single questions and documents: the difference and its error.

Only what both were asked in the same form is compared. Of anything else, the words say what is not
the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pion.evaluation.item_scores import ItemScores, TaskScores, difference, mean, mean_sem, unpack
from pipeline.state.head import Head
from pipeline.state.record_json import damaged, parse_record
from pipeline.state.run_state import BY_ITEM, RunState, part_path
from pipeline.state.stores import Missing

CORE = "core"
# What the keys of a measure's form are called where two runs differ in them.
FORM = {
    "rule": "another rule",
    "questions": "other questions",
    "rewards": "other rewards, or limits of answers",
    "items": "another number of items",
    "shots": "another number of examples",
    "data": "other data",
    "rows": "another number of rows",
    "seed": "another seed, so other rows",
    "window": "another data.window, so other rows",
    "text": "another text",
}
# A difference counts as real if chance alone gives one so large in fewer cases, over all tasks of
# CORE together (Holm 1979, Scandinavian Journal of Statistics 6).
FALSE_ALARMS = 0.05

Measure = tuple[Mapping[str, Any], ItemScores]  # its form, and its scores


@dataclass(frozen=True)
class Compared:
    """A measure of two runs.

    Attributes:
        name: such as `bits_per_byte` or `core.piqa`.
        values: of the two; None if a run was not measured.
        change: the second less the first; None if it can't be said, and `why_not` says why.
        sem: its standard error; None if it is not known.
        real: of the tasks of CORE, whether the difference is more than chance; None of the others.
    """

    name: str
    values: tuple[float | None, float | None]
    change: float | None = None
    sem: float | None = None
    why_not: str = ""
    real: bool | None = None

    @property
    def z(self) -> float | None:
        """The difference in standard errors."""
        return None if self.change is None or not self.sem else self.change / self.sem


def read_measures(run: RunState, head: Head, model: str) -> dict[str, Measure]:
    """Return the measures of a run's `model` (a training stage); {} if it was not evaluated, or by
    a Pion that did not keep them. Raises `Damaged`."""
    record = head.stages.get("evaluate")
    if record is None:
        return {}
    key = run.key(part_path(record.digest, BY_ITEM))
    where = f"{run.store.url}/{key}"
    try:
        raw = parse_record(run.store.read(key), where)
    except Missing:
        return {}
    measures: dict[str, Measure] = {}
    for name, packed in raw.items():
        of, _, measure = name.partition(".")
        if of != model:
            continue
        if not isinstance(packed, dict) or not isinstance(packed.get("key"), dict):
            raise damaged(where, f"{name} has no form")
        try:
            measures[measure] = packed["key"], unpack(packed)
        except ValueError as error:
            raise damaged(where, f"{name}: {error}") from None
    return measures


def compare(before: Mapping[str, Measure], after: Mapping[str, Measure]) -> list[Compared]:
    """Return what was measured of two models, CORE's mean before its tasks."""
    names = list(dict.fromkeys([*before, *after]))
    rows = [_compared(name, before.get(name), after.get(name)) for name in names]
    tasks = [row for row in rows if row.name.startswith(f"{CORE}.")]
    others = [row for row in rows if row not in tasks]
    return [*others, *_mean(tasks, before, after), *_with_verdicts(tasks)]


def _compared(name: str, before: Measure | None, after: Measure | None) -> Compared:
    values = (_value(before), _value(after))
    if before is None or after is None:
        return Compared(name, values, why_not="measured of one alone")
    form, other = before[0], after[0]
    differing = [key for key in dict.fromkeys([*form, *other]) if form.get(key) != other.get(key)]
    try:
        change, sem = difference(before[1], after[1])
    except ValueError:
        differing = differing or ["questions"]
    if differing:
        return Compared(name, values, why_not="; ".join(FORM.get(key, key) for key in differing))
    if not math.isfinite(change):
        return Compared(name, values, why_not="not finite")
    return Compared(name, values, change, sem if math.isfinite(sem) else None)


def _value(measure: Measure | None) -> float | None:
    if measure is None:
        return None
    value = mean(measure[1])[0]
    return value if math.isfinite(value) else None


# ---------------------------------------------------------------- CORE


def _mean(
    tasks: Sequence[Compared], before: Mapping[str, Measure], after: Mapping[str, Measure]
) -> list[Compared]:
    """Return the difference of the mean of CORE's centred accuracies; [] without tasks."""
    if not tasks:
        return []
    values = (_core_of(before), _core_of(after))
    if left := [row for row in tasks if row.change is None or row.sem is None]:
        why = f"{len(left)} of {len(tasks)} tasks can't be compared, such as {left[0].name}"
        return [Compared(CORE, values, why_not=f"{why}: {left[0].why_not}")]
    scored = []
    for row in tasks:
        (form, old), (_, new) = before[row.name], after[row.name]
        scored.append(
            TaskScores(row.sem or 0.0, form["baseline"], form["questions"], new.scores - old.scores)
        )
    change = math.fsum((row.change or 0.0) / (1 - of.baseline) for row, of in zip(tasks, scored))
    return [Compared(CORE, values, change / len(tasks), mean_sem(scored))]


def _core_of(measures: Mapping[str, Measure]) -> float | None:
    centred = [
        (value - form["baseline"]) / (1 - form["baseline"])
        for name, (form, scores) in measures.items()
        if name.startswith(f"{CORE}.") and (value := _value((form, scores))) is not None
    ]
    return math.fsum(centred) / len(centred) if centred else None


def _with_verdicts(tasks: Sequence[Compared]) -> list[Compared]:
    """Say of each task whether its difference is more than chance, over all tasks together."""
    tested = [row for row in tasks if row.z is not None]
    by_chance = sorted(tested, key=lambda row: -abs(row.z or 0.0))
    real: set[str] = set()
    for index, row in enumerate(by_chance):
        chance = math.erfc(abs(row.z or 0.0) / math.sqrt(2))
        if chance > FALSE_ALARMS / (len(by_chance) - index):
            break
        real.add(row.name)
    return [
        row
        if row.change is None
        else Compared(row.name, row.values, row.change, row.sem, real=row.name in real)
        for row in tasks
    ]
