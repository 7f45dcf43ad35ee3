"""`pion try` on the recorded curves of real trainings: the committed results are what its own code
decides, and its choices are good."""

from __future__ import annotations

import json

import pytest

from benchmarks import halving
from benchmarks.recorded_curves import GRIDS, curves_of, finished_seeds
from pipeline.ladder.halving import SHARE
from pipeline.ladder.vary import settings_of

REPORT = json.loads(halving.RESULTS.read_text())


@pytest.mark.parametrize("grid", GRIDS)
def test_nine_of_ten_choices_are_good_with_two_fifths_of_the_steps(grid: str) -> None:
    seeds = finished_seeds(REPORT["runs"], halving.measured_steps())
    rounds = halving.plans_of(grid)["pion try"]
    found = halving.replay(curves_of(grid, REPORT["runs"], seeds), rounds)
    assert len(found) == halving.SEEDS // halving.SEEDS_EACH == 10
    assert sum(judged.good for judged in found) >= 9
    assert halving.share_taken(rounds) <= SHARE
    kept = REPORT["summary"][grid]["plans"]["pion try"]
    assert [judged.choice for judged in found] == [one["choice"] for one in kept["repetitions"]]
    assert kept["share_of_steps"] == round(halving.share_taken(rounds), 3)


def test_the_best_rate_is_not_at_the_edge_of_its_grid() -> None:
    settings = settings_of(GRIDS["muon_lr"])
    best = REPORT["summary"]["muon_lr"]["best"]
    assert best not in (settings[0].name, settings[-1].name)


def test_a_choice_is_good_if_it_is_the_best_or_within_two_errors_of_it() -> None:
    near = halving.Judged("a", "b", difference=0.019, sem=0.01)
    far = halving.Judged("a", "b", difference=0.021, sem=0.01)
    same = halving.Judged("a", "a", difference=0.0, sem=0.0)
    assert (near.good, far.good, same.good) == (True, False, True)
