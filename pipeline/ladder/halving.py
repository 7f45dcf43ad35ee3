"""Successive halving over settings, as a pure function of what their runs have measured.

All settings train with the same seeds, on the same rows, to the step of the first round. The better
half continues to the step of the next round, from its checkpoints. The last round has two settings.
Each round is twice as long as the one before (Jamieson and Talwalkar 2016, arXiv 1502.07943).

A choice between two settings is made by the mean of their paired differences. Their standard error
comes from the differences of all settings of the round, with a common variance: three seeds of two
settings alone know too little about it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

# The most of the grid's steps that a search takes: all settings, all seeds, all steps.
SHARE = 0.4
# Two settings differ if their paired difference is further from 0 than this share of such
# differences would be if there was none.
SURE = 0.95

# Setting → seed → step → held-out loss.
Curves = Mapping[str, Mapping[int, Mapping[int, float]]]
# Setting → the held-out loss of each seed at one step, in the order of the seeds.
Losses = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Round:
    """All settings that are left train to `step`; then the best `keep` are left."""

    step: int
    settings: int
    keep: int


@dataclass(frozen=True)
class Wanted:
    """What has to be trained next: these runs to this step."""

    step: int
    runs: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Difference:
    """How a setting compares with the chosen one: loss of the chosen minus its loss, in nats.

    Attributes:
        step: at which both were measured last.
        sem: the standard error of the paired difference; infinite with too few runs.
        sure: whether it is more than noise.
        diverged: whether the other setting has no finite loss with some seed.
    """

    setting: str
    step: int
    mean: float
    sem: float
    sure: bool
    diverged: bool = False


@dataclass(frozen=True)
class Choice:
    """The chosen setting, and how each of the others compares with it, the best first.

    `step` is the step that the chosen setting has reached.
    """

    setting: str
    step: int
    others: tuple[Difference, ...]


def plan_rounds(settings: int, steps: int, share: float = SHARE) -> list[Round]:
    """Return the rounds for so many settings, which take at most `share` of the grid's steps.

    The last round ends at the last step, or earlier if the share does not allow that. Raises
    ValueError for fewer than two settings, or too few steps for a round.
    """
    if settings < 2:
        raise ValueError("halving needs two settings")
    counts = [settings]
    while counts[-1] > 2:
        counts.append(math.ceil(counts[-1] / 2))
    # Round j ends at first · 2^j. In steps of one seed, the rounds take
    doublings = len(counts) - 1
    cost_of_first = counts[0] + sum(n * 2.0 ** (j - 1) for j, n in enumerate(counts) if j)
    first = math.floor(min(share * settings * steps / cost_of_first, steps / 2**doublings))
    if first < 1:
        raise ValueError("too few steps")
    kept = [*counts[1:], 1]
    return [Round(first * 2**j, n, keep) for j, (n, keep) in enumerate(zip(counts, kept))]


def steps_taken(rounds: Sequence[Round]) -> int:
    """Return the steps of one seed that the rounds take together."""
    before = [0, *(one.step for one in rounds)]
    return sum(one.settings * (one.step - start) for one, start in zip(rounds, before))


def decide(curves: Curves, rounds: Sequence[Round]) -> Wanted | Choice:
    """Return what has to be trained next, or the choice if all rounds are over.

    It depends on nothing but the curves: on no order, and on nothing measured later than a round.
    """
    left = sorted(curves)
    over: list[tuple[str, int, Losses]] = []
    for one in rounds:
        missing = [
            (setting, seed)
            for setting in left
            for seed in sorted(curves[setting])
            if one.step not in curves[setting][seed]
        ]
        if missing:
            return Wanted(one.step, tuple(missing))
        losses = losses_at(curves, left, one.step)
        ranked = rank(losses)
        left, dropped = ranked[: one.keep], ranked[one.keep :]
        over = [*((setting, one.step, losses) for setting in dropped), *over]
    chosen = left[0]
    others = tuple(compare(losses, chosen, setting, step) for setting, step, losses in over)
    return Choice(chosen, rounds[-1].step, others)


def losses_at(curves: Curves, settings: Sequence[str], step: int) -> Losses:
    """Return the losses of settings at a step, in the order of their seeds."""
    return {
        setting: [curves[setting][seed][step] for seed in sorted(curves[setting])]
        for setting in settings
    }


def rank(losses: Losses) -> list[str]:
    """Return the settings, the lowest mean loss first. One that is not finite comes last."""
    means = {setting: float(np.mean(values)) for setting, values in losses.items()}
    return sorted(losses, key=lambda setting: (_or_infinite(means[setting]), setting))


def compare(losses: Losses, chosen: str, other: str, step: int) -> Difference:
    """Return how `other` compares with `chosen` at a step at which `losses` were measured."""
    differences = np.array(losses[chosen]) - np.array(losses[other])
    if not np.isfinite(differences).all():
        return Difference(other, step, -math.inf, math.inf, sure=True, diverged=True)
    variance, freedom = _pooled_variance(losses)
    mean = float(differences.mean())
    sem = math.sqrt(2 * variance / len(differences)) if freedom else math.inf
    return Difference(
        other, step, mean, sem, sure=freedom > 0 and abs(mean) > _limit(freedom) * sem
    )


def _pooled_variance(losses: Losses) -> tuple[float, int]:
    """Return the variance of a loss around the sum of its setting's mean and its seed's, and its
    degrees of freedom. Settings that diverged don't count."""
    rows = [values for values in losses.values() if np.isfinite(values).all()]
    table = np.array(rows, dtype=np.float64)
    freedom = (table.shape[0] - 1) * (table.shape[1] - 1) if len(rows) > 1 else 0
    if freedom == 0:
        return math.inf, 0
    rest = table - table.mean(axis=0) - table.mean(axis=1, keepdims=True) + table.mean()
    return float((rest**2).sum() / freedom), freedom


def _limit(freedom: int) -> float:
    """Return how many standard errors a difference must be from 0 to be sure (Student's t)."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + SURE) / 2))


def _or_infinite(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf
