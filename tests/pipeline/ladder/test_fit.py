"""A fit of a ladder: what it predicts, how sure it is, and what it refuses."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from pion.errors import BadInput
from pipeline.ladder.fit import Fit, fit
from pipeline.ladder.law import Law
from pipeline.ladder.points import Point
from tests.pipeline.ladder.made_up import LAWS, LENGTHS, NOISE, SIZES, ladder

# By how much held-out runs are larger and longer than the largest run of the ladder: 4 to 10 times
# its FLOPs.
BEYOND = ((1, 4), (2, 2), (2, 5), (4, 1), (3, 3))


@pytest.fixture(scope="module")
def fitted() -> Fit:
    """A fit of a ladder with noise."""
    return fit(ladder(LAWS[1], NOISE))


def held_out(law: Law, ladders: int, noise: float) -> Iterator[tuple[bool, float]]:
    """Yield whether an interval holds a run with 4 to 10 times the FLOPs, and how wide it is as a
    share, for each such run of each ladder."""
    for seed in range(ladders):
        found = fit(ladder(law, noise, seed))
        rng = np.random.default_rng([seed, 1])
        for larger, longer in BEYOND:
            macs, tokens = SIZES[-1] * larger, LENGTHS[-1] * longer
            result = law.loss(macs, tokens) + noise * float(rng.normal())
            said = found.predict(macs, tokens)
            yield said.low <= result <= said.high, (said.high - said.low) / said.bits_per_byte


def test_intervals_hold_about_nine_of_ten_runs_that_are_4_to_10_times_as_large() -> None:
    found = list(held_out(LAWS[2], 6, NOISE))
    assert 0.8 <= np.mean([held for held, _ in found]) <= 0.97
    assert np.mean([width for _, width in found]) <= 0.033


@pytest.mark.soak
@pytest.mark.parametrize(("law", "width"), zip(LAWS, (0.037, 0.032, 0.028)))
def test_intervals_hold_nine_of_ten_over_many_ladders(law: Law, width: float) -> None:
    found = list(held_out(law, 100, NOISE))
    assert 0.86 <= np.mean([held for held, _ in found]) <= 0.94
    assert np.mean([width for _, width in found]) <= width


@pytest.mark.soak
def test_intervals_also_hold_with_more_noise() -> None:
    found = list(held_out(LAWS[2], 100, 0.0113))
    assert 0.86 <= np.mean([held for held, _ in found]) <= 0.94


def test_a_ladder_without_noise_is_predicted_to_a_thousandth() -> None:
    found = fit(ladder(LAWS[0]))
    for larger, longer in BEYOND:
        macs, tokens = SIZES[-1] * larger, LENGTHS[-1] * longer
        said = found.predict(macs, tokens)
        assert said.bits_per_byte == pytest.approx(LAWS[0].loss(macs, tokens), rel=1e-3)
        assert said.low <= said.bits_per_byte <= said.high


def test_seven_runs_are_enough_and_are_less_sure(fitted: Fit) -> None:
    cross = [p for p in fitted.points if p.tokens == LENGTHS[1] or p.macs_per_token == SIZES[1]]
    few = fit(cross).predict(2 * SIZES[-1], 2 * LENGTHS[-1])
    many = fitted.predict(2 * SIZES[-1], 2 * LENGTHS[-1])
    assert len(cross) == 7
    assert few.high - few.low > many.high - many.low


def test_the_order_of_runs_changes_nothing(fitted: Fit) -> None:
    shuffled = list(fitted.points)
    np.random.default_rng(3).shuffle(shuffled)  # type: ignore[arg-type]
    assert fit(shuffled) == fitted


def test_another_seed_draws_other_resamples_of_the_same_law(fitted: Fit) -> None:
    other = fit(fitted.points, seed=1)
    assert other.law == fitted.law
    assert other.resamples != fitted.resamples


def test_the_best_split_spends_all_flops_and_no_other_split_is_better(fitted: Fit) -> None:
    flops = 10 * fitted.largest_flops
    macs, tokens = fitted.best_split(flops)
    assert 6 * macs * tokens == pytest.approx(flops, rel=1e-5)
    best = fitted.predict(macs, tokens).bits_per_byte
    for factor in (0.5, 0.8, 1.25, 2):
        assert fitted.predict(macs * factor, tokens / factor).bits_per_byte > best


def test_beyond_the_trusted_flops_it_says_how_far_it_goes(fitted: Fit) -> None:
    largest = 6 * SIZES[-1] * LENGTHS[-1]
    assert fitted.trusted_flops == pytest.approx(100 * largest)
    fitted.predict(10 * SIZES[-1], 10 * LENGTHS[-1])
    fitted.predict(*fitted.best_split(fitted.trusted_flops))
    with pytest.raises(BadInput) as refused:
        fitted.predict(20 * SIZES[-1], 10 * LENGTHS[-1])
    assert str(refused.value) == (
        "4.8e+16 FLOPs are 200 times those of the ladder's largest run. A ladder is trusted up to "
        "100 times, which is 2.4e+16 FLOPs. Ask for less, or add larger runs to the ladder."
    )
    with pytest.raises(BadInput, match="trusted up to 100 times"):
        fitted.best_split(2 * fitted.trusted_flops)


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf])
def test_impossible_questions_are_refused(fitted: Fit, value: float) -> None:
    for question in (
        lambda: fitted.predict(value, 1000),
        lambda: fitted.predict(1000, value),
        lambda: fitted.best_split(value),
    ):
        with pytest.raises(BadInput, match="should be a number above 0"):
            question()


def test_too_few_points_are_refused() -> None:
    with pytest.raises(BadInput, match="lacks 1 more run, 1 more size"):
        fit(ladder(LAWS[0], sizes=(1, 2), lengths=(1, 2, 4)))


# ---------------------------------------------------------------- as JSON


def through_json(fitted: Fit) -> dict[str, Any]:
    record = json.loads(json.dumps(fitted.record(), allow_nan=False))
    assert isinstance(record, dict)
    return record


def test_a_record_gives_the_same_fit(fitted: Fit) -> None:
    again = Fit.from_record(through_json(fitted))
    assert again == fitted
    assert again.predict(10**7, 10**7) == fitted.predict(10**7, 10**7)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("law", "alpha"), math.nan, "law.alpha"),
        (("law", "alpha"), -0.5, "law.alpha should be greater than 0"),
        (("law", "E"), 0, "law.E should be greater than 0"),
        (("law", "A"), "5", "law.A should be a valid number"),
        (("law", "B"), 1e300, "law.B should be less than"),
        (("noise",), math.inf, "noise"),
        (("noise",), -1.0, "noise should be greater than or equal to 0"),
        (("resamples",), [], "resamples"),
        (("resamples", 7, "law", "beta"), None, "resamples.7.law.beta"),
        (("points", 2, "bits_per_byte"), math.nan, "points.2.bits_per_byte"),
        (("points", 2, "tokens"), 1.5, "points.2.tokens should be a valid integer"),
        (("points", 2, "tokens"), 2**70, "points.2.tokens"),
        (("points", 2, "run"), 5, "points.2.run should be a valid string"),
        (("seed",), "0", "seed should be a valid integer"),
        (("law",), [1, 2], "law"),
    ],
)
def test_what_no_fit_has_is_refused_with_its_place(
    fitted: Fit, path: tuple[Any, ...], value: Any, said: str
) -> None:
    record = copy.deepcopy(through_json(fitted))
    here: Any = record
    for key in path[:-1]:
        here = here[key]
    here[path[-1]] = value
    with pytest.raises(BadInput) as refused:
        Fit.from_record(record, "runs/_ladders/a.json")
    assert "runs/_ladders/a.json" in str(refused.value)
    assert said in str(refused.value)


def test_a_record_without_a_field_and_one_of_a_newer_pion_are_refused(fitted: Fit) -> None:
    record = through_json(fitted)
    with pytest.raises(BadInput, match="law is missing"):
        Fit.from_record({key: value for key, value in record.items() if key != "law"})
    with pytest.raises(BadInput, match="A newer pion wrote the file"):
        Fit.from_record({**record, "shape": "sum"})


def test_a_record_with_too_few_points_is_refused(fitted: Fit) -> None:
    record = through_json(fitted)
    record["points"] = record["points"][:3]
    with pytest.raises(BadInput, match="lacks 4 more runs"):
        Fit.from_record(record)


def test_a_point_may_have_an_error() -> None:
    points = [
        Point(p.run, p.macs_per_token, p.tokens, p.bits_per_byte, 0.01) for p in ladder(LAWS[0])
    ]
    assert Fit.from_record(through_json(fit(points))).points[0].bits_per_byte_sem == 0.01
