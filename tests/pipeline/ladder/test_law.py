"""The law of losses: what it says, and that a fit finds it again."""

import pytest

from pion.errors import BadInput
from pipeline.ladder.law import Law, LogResults, Point, best_of_starts, check_points, predicted
from tests.pipeline.ladder.made_up import LAWS, ladder


def test_a_loss_is_the_sum_of_its_terms():
    law = Law(E=1.0, A=8.0, alpha=0.5, B=27.0, beta=1 / 3)
    assert law.loss(16, 27) == pytest.approx(1 + 2 + 9)


@pytest.mark.parametrize("law", LAWS)
def test_a_law_without_noise_is_found_again(law):
    at = LogResults.of(ladder(law))
    found = best_of_starts(at)
    assert predicted(found, at) == pytest.approx(at.losses, abs=2e-5)
    again = at.law(found)
    for macs, tokens in ((1e7, 2e7), (5e7, 1e8)):
        assert again.loss(macs, tokens) == pytest.approx(law.loss(macs, tokens), rel=2e-3)


def test_one_run_that_failed_hardly_moves_the_law():
    at = LogResults.of(ladder(LAWS[1]))
    at.losses[5] += 0.3
    again = at.law(best_of_starts(at))
    assert again.loss(1e7, 2e7) == pytest.approx(LAWS[1].loss(1e7, 2e7), rel=5e-3)


# ---------------------------------------------------------------- which results can be fitted


GRID = ladder(LAWS[0])


def test_three_sizes_by_three_lengths_are_enough():
    check_points(ladder(LAWS[0], sizes=(1, 2, 4), lengths=(1, 4, 8)))


def test_flops_count_both_passes():
    assert Point("a", 10, 100, 2.0).flops == 6_000


@pytest.mark.parametrize(
    ("points", "said"),
    [
        ([], "there are 0 runs of 0 sizes and 0 lengths"),
        ([], "lacks 7 more runs, 3 more sizes, 3 more lengths"),
        (GRID[:4], "there are 4 runs of 1 size and 4 lengths"),
        (GRID[:4], "lacks 3 more runs, 2 more sizes"),
        (ladder(LAWS[0], sizes=(1, 2, 4), lengths=(1, 4)), "lacks 1 more run, 1 more length"),
        (ladder(LAWS[0], sizes=(1, 2), lengths=(1, 2, 3, 4)), "lacks 1 more size."),
        (ladder(LAWS[0], lengths=(1, 4)), "lacks 1 more length."),
    ],
)
def test_too_few_say_what_is_missing(points, said):
    with pytest.raises(BadInput) as refused:
        check_points(points)
    assert said in str(refused.value)


def test_lengths_that_follow_sizes_are_refused():
    diagonal = [Point(f"run-{n}", n, 20 * n, 2.0) for n in (1, 2, 4, 8, 16, 32, 64)]
    with pytest.raises(BadInput, match="add a short run of the largest model"):
        check_points(diagonal)


def test_a_run_counts_once():
    with pytest.raises(BadInput, match="is in the ladder twice"):
        check_points([*GRID, GRID[3]])
