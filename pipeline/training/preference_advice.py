"""What to tell people while a stage learns from preferences: the model leaves its reference,
nothing is left to learn, or nothing is learned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import mean
from typing import Any

from pion.errors import PionError

# In nats per token: how much less likely the chosen answers may become, compared with those of the
# first steps, and compared with the reference.
MOST_FALLEN, MOST_DRIFT = 0.5, 0.3
# Above these shares of right and of saturated pairs, nothing is left to learn.
MOST_RIGHT, MOST_SATURATED = 0.98, 0.5
# A model that is still its reference after so many steps, within so many nats, does not learn.
STILL_STEPS, STILL = 20, 1e-6
# What a row of metrics needs to be judged. One from a store may lack numbers.
NEEDED = ("chosen_nll", "drift", "accuracy", "saturated")

Row = Mapping[str, Any]


def found(first: Sequence[Row], last: Sequence[Row]) -> dict[str, str]:
    """Return what is wrong with the last steps, by name."""
    began, now = mean_of(first, "chosen_nll"), mean_of(last, "chosen_nll")
    drift, right, saturated = (mean_of(last, n) for n in ("drift", "accuracy", "saturated"))
    said = {
        "fallen": (
            now - began > MOST_FALLEN,
            "the chosen answers have become less likely: their loss was "
            f"{began:.2f} nats per token in the first steps, and is {now:.2f} now. {_HELD}",
        ),
        "drift": (
            drift > MOST_DRIFT,
            f"the model has left its reference: the chosen answers are {drift:.2f} nats per "
            f"token less likely than in the reference (more than {MOST_DRIFT:g} is much). "
            f"{_HELD}",
        ),
        "learned": (
            right > MOST_RIGHT and saturated > MOST_SATURATED,
            f"nothing is left to learn: {right:.1%} of the preferences are right, and "
            f"{saturated:.0%} teach nothing any more. Stop earlier (prefer.steps or "
            "prefer.epochs), raise prefer.beta, add prefer.sft_weight=0.2, or use the loss "
            "apo-zero",
        ),
    }
    return {name: words for name, (holds, words) in said.items() if holds}


def mean_of(rows: Sequence[Row], name: str) -> float:
    """Return the mean of a number of steps."""
    return mean(row[name] for row in rows)


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
