"""What to tell people while a stage learns from preferences: the model leaves its reference,
nothing is left to learn, or nothing is learned. A warning is said once in a stage, also if the
stage resumes."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from statistics import mean
from typing import TYPE_CHECKING, Any

from pion.errors import PionError
from pipeline.console.messages import Note
from pipeline.state.rows.metrics import MetricsLog, kept_rows
from pipeline.state.rows.row_types import Unreadable
from pipeline.state.rows.thin import ThinReader

if TYPE_CHECKING:
    from pipeline.state.claim import Claim
    from pipeline.training.setup import Setup

# A step has few pairs, so the means of so many steps are judged.
WINDOW = 8
# In nats per token: how much less likely the chosen answers may become, compared with those of the
# first steps, and compared with the reference.
MOST_FALLEN, MOST_DRIFT = 0.5, 0.3
# Above these shares of right and of saturated pairs, nothing is left to learn.
MOST_RIGHT, MOST_SATURATED = 0.98, 0.5
# A model that is still its reference after so many steps, within so many nats, does not learn.
STILL_STEPS, STILL = 20, 1e-6

Row = Mapping[str, Any]


class PreferenceAdvice:
    """Judges the steps of a stage, in their order. `say` gets the step, a name, and a warning."""

    def __init__(self, say: Callable[[int, str, str], None]) -> None:
        self._say = say
        self._said: set[str] = set()
        self._last: deque[Row] = deque(maxlen=WINDOW)
        self._first: list[Row] = []

    def recall(self, rows: Iterable[Row]) -> None:
        """Continue after these rows of metrics: with what was warned of, and the last steps."""
        for row in rows:
            if "warning" in row:
                self._said.add(row["warning"]["name"])
            elif _is_judged(row):
                self._keep(row)

    def trained(self, rows: Iterable[Row]) -> None:
        """Warn of what these steps show. Rows of other stages say nothing."""
        for row in rows:
            if not _is_judged(row):
                continue
            self._keep(row)
            if len(self._last) < WINDOW:
                continue
            for name, text in self._found().items():
                if name not in self._said:
                    self._said.add(name)
                    self._say(row["step"], name, text)

    def _keep(self, row: Row) -> None:
        self._last.append(row)
        if len(self._first) < WINDOW:
            self._first.append(row)

    def _mean(self, name: str) -> float:
        return mean(row[name] for row in self._last)

    def _found(self) -> dict[str, str]:
        """Return what is wrong with the last steps, by name."""
        found = {}
        began, now = mean(row["chosen_nll"] for row in self._first), self._mean("chosen_nll")
        if now - began > MOST_FALLEN:
            found["fallen"] = (
                "the chosen answers have become less likely: their loss was "
                f"{began:.2f} nats per token in the first steps, and is {now:.2f} now. {_HELD}"
            )
        if (drift := self._mean("drift")) > MOST_DRIFT:
            found["drift"] = (
                f"the model has left its reference: the chosen answers are {drift:.2f} nats per "
                f"token less likely than in the reference (more than {MOST_DRIFT:g} is much). "
                f"{_HELD}"
            )
        right, saturated = self._mean("accuracy"), self._mean("saturated")
        if right > MOST_RIGHT and saturated > MOST_SATURATED:
            found["learned"] = (
                f"nothing is left to learn: {right:.1%} of the preferences are right, and "
                f"{saturated:.0%} teach nothing any more. Stop earlier (prefer.steps or "
                "prefer.epochs), raise prefer.beta, add prefer.sft_weight=0.2, or use the loss "
                "apo-zero"
            )
        return found


def _is_judged(row: Row) -> bool:
    """Return whether a row is of a step of preferences. One from a store may lack numbers."""
    numbers = (row.get(name) for name in ("chosen_nll", "drift", "accuracy", "saturated"))
    return all(number is not None for number in numbers)


_HELD = (
    "Such models begin to repeat themselves: look at the samples and at the bits per byte. Lower "
    "prefer.lr, raise prefer.beta, add prefer.sft_weight=0.2, or stop earlier"
)


def require_learning(rows: Iterable[Row]) -> None:
    """Raise PionError if a row is of a model that is still its reference after STILL_STEPS steps.

    Every step has a rate above 0. So this needs no memory, and a stage that resumes finds it too.
    """
    for row in rows:
        if row["step"] > STILL_STEPS and row.get("moved", 1.0) < STILL:
            raise PionError(
                f"prefer: nothing learns: after {row['step'] - 1:,} steps, the model gives each "
                f"answer what the reference gives, within {STILL:g} nats. Everything committed is "
                f"safe. Raise prefer.lr (it is {row['lr']:.2g} now), or name other projections in "
                "prefer.lora.targets, and run the same command with --redo prefer"
            )


def advice_on(setup: Setup, claim: Claim, log: MetricsLog) -> PreferenceAdvice:
    """Return what judges the steps of a stage that rank 0 is about to train. Warnings are shown,
    and kept in `log`. Raises StoreError."""
    context, stage = setup.context, setup.stage

    def say(step: int, name: str, text: str) -> None:
        words = f"warning: {stage} step {step:,}: {text}"
        context.report(Note(f"{words}."))
        log.append({"step": step, "warning": {"name": name, "text": words}})

    advice = PreferenceAdvice(say)
    if stage == "prefer" and setup.trainer.step:
        lines = setup.restored.unwritten_metrics.splitlines()
        rows = context.patiently(partial(_written, claim, stage))
        every = [*rows, *map(json.loads, lines)]
        advice.recall(kept_rows(every, claim.head, stage))
    return advice


def _written(claim: Claim, stage: str) -> Sequence[Row]:
    """Return all rows of a stage that the store has."""
    run = claim.state
    return ThinReader(run.store, run.key(f"metrics/{stage}/"), Unreadable()).read()
