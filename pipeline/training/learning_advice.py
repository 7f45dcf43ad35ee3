"""What to tell people while a stage learns from preferences or rewards. A warning is said once in a
stage, also if the stage resumes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from pipeline.console.messages import Note
from pipeline.state.rows.metrics import MetricsLog, kept_rows
from pipeline.state.rows.row_types import Unreadable
from pipeline.state.rows.thin import ThinReader
from pipeline.training import preference_advice, reward_advice

if TYPE_CHECKING:
    from pipeline.state.claim import Claim
    from pipeline.training.setup import Setup

# A step has few pairs or prompts, so the means of so many steps are judged.
WINDOW = 8

Row = Mapping[str, Any]
# Return what is wrong with the last rows, next to the first ones, by name.
Finds = Callable[[Sequence[Row], Sequence[Row]], dict[str, str]]
# What a row of metrics needs to be judged; what judges the first and the last rows after each step;
# and what judges the first and the last quarter, where half of the stage and all of it is trained.
RULES: tuple[tuple[Sequence[str], Finds, Finds], ...] = (
    (preference_advice.NEEDED, preference_advice.found, lambda first, last: {}),
    (reward_advice.NEEDED, reward_advice.found, reward_advice.flat),
)


class LearningAdvice:
    """Judges the steps of a stage of `steps`, in their order. `say` gets the step, a name, and a
    warning."""

    def __init__(self, say: Callable[[int, str, str], None], steps: int) -> None:
        self._say = say
        self._said: set[str] = set()
        self._rows: list[Row] = []
        self._halves = (steps // 2, steps)

    def recall(self, rows: Iterable[Row]) -> None:
        """Continue after these rows of metrics: with what was warned of, and the last steps."""
        for row in rows:
            if "warning" in row:
                self._said.add(row["warning"]["name"])
            elif _rule(row) is not None:
                self._rows.append(row)

    def trained(self, rows: Iterable[Row]) -> None:
        """Warn of what these steps show. Rows of other stages say nothing."""
        for row in rows:
            if (rule := _rule(row)) is None:
                continue
            self._rows.append(row)
            if len(self._rows) < WINDOW:
                continue
            found, over_all = rule
            said = found(self._rows[:WINDOW], self._rows[-WINDOW:])
            # What else is wrong comes with better advice on what to change.
            if (step := row["step"]) in self._halves and not (self._said or said):
                # By steps: of a stage that resumes, not all rows are read.
                first = [one for one in self._rows if 4 * one["step"] <= step]
                last = [one for one in self._rows if 4 * one["step"] > 3 * step]
                said |= over_all(first, last)
            for name, text in said.items():
                if name not in self._said:
                    self._said.add(name)
                    self._say(step, name, text)


def _rule(row: Row) -> tuple[Finds, Finds] | None:
    """Return what judges a row; None for one of another stage, or that lacks numbers."""
    known = (finds for finds in RULES if all(row.get(name) is not None for name in finds[0]))
    return next((finds[1:] for finds in known), None)


def advice_on(setup: Setup, claim: Claim, log: MetricsLog) -> LearningAdvice:
    """Return what judges the steps of a stage that rank 0 is about to train. Warnings are shown,
    and kept in `log`. Raises StoreError."""
    context, stage = setup.context, setup.stage

    def say(step: int, name: str, text: str) -> None:
        words = f"warning: {stage} step {step:,}: {text}"
        context.report(Note(f"{words}."))
        log.append({"step": step, "warning": {"name": name, "text": words}})

    section = context.job.section(stage)
    advice = LearningAdvice(say, section.total_steps)
    if section.learning is not None and setup.trainer.step:
        lines = setup.restored.unwritten_metrics.splitlines()
        every = [*context.patiently(partial(_written, claim, stage)), *map(json.loads, lines)]
        advice.recall(kept_rows(every, claim.head, stage))
    return advice


def _written(claim: Claim, stage: str) -> Sequence[Row]:
    """Return all rows of a stage that the store has."""
    run = claim.state
    return ThinReader(run.store, run.key(f"metrics/{stage}/"), Unreadable()).read()
