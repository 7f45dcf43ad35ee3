"""Which results of a ladder can be fitted, and what is said about the others."""

from __future__ import annotations

import dataclasses
import math

import pytest

from pion.errors import BadInput
from pipeline.ladder.points import Point, check_points
from tests.pipeline.ladder.made_up import LAWS, ladder

GRID = ladder(LAWS[0])


def test_three_sizes_by_three_lengths_are_enough() -> None:
    check_points(ladder(LAWS[0], sizes=(1, 2, 4), lengths=(1, 4, 8)))


def test_flops_count_both_passes() -> None:
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
def test_too_few_say_what_is_missing(points: list[Point], said: str) -> None:
    with pytest.raises(BadInput) as refused:
        check_points(points)
    assert said in str(refused.value)


def test_lengths_that_follow_sizes_are_refused() -> None:
    diagonal = [Point(f"run-{n}", n, 20 * n, 2.0) for n in (1, 2, 4, 8, 16, 32, 64)]
    with pytest.raises(BadInput, match="add a short run of the largest model"):
        check_points(diagonal)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.0, -1.5])
@pytest.mark.parametrize("field", ["bits_per_byte", "tokens", "macs_per_token"])
def test_impossible_results_name_the_run_and_the_value(field: str, value: float) -> None:
    points = [*GRID[:-1], dataclasses.replace(GRID[-1], run="l-8", **{field: value})]
    with pytest.raises(BadInput, match=f"run l-8: {field} is {value}"):
        check_points(points)


@pytest.mark.parametrize("value", [math.nan, -0.1])
def test_an_impossible_error_is_refused(value: float) -> None:
    points = [*GRID[:-1], dataclasses.replace(GRID[-1], bits_per_byte_sem=value)]
    with pytest.raises(BadInput, match="bits_per_byte_sem is"):
        check_points(points)


def test_a_run_counts_once() -> None:
    with pytest.raises(BadInput, match="is in the ladder twice"):
        check_points([*GRID, GRID[3]])
