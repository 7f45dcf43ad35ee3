"""Successive halving over settings, as a pure function of what their runs have measured.

All settings train with the first seeds, on the same rows, to half of their steps. The better half
of the settings continues to the end, from its checkpoints. Most seeds train only to a tenth of the
steps: they tell how much of a difference is noise, and who diverges.

So a few seeds decide at the end, in place of all seeds long before. On recorded curves
(docs/halving.md), a paused run misleads more than a single seed does: a setting that starts
fast looks better than it ends, and while rates fall, the lower rate does.

A choice between two settings is made by the mean of their paired differences. Their standard error
comes from the differences of all settings and all seeds at a tenth of the steps, with a common
variance: a few seeds of two settings alone know too little about it. The lowest of many settings is
lower than most of them by luck alone, so the limit is that of the studentized range (Tukey).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

# The most of the grid's steps that a search takes: all settings, all seeds, all steps.
SHARE = 0.4
# Of so many seeds, one decides. The others train to the first of so many parts of the steps.
SEEDS_FOR_ONE = 3
PARTS = 10
# If no setting differs from another, this share of searches says so of all of them, and this share
# on all sources.
SURE = 0.95

# Setting → seed → step → held-out loss.
Curves: TypeAlias = Mapping[str, Mapping[int, Mapping[int, float]]]


@dataclass(frozen=True)
class Round:
    """So many `settings` train to `step` with the first `seeds`. The best of them are in the next
    round; the last round leaves one."""

    step: int
    settings: int
    seeds: int


# The settings, the best first, each with the last round in which it was measured.
Ranking: TypeAlias = Mapping[str, Round]


@dataclass(frozen=True)
class Wanted:
    """What has to be trained next: these runs, a setting and a seed each, to this step."""

    step: int
    runs: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Difference:
    """How a setting compares with the chosen one: loss of the chosen minus its loss, in nats.

    Attributes:
        step: at which both were measured last.
        difference: the mean over seeds.
        sem: the standard error of the paired difference; infinite with too few runs.
        sure: whether it is more than noise.
        diverged: whether the other setting has no finite loss with some seed.
    """

    setting: str
    step: int
    difference: float
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


def plan_rounds(settings: int, steps: int, seeds: int) -> list[Round]:
    """Return the rounds for two or more settings, which take at most `SHARE` of the grid's steps.

    The last round ends at the last step, or earlier if the share does not allow that: with one or
    two seeds. With two or more seeds, the first round keeps all settings, to measure the noise.
    There are no rounds if the steps are too few for them.
    """
    deciding = max(1, seeds // SEEDS_FOR_ONE)
    others = settings * (seeds - deciding)
    noise = steps // PARTS if others else 0
    # To each half of the steps: so many settings.
    halves = {2: 2} if settings == 2 else {1: settings, 2: math.ceil(settings / 2)}
    taken = steps_taken([Round(half, count, deciding) for half, count in halves.items()])
    left = math.floor(SHARE * settings * seeds * steps) - others * noise
    last = min(steps, 2 * left // taken)
    rounds = [Round(last * half // 2, count, deciding) for half, count in halves.items()]
    if rounds[0].step <= noise or (others and not noise):
        return []
    return [Round(noise, settings, seeds), *rounds] if others else rounds


def steps_taken(rounds: Sequence[Round]) -> int:
    """Return the steps of all runs that the rounds take together, if no setting diverges.

    The runs of a round continue runs of the round before."""
    starts = [0, *(each.step for each in rounds)]
    return sum(
        each.settings * each.seeds * (each.step - start) for each, start in zip(rounds, starts)
    )


def decide(curves: Curves, rounds: Sequence[Round]) -> Wanted | Ranking:
    """Return what has to be trained next, or the ranking if all rounds are over.

    A setting that diverges is left out of later rounds. The result depends on nothing but the
    curves: on no order, and on nothing measured later than a round.
    """
    left = sorted(curves)
    ranking: dict[str, Round] = {}
    for now, following in zip(rounds, [*(each.settings for each in rounds[1:]), 1]):
        if len(left) == 1:
            break
        missing = [
            (setting, seed)
            for setting in left
            for seed in sorted(curves[setting])[: now.seeds]
            if now.step not in curves[setting][seed]
        ]
        if missing:
            return Wanted(now.step, tuple(missing))
        losses = {setting: losses_at(curves, setting, now) for setting in left}
        ranked = rank(losses)
        dropped = {setting: last for setting, last in ranking.items() if setting not in losses}
        ranking = dict.fromkeys(ranked, now) | dropped
        finite = [setting for setting in ranked if np.isfinite(losses[setting]).all()]
        left = (finite or ranked)[:following]
    return ranking


def losses_at(curves: Curves, setting: str, when: Round) -> list[float]:
    """Return the losses of a setting at the step of a round, in the order of its seeds."""
    by_seed = curves[setting]
    return [by_seed[seed][when.step] for seed in sorted(by_seed)[: when.seeds]]


def rank(losses: Mapping[str, Sequence[float]]) -> list[str]:
    """Return the settings, the lowest mean loss first. One that is not finite comes last."""
    means = {setting: float(np.mean(values)) for setting, values in losses.items()}
    return sorted(
        losses, key=lambda name: (means[name] if math.isfinite(means[name]) else math.inf, name)
    )


def compare(curves: Curves, ranking: Ranking, noise: Round, sources: int = 1) -> Choice:
    """Return how each setting of a ranking compares with the first one.

    The losses may be those on one of the `sources` of the data. Then so many comparisons stand next
    to each other. What tells a difference from luck is the noise of all settings and seeds in the
    round `noise`, if the chosen setting is the best of all these settings.
    """
    variance, freedom = _pooled_variance([losses_at(curves, each, noise) for each in curves])
    limit = _limit(len(curves), sources, freedom)
    (chosen, reached), *others = ranking.items()
    differences = []
    for setting, last in others:
        with np.errstate(invalid="ignore"):  # inf - inf, if both diverge
            paired = np.subtract(losses_at(curves, chosen, last), losses_at(curves, setting, last))
        if np.isfinite(paired).all():
            mean, sem = float(paired.mean()), math.sqrt(2 * variance / len(paired))
            differences.append(
                Difference(setting, last.step, mean, sem, sure=abs(mean) > limit * sem)
            )
        else:
            differences.append(
                Difference(setting, last.step, -math.inf, math.inf, sure=True, diverged=True)
            )
    return Choice(chosen, reached.step, tuple(differences))


def _pooled_variance(losses: Sequence[Sequence[float]]) -> tuple[float, int]:
    """Return the variance of a loss around the sum of its setting's mean and its seed's, and its
    degrees of freedom. Settings that diverged don't count."""
    rows = [values for values in losses if np.isfinite(values).all()]
    table = np.array(rows, dtype=np.float64)
    freedom = (table.shape[0] - 1) * (table.shape[1] - 1) if len(rows) > 1 else 0
    if freedom == 0:
        return math.inf, 0
    rest = table - table.mean(axis=0) - table.mean(axis=1, keepdims=True) + table.mean()
    return float((rest**2).sum() / freedom), freedom


@functools.cache
def _limit(compared: int, sources: int, freedom: int) -> float:
    """Return how many standard errors a difference must be from 0 to be sure, if so many settings
    were compared: the studentized range, which for two settings is Student's t. The sources share
    what may be wrong (Bonferroni). Without a degree of freedom, nothing is sure."""
    if freedom == 0:
        return math.inf
    from scipy.stats import studentized_range

    share = 1 - (1 - SURE) / sources
    return float(studentized_range.ppf(share, compared, freedom)) / math.sqrt(2)
