"""A fit of a ladder: what it predicts, how sure it is, and what it refuses."""

import copy
import dataclasses
import json
import math

import numpy as np
import pytest

from pion.errors import BadInput
from pipeline.ladder.law import Law
from pipeline.ladder.prediction import MARGIN, Fit, fit
from pipeline.state.record_json import build
from tests.pipeline.ladder.drawn_laws import share_held
from tests.pipeline.ladder.made_up import LAWS, LENGTHS, NOISE, SIZES, ladder

# By how much held-out runs are larger and longer than the largest run of the ladder: 4 to 10 times
# its FLOPs.
BEYOND = ((1, 4), (2, 2), (2, 5), (4, 1), (3, 3))


@pytest.fixture(scope="module")
def fitted():
    """A fit of a ladder with noise."""
    return fit(ladder(LAWS[1], NOISE))


@pytest.mark.soak
def test_intervals_hold_nine_of_ten_runs_of_12_to_100_times_the_flops():
    assert share_held(400) == pytest.approx(0.9, abs=0.03)


def test_of_a_law_that_is_nearly_linear_the_interval_is_the_exact_one_and_its_margin():
    law, noise, (macs, tokens) = LAWS[1], 1e-4, (4 * SIZES[-1], 4 * LENGTHS[-1])
    points = ladder(law, noise, seed=1)
    given = np.array([law.E, law.A, law.alpha, law.B, law.beta])

    def slopes(n, d):
        steps = np.diag(1e-6 * given)
        pairs = [(Law(*(given + h)), Law(*(given - h)), h.sum()) for h in steps]
        return [(one.loss(n, d) - other.loss(n, d)) / (2 * h) for one, other, h in pairs]

    design = np.array([slopes(p.macs_per_token, p.tokens) for p in points])
    apart = np.array([p.bits_per_byte - law.loss(p.macs_per_token, p.tokens) for p in points])
    change, squares, *_ = np.linalg.lstsq(design, apart, rcond=None)
    of_run = np.array(slopes(macs, tokens))
    leverage = float(of_run @ np.linalg.solve(design.T @ design, of_run))
    student = 1.7959  # 90 % with 11 degrees of freedom lie between ± this
    half = MARGIN * student * math.sqrt(float(squares[0]) / 11 * (1 + leverage))
    middle = law.loss(macs, tokens) + float(of_run @ change)
    said = fit(points).predict(macs, tokens)
    assert (said.low - middle, said.high - middle) == pytest.approx((-half, half), rel=0.02)


def test_a_ladder_without_noise_is_predicted_to_a_thousandth():
    found = fit(ladder(LAWS[0]))
    for larger, longer in BEYOND:
        macs, tokens = SIZES[-1] * larger, LENGTHS[-1] * longer
        said = found.predict(macs, tokens)
        assert said.bits_per_byte == pytest.approx(LAWS[0].loss(macs, tokens), rel=1e-3)
        assert said.low <= said.bits_per_byte <= said.high


def test_seven_runs_are_enough_and_are_less_sure(fitted):
    cross = [p for p in fitted.points if p.tokens == LENGTHS[1] or p.macs_per_token == SIZES[1]]
    few = fit(cross).predict(2 * SIZES[-1], 2 * LENGTHS[-1])
    many = fitted.predict(2 * SIZES[-1], 2 * LENGTHS[-1])
    assert len(cross) == 7
    assert few.high - few.low > many.high - many.low


def test_the_order_of_runs_changes_nothing(fitted):
    shuffled = list(fitted.points)
    np.random.default_rng(3).shuffle(shuffled)  # type: ignore[arg-type]
    assert fit(shuffled) == fitted


def test_beyond_the_trusted_flops_it_says_how_far_it_goes(fitted):
    largest = 6 * SIZES[-1] * LENGTHS[-1]
    assert fitted.trusted_flops == pytest.approx(100 * largest)
    fitted.predict(10 * SIZES[-1], 10 * LENGTHS[-1])
    with pytest.raises(BadInput) as refused:
        fitted.predict(20 * SIZES[-1], 10 * LENGTHS[-1])
    assert str(refused.value) == (
        "4.8e+16 FLOPs are 200 times those of the ladder's largest run. A ladder is trusted up to "
        "100 times, which is 2.4e+16 FLOPs. Ask for less, or add larger runs to the ladder."
    )


def test_too_few_points_are_refused():
    with pytest.raises(BadInput, match="lacks 1 more run, 1 more size"):
        fit(ladder(LAWS[0], sizes=(1, 2), lengths=(1, 2, 4)))


# ---------------------------------------------------------------- as JSON


def through_json(fitted):
    record = json.loads(json.dumps(dataclasses.asdict(fitted), allow_nan=False))
    assert isinstance(record, dict)
    return record


def test_a_record_gives_the_same_fit(fitted):
    again = build(Fit, through_json(fitted), "a.json")
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
        (("points", 2, "bits_per_byte"), math.nan, "points.2.bits_per_byte"),
        (("points", 2, "tokens"), 1.5, "points.2.tokens should be a valid integer"),
        (("points", 2, "tokens"), 2**70, "points.2.tokens"),
        (("points", 2, "run"), 5, "points.2.run should be a valid string"),
        (("law",), [1, 2], "law"),
    ],
)
def test_what_no_fit_has_is_refused_with_its_place(fitted, path, value, said):
    record = copy.deepcopy(through_json(fitted))
    here = record
    for key in path[:-1]:
        here = here[key]
    here[path[-1]] = value
    with pytest.raises(BadInput) as refused:
        build(Fit, record, "runs/_ladders/a.json")
    assert "runs/_ladders/a.json" in str(refused.value)
    assert said in str(refused.value)


def test_a_record_without_a_field_and_one_of_a_newer_pion_are_refused(fitted):
    record = through_json(fitted)
    with pytest.raises(BadInput, match="law is missing"):
        build(Fit, {key: value for key, value in record.items() if key != "law"}, "a.json")
    with pytest.raises(BadInput, match="A newer pion wrote the file"):
        build(Fit, {**record, "shape": "sum"}, "a.json")


def test_a_record_with_too_few_points_is_refused(fitted):
    record = through_json(fitted)
    record["points"] = record["points"][:3]
    with pytest.raises(BadInput, match="lacks 4 more runs"):
        build(Fit, record, "a.json")


def test_a_point_may_have_an_error():
    points = [dataclasses.replace(p, bits_per_byte_sem=0.01) for p in ladder(LAWS[0])]
    assert build(Fit, through_json(fit(points)), "a.json").points[0].bits_per_byte_sem == 0.01
