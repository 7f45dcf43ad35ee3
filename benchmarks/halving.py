"""Replay `pion try` on recorded curves: how good is its choice, and how many steps does it take?

    uv run python -m benchmarks.halving [--seeds 30]

Every setting of two grids trains to the end with every seed (benchmarks/recorded_curves.py). What
is measured is kept in benchmarks/results/halving.json after each training, so the same command
continues; the code must be the same.

Then the search's own code decides, once for each three seeds that no other repetition has. A choice
is good if it ends at most two paired standard errors above the best of the grid, which the whole
trainings of the same seeds tell. Ten repetitions say little, so the share of good choices over all
triples of seeds is reported, too. `regret` is how much higher the choice ends than the best of the
grid, by the means over all seeds: no luck of three seeds is in it. Other rounds than those of
`pion try` are replayed as well.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.recorded_curves import (
    DTYPE,
    GRIDS,
    STEPS,
    Runs,
    bits_per_byte_of_a_nat,
    curves_of,
    finished_seeds,
    missing,
    trained,
)
from pion.train.hardware import device_name
from pipeline.ladder.halving import (
    Choice,
    Curves,
    Losses,
    Round,
    compare,
    decide,
    losses_at,
    plan_rounds,
    rank,
    steps_taken,
)
from pipeline.ladder.vary import settings_of

RESULTS = Path(__file__).parent / "results" / "halving.json"
SEEDS, SEEDS_EACH = 30, 3
# A choice may end so many paired standard errors above the best of the grid.
ERRORS = 2.0
# Rounds that were tried, as (step, settings, how many are kept, seeds). With the first ones, each
# round has twice the steps of the one before, of all seeds.
TRIED = {
    "all seeds: 17 %, 34 %, 69 %": ((11, 6, 3, 3), (22, 3, 2, 3), (44, 2, 1, 3)),
    "all seeds: 25 %, 50 %": ((16, 6, 3, 3), (32, 3, 1, 3)),
    "all seeds: 25 %": ((16, 6, 1, 3),),
    "all seeds: 69 %": ((44, 6, 1, 3),),
    "one seed: 25 %, 100 %": ((16, 6, 3, 1), (64, 3, 1, 1)),
    "one seed: 100 %": ((64, 6, 1, 1),),
}


@dataclass(frozen=True)
class Judged:
    """A choice, and how it compares with the best of the grid: its loss at the end minus that of
    the best, in nats per token, and the standard error of this paired difference."""

    choice: str
    best: str
    difference: float
    sem: float

    @property
    def good(self) -> bool:
        """Whether the choice is not worse than the best by more than the errors that it may be."""
        return self.choice == self.best or self.difference <= ERRORS * self.sem


def judge(curves: Curves, rounds: Sequence[Round]) -> Judged:
    """Return what the search chooses from these curves, compared with the best of the grid.

    A round that keeps all settings only measures the noise: it is not recorded.
    """
    decided = decide(curves, [one for one in rounds if one.keep < one.settings])
    assert isinstance(decided, Choice)
    ends = at_step(curves, STEPS)
    best = rank(ends)[0]
    pairs = [ours - theirs for ours, theirs in zip(ends[decided.setting], ends[best])]
    sem = statistics.stdev(pairs) / math.sqrt(len(pairs))
    return Judged(decided.setting, best, statistics.mean(pairs), sem)


def plans_of(grid: str) -> dict[str, list[Round]]:
    """Return the rounds that are replayed on a grid, by name: first those of `pion try`."""
    own = {"pion try": plan_rounds(len(settings_of(GRIDS[grid])), STEPS, SEEDS_EACH)}
    return own | {name: [Round(*one) for one in rounds] for name, rounds in TRIED.items()}


def measured_steps() -> list[int]:
    """Return the steps at which settings are compared, and the last."""
    every = [one for grid in GRIDS for rounds in plans_of(grid).values() for one in rounds]
    return sorted({one.step for one in every if one.keep < one.settings} | {STEPS})


def at_step(curves: Curves, step: int) -> Losses:
    """Return the losses of all settings and seeds at a step."""
    seeds = len(next(iter(curves.values())))
    return losses_at(curves, sorted(curves), Round(step, len(curves), 1, seeds))


def share_taken(rounds: Sequence[Round]) -> float:
    """Return the share of the grid's steps that rounds take."""
    return steps_taken(rounds) / (rounds[0].settings * SEEDS_EACH * STEPS)


def replay(curves: Curves, rounds: Sequence[Round]) -> list[Judged]:
    """Return what the search chooses from each three seeds, none of them in two repetitions."""
    seeds = sorted(next(iter(curves.values())))
    whole = range(0, len(seeds) - SEEDS_EACH + 1, SEEDS_EACH)
    return [judge(of_seeds(curves, seeds[n : n + SEEDS_EACH]), rounds) for n in whole]


def of_seeds(curves: Curves, seeds: Sequence[int]) -> Curves:
    """Return the curves of some seeds."""
    return {setting: {n: by_seed[n] for n in seeds} for setting, by_seed in curves.items()}


def summary(grid: str, runs: Runs, nat: float) -> dict[str, Any]:
    """Return what rounds make of a grid, those of `pion try` first. All losses are in bits per
    byte, of which `nat` are a nat per token."""
    seeds = finished_seeds(runs, measured_steps())
    curves = curves_of(grid, runs, seeds)
    means = {
        step: {setting: statistics.mean(of) for setting, of in at_step(curves, step).items()}
        for step in measured_steps()
    }
    best = min(means[STEPS], key=means[STEPS].__getitem__)
    return {
        "seeds": len(seeds),
        "best": best,
        "above_the_best": {
            setting: {step: round(nat * (of[setting] - of[best]), 4) for step, of in means.items()}
            for setting in curves
        },
        "noise_of_a_difference": {step: _noise(curves, step, nat) for step in means},
        "plans": {
            name: _plan(curves, rounds, means[STEPS], nat)
            for name, rounds in plans_of(grid).items()
        },
    }


def _noise(curves: Curves, step: int, nat: float) -> float:
    """Return the standard deviation of a paired difference between two settings at a step."""
    losses = at_step(curves, step)
    one, other = list(losses)[:2]
    return round(nat * compare(losses, one, other, step).sem * math.sqrt(len(losses[one])), 4)


def _plan(
    curves: Curves, rounds: Sequence[Round], ends: dict[str, float], nat: float
) -> dict[str, Any]:
    """Return how good the choices of these rounds are."""
    seeds = sorted(next(iter(curves.values())))
    own = replay(curves, rounds)
    triples = [
        judge(of_seeds(curves, three), rounds)
        for three in itertools.combinations(seeds, SEEDS_EACH)
    ]
    regret = statistics.mean(ends[one.choice] for one in triples) - min(ends.values())
    return {
        "rounds": [[one.step, one.settings, one.keep, one.seeds] for one in rounds],
        "share_of_steps": round(share_taken(rounds), 3),
        "good": sum(one.good for one in own),
        "repetitions": [_repetition(one, nat) for one in own],
        "good_of_all_triples": round(statistics.mean(one.good for one in triples), 3),
        "regret": round(nat * regret, 4),
    }


def _repetition(judged: Judged, nat: float) -> dict[str, Any]:
    return {
        "choice": judged.choice,
        "best": judged.best,
        "difference": round(nat * judged.difference, 4),
        "sem": round(nat * judged.sem, 4),
        "good": judged.good,
    }


def record(seeds: int) -> dict[str, Any]:
    """Train what is missing, and return the report."""
    report: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"runs": {}}
    if "bits_per_byte_of_a_nat" not in report:
        report["bits_per_byte_of_a_nat"] = bits_per_byte_of_a_nat()
    todo = missing(report["runs"], seeds, measured_steps())
    if todo:
        report |= {"device": device_name(torch.device("cpu")), "dtype": DTYPE, "steps": STEPS}
    for key, losses in trained(todo, measured_steps()) if todo else ():
        report["runs"][key] = losses
        print(f"{key}: {losses}", flush=True)
        write(report)
    return report


def write(report: dict[str, Any]) -> None:
    """Keep the report."""
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=SEEDS)
    report = record(parser.parse_args().seeds)
    nat = report["bits_per_byte_of_a_nat"]
    report["summary"] = {grid: summary(grid, report["runs"], nat) for grid in GRIDS}
    write(report)
    print(json.dumps(report["summary"], indent=1))


if __name__ == "__main__":
    main()
