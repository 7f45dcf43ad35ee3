"""Successive halving over settings, as a pure function of what their runs have measured.

All settings train with the first seeds, on the same rows, to half of their steps. The better half
of the settings continues to the end, from its checkpoints. Most seeds train only to a tenth of the
steps: they tell how much of a difference is noise, and who diverges.

So a few seeds decide at the end, in place of all seeds long before. On recorded curves
(docs/try.md), a paused run misleads more than a single seed does: a setting that starts
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
from typing import NamedTuple

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
Curves = Mapping[str, Mapping[int, Mapping[int, float]]]
# Setting → the held-out loss of each seed at one step, in the order of the seeds.
Losses = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Round:
    """The settings that are left train to `step` with the first `seeds`; then the best `keep` are
    left. A round that keeps all measures the noise."""

    step: int
    settings: int
    keep: int
    seeds: int


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


def plan_rounds(settings: int, steps: int, seeds: int) -> list[Round]:
    """Return the rounds for so many settings, which take at most `SHARE` of the grid's steps.

    The last round ends at the last step, or earlier if the share does not allow that: with one or
    two seeds. Raises ValueError for fewer than two settings, or too few steps for a round.
    """
    if settings < 2:
        raise ValueError("halving needs two settings")
    deciding = max(1, seeds // SEEDS_FOR_ONE)
    others = settings * (seeds - deciding)
    noise = steps // PARTS if others else 0
    left = math.floor(SHARE * settings * seeds * steps) - others * noise
    better = math.ceil(settings / 2)
    counts, halves = ([2], [2]) if settings == 2 else ([settings, better], [1, 2])
    # The rounds of a seed take so many halves of a run.
    taken = 2 * settings if settings == 2 else settings + better
    last = min(steps, 2 * left // (taken * deciding))
    ends = [last * part // 2 for part in halves]
    if ends[0] <= noise or (others and not noise):
        raise ValueError("too few steps")
    kept = [*counts[1:], 1]
    first = [Round(noise, settings, settings, seeds)] if others else []
    return [*first, *(Round(*one, deciding) for one in zip(ends, counts, kept))]


def steps_taken(rounds: Sequence[Round]) -> int:
    """Return the steps of all runs that the rounds take together, if no setting diverges."""
    taken = 0
    for number in range(max(one.seeds for one in rounds)):
        own = [one for one in rounds if one.seeds > number]
        before = [0, *(one.step for one in own)]
        taken += sum(one.settings * (one.step - start) for one, start in zip(own, before))
    return taken


def decide(curves: Curves, rounds: Sequence[Round]) -> Wanted | Choice:
    """Return what has to be trained next, or the choice if all rounds are over.

    A setting that diverges is left out of later rounds. The result depends on nothing but the
    curves: on no order, and on nothing measured later than a round.
    """
    left, step = sorted(curves), 0
    noise: Losses | None = None
    over: list[tuple[str, int, Losses]] = []
    for one in rounds:
        if len(left) == 1:
            break
        seeds = {setting: sorted(curves[setting])[: one.seeds] for setting in left}
        missing = [(s, seed) for s in left for seed in seeds[s] if one.step not in curves[s][seed]]
        if missing:
            return Wanted(one.step, tuple(missing))
        losses, step = losses_at(curves, left, one), one.step
        if one.keep == one.settings:
            noise = losses
        ranked = rank(losses)
        finite = [setting for setting in ranked if np.isfinite(losses[setting]).all()]
        left = (finite or ranked)[: one.keep]
        dropped = [setting for setting in ranked if setting not in left]
        over = [*((setting, one.step, losses) for setting in dropped), *over]
    chosen = left[0]
    others = (
        compare(losses, chosen, setting, at, Noise(noise or losses, len(curves)))
        for setting, at, losses in over
    )
    return Choice(chosen, step, tuple(others))


def differences_of(curves: Curves, choice: Choice, rounds: Sequence[Round], sources: int) -> Choice:
    """Return the same choice with the differences in other losses of its runs: those on one of the
    `sources` of the data. The noise is that of the first round."""
    noise = Noise(losses_at(curves, sorted(curves), rounds[0]), len(curves), sources)
    at = {one.step: one for one in rounds}
    others = [
        compare(
            losses_at(curves, [choice.setting, other.setting], at[other.step]),
            choice.setting,
            other.setting,
            other.step,
            noise,
        )
        for other in choice.others
    ]
    return Choice(choice.setting, choice.step, tuple(others))


def losses_at(curves: Curves, settings: Sequence[str], one: Round) -> Losses:
    """Return the losses of settings at the step of a round, in the order of its seeds."""
    return {
        setting: [curves[setting][seed][one.step] for seed in sorted(curves[setting])[: one.seeds]]
        for setting in settings
    }


def rank(losses: Losses) -> list[str]:
    """Return the settings, the lowest mean loss first. One that is not finite comes last."""
    means = {setting: float(np.mean(values)) for setting, values in losses.items()}
    finite = {setting: mean for setting, mean in means.items() if math.isfinite(mean)}
    return sorted(losses, key=lambda setting: (finite.get(setting, math.inf), setting))


class Noise(NamedTuple):
    """What tells a difference from luck: the noise of these losses, if the chosen setting is the
    best of so many that were `compared`, and so many `sources` are compared next to each other."""

    losses: Losses
    compared: int = 2
    sources: int = 1


def compare(
    losses: Losses, chosen: str, other: str, step: int, noise: Noise | None = None
) -> Difference:
    """Return how `other` compares with `chosen` at a step at which `losses` were measured.

    The noise is that of these losses, if it is not given.
    """
    noise = noise or Noise(losses)
    differences = np.array(losses[chosen]) - np.array(losses[other])
    if not np.isfinite(differences).all():
        return Difference(other, step, -math.inf, math.inf, sure=True, diverged=True)
    variance, freedom = _pooled_variance(noise.losses)
    mean = float(differences.mean())
    sem = math.sqrt(2 * variance / len(differences)) if freedom else math.inf
    sure = freedom > 0 and abs(mean) > _limit(noise.compared, noise.sources, freedom) * sem
    return Difference(other, step, mean, sem, sure)


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


@functools.cache
def _limit(compared: int, sources: int, freedom: int) -> float:
    """Return how many standard errors a difference must be from 0 to be sure, if so many settings
    were compared: the studentized range, which for two settings is Student's t. The sources share
    what may be wrong (Bonferroni)."""
    from scipy.stats import studentized_range

    share = 1 - (1 - SURE) / sources
    return float(studentized_range.ppf(share, compared, freedom)) / math.sqrt(2)
