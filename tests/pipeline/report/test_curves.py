"""A thinned curve is short, and keeps every peak and dip."""

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.report.curves import MOST_POINTS, thin

values = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300)


@given(values, st.integers(8, 60))
@settings(max_examples=60, deadline=None)
def test_a_thinned_curve_has_few_points_and_the_same_extremes_and_ends(
    values: list[float], most: int
) -> None:
    points = [(3 * step, value) for step, value in enumerate(values)]
    thinned = thin(points, most)
    assert len(thinned) <= most
    assert set(thinned) <= set(points)
    assert thinned == sorted(thinned)
    assert (thinned[0], thinned[-1]) == (points[0], points[-1])
    for extreme in (min, max):
        assert extreme(value for _, value in thinned) == extreme(values)


def test_one_spike_and_one_dip_in_a_long_curve_stay() -> None:
    points = [(step, 1.0) for step in range(2 * MOST_POINTS)]
    points[1234], points[2345] = (1234, 9.0), (2345, 0.1)
    assert {points[1234], points[2345]} <= set(thin(points))


def test_a_short_curve_stays_as_it_is() -> None:
    points = [(step, 1.0) for step in range(MOST_POINTS)]
    assert thin(points) == points


def test_one_more_point_leaves_what_a_page_already_has() -> None:
    points = [(step, float(step * 7919 % 101)) for step in range(22_500)]
    before, now = thin(points), thin([*points, (22_500, 0.5)])
    assert len(now) <= MOST_POINTS
    assert now[: len(before) - 3] == before[: len(before) - 3]
