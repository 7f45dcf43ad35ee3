"""The results of a ladder's runs, and whether they are enough to fit a law."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt, Lt

from pion.errors import BadInput
from pipeline.console.formats import counted

SIZES, LENGTHS, POINTS = 3, 3, 7
# The most that the logarithms of sizes and lengths may be correlated. Above, no fit can tell what
# is due to the sizes and what to the lengths.
CORRELATION = 0.98

Positive = Annotated[int, Gt(0), Lt(2**63)]


@dataclass(frozen=True)
class Point:
    """The result of one run.

    Attributes:
        run: the run's name.
        macs_per_token: multiply-accumulates with the model's weights for one token, the head
            included (`pion.model.params_and_flops.ModelCost`).
        tokens: the tokens that the run trained on.
        bits_per_byte: on held-out text.
        bits_per_byte_sem: its standard error by document; None: not known. The runs of a ladder
            score the same documents, so this error is the same for all and no fit uses it.
    """

    run: str
    macs_per_token: Positive
    tokens: Positive
    bits_per_byte: Annotated[float, Gt(0), Lt(1e6)]
    bits_per_byte_sem: Annotated[float, Ge(0), Lt(1e6)] | None = None

    @property
    def flops(self) -> float:
        """The FLOPs of training with the model's weights, forward and backward."""
        return training_flops(self.macs_per_token, self.tokens)


def training_flops(macs_per_token: float, tokens: float) -> float:
    """Return the FLOPs of training: a multiply-accumulate is 2 forward, and 4 backward."""
    return 6.0 * macs_per_token * tokens


def check_points(points: Sequence[Point]) -> None:
    """Raise BadInput that names the run and the value if a result is impossible, and that says what
    is missing if the results are too few or too alike to fit a law."""
    for point in points:
        _check_values(point)
    twice = [name for name, count in Counter(point.run for point in points).items() if count > 1]
    if twice:
        raise BadInput(f"run {twice[0]} is in the ladder twice. Leave one of the two out.")
    sizes = {point.macs_per_token for point in points}
    lengths = {point.tokens for point in points}
    missing = [
        counted(least - found, f"more {what}")
        for what, least, found in (
            ("run", POINTS, len(points)),
            ("size", SIZES, len(sizes)),
            ("length", LENGTHS, len(lengths)),
        )
        if found < least
    ]
    if missing:
        raise BadInput(
            f"too few results to fit: there are {counted(len(points), 'run')} of "
            f"{counted(len(sizes), 'size')} and {counted(len(lengths), 'length')}. A fit needs "
            f"{POINTS} runs of {SIZES} sizes and {LENGTHS} lengths, so it lacks "
            f"{', '.join(missing)}. The results are kept; finish the ladder."
        )
    logs = np.log([[point.macs_per_token, point.tokens] for point in points])
    if abs(np.corrcoef(logs.T)[0, 1]) > CORRELATION:
        raise BadInput(
            "the lengths of the runs follow their sizes, so a fit can't tell the two apart. The "
            "results are kept; add a short run of the largest model and a long run of the smallest."
        )


def _check_values(point: Point) -> None:
    values: dict[str, float] = {
        "macs_per_token": point.macs_per_token,
        "tokens": point.tokens,
        "bits_per_byte": point.bits_per_byte,
    }
    wrong = {n: v for n, v in values.items() if not (math.isfinite(v) and v > 0)}
    sem = point.bits_per_byte_sem
    if sem is not None and not (math.isfinite(sem) and sem >= 0):
        wrong["bits_per_byte_sem"] = sem
    for name, value in wrong.items():
        raise BadInput(
            f"run {point.run}: {name} is {value}, but should be a number above 0. Nothing was "
            "fitted. Leave this run out of the ladder, or run it again."
        )
