"""The law L(N, D) = E + A·N^-α + B·D^-β, and how it is fitted to results of runs (Hoffmann et al.
2022, approach 3).

N is multiply-accumulates per token, D is tokens, L is bits per byte. What is minimized is the Huber
loss of the residuals of log L, over (log E, log A, α, log B, β), by L-BFGS-B.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from annotated_types import Ge, Gt, Lt
from numpy.typing import NDArray

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
    """Raise BadInput that says what is missing if the results are too few or too alike to fit a
    law."""
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


Vector = NDArray[np.float64]
# The parameters that a fit finds.
PARAMETERS = 5
# Beyond this residual of log L, the loss grows linearly.
HUBER = 1e-3
# With residuals of normal noise, this multiple of their standard deviation makes Huber's loss lose
# 5 % of the precision of least squares, and the loss still ignores outliers (Huber 1964).
HUBER_OF_NOISE = 1.345
# The standard deviation of normal noise is its median absolute value times this.
NORMAL = 1.4826
# Starts of the exponents, and the range in which they are searched.
STARTS = (0.15, 0.35, 0.7)
EXPONENTS = (0.02, 2.0)
# A term may be as small as this share of the mean loss, and as large as this multiple.
SHARES = (1e-4, 3.0)

Coefficient = Annotated[float, Gt(0), Lt(1e60)]
Exponent = Annotated[float, Gt(0), Lt(10)]


@dataclass(frozen=True)
class Law:
    """E + A·N^-α + B·D^-β, in bits per byte."""

    E: Coefficient
    A: Coefficient
    alpha: Exponent
    B: Coefficient
    beta: Exponent

    def loss(self, macs_per_token: float, tokens: float) -> float:
        """Return the bits per byte of a model after training."""
        terms = (self.A * macs_per_token**-self.alpha, self.B * tokens**-self.beta)
        return self.E + sum(terms)


@dataclass(frozen=True)
class LogResults:
    """Logarithms of results: sizes and lengths relative to their means, and losses."""

    sizes: Vector
    lengths: Vector
    losses: Vector
    mean_size: float
    mean_length: float

    @classmethod
    def of(cls, points: Sequence[Point]) -> LogResults:
        """Return the logarithms. Relative to their means, the parameters hardly depend on each
        other, and the search takes fewer steps."""
        rows = [(float(p.macs_per_token), float(p.tokens), p.bits_per_byte) for p in points]
        sizes, lengths, losses = (np.log(column) for column in np.array(rows).T)
        mean_size, mean_length = float(sizes.mean()), float(lengths.mean())
        return cls(sizes - mean_size, lengths - mean_length, losses, mean_size, mean_length)

    def law(self, found: Vector) -> Law:
        """Return the law of the parameters that a search has found."""
        e, a, alpha, b, beta = (float(value) for value in found)
        return Law(
            E=float(np.exp(e)),
            A=float(np.exp(a + alpha * self.mean_size)),
            alpha=alpha,
            B=float(np.exp(b + beta * self.mean_length)),
            beta=beta,
        )

    def parameters(self, law: Law) -> Vector:
        """Return the parameters of a law, as a search finds them."""
        return np.array(
            [
                np.log(law.E),
                np.log(law.A) - law.alpha * self.mean_size,
                law.alpha,
                np.log(law.B) - law.beta * self.mean_length,
                law.beta,
            ]
        )


def predicted(found: Vector, at: LogResults) -> Vector:
    """Return the logarithms of the losses that the parameters give."""
    return np.logaddexp.reduce(terms(found, at), axis=0)


def best_of_starts(at: LogResults) -> Vector:
    """Return the parameters with the lowest Huber loss, from a grid of starts. From which residual
    on the loss is linear follows from the noise."""
    found = [_search(_start(alpha, beta, at), at, HUBER) for alpha in STARTS for beta in STARTS]
    first = min(found, key=lambda answer: answer[1])[0]
    residuals = np.abs(at.losses - predicted(first, at))
    # The first fit, of nearly absolute residuals, goes through as many points as it has parameters.
    noise = NORMAL * float(np.median(np.sort(residuals)[PARAMETERS:]))
    return _search(first, at, max(HUBER, HUBER_OF_NOISE * noise))[0]


def _search(start: Vector, at: LogResults, threshold: float) -> tuple[Vector, float]:
    """Return the parameters and their Huber loss, in units of threshold²."""
    from scipy.optimize import minimize  # takes half a second to import

    def objective(theta: Vector) -> tuple[float, Vector]:
        each = terms(theta, at)
        total = np.logaddexp.reduce(each, axis=0)
        scaled = (at.losses - total) / threshold
        size = np.abs(scaled)
        loss = np.where(size <= 1, 0.5 * scaled * scaled, size - 0.5).sum()
        shares = np.exp(each - total) * (np.clip(scaled, -1, 1) / -threshold)
        e, a, b = shares.sum(axis=1)
        slopes = (-(shares[1] @ at.sizes), -(shares[2] @ at.lengths))
        return float(loss), np.array([e, a, slopes[0], b, slopes[1]])

    bounds = bounds_of(at)
    options = {"maxiter": 2000, "maxfun": 4000, "ftol": 1e-10, "gtol": 1e-7}
    answer = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return np.asarray(answer.x, dtype=np.float64), float(answer.fun)


def bounds_of(at: LogResults) -> list[tuple[float, float]]:
    """Return the range in which each parameter is searched."""
    scale = float(np.log(np.mean(np.exp(at.losses))))
    level = (scale + np.log(SHARES[0]), scale + np.log(SHARES[1]))
    return [level, level, EXPONENTS, level, EXPONENTS]


def _start(alpha: float, beta: float, at: LogResults) -> Vector:
    """Return parameters with these exponents and, for these, the best coefficients by least
    squares."""
    from scipy.optimize import nnls

    losses = np.exp(at.losses)
    columns = [np.ones_like(losses), np.exp(-alpha * at.sizes), np.exp(-beta * at.lengths)]
    found, _ = nnls(np.stack(columns, axis=1), losses)
    e, a, b = np.log(np.maximum(found, losses.mean() * 0.01))
    return np.array([e, a, alpha, b, beta])


def terms(found: Vector, at: LogResults) -> Vector:
    """Return the logarithms of the law's three terms, a row each."""
    e, a, alpha, b, beta = found
    each: Vector = np.stack(
        [np.full_like(at.sizes, e), a - alpha * at.sizes, b - beta * at.lengths]
    )
    return each
