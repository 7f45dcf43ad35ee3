"""Every number of the rows is a curve. A thinned one is short, and keeps every peak and dip."""

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.report.curves import MOST_NAMES, MOST_POINTS, curves_of, names_of, thin, times_of

values = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=300)


@given(values, st.integers(8, 60))
@settings(max_examples=60, deadline=None)
def test_a_thinned_curve_has_few_points_and_the_same_extremes_and_ends(values, most):
    points = [(3 * step, value, 0.0) for step, value in enumerate(values)]
    thinned = thin(points, most)
    assert len(thinned) <= most
    assert set(thinned) <= set(points)
    assert thinned == sorted(thinned)
    assert (thinned[0], thinned[-1]) == (points[0], points[-1])
    for extreme in (min, max):
        assert extreme(value for _, value, _ in thinned) == extreme(values)


def test_one_spike_and_one_dip_in_a_long_curve_stay():
    points = [(step, 1.0, 0.0) for step in range(2 * MOST_POINTS)]
    points[1234], points[2345] = (1234, 9.0, 0.0), (2345, 0.1, 0.0)
    assert {points[1234], points[2345]} <= set(thin(points))


def test_a_short_curve_stays_as_it_is():
    points = [(step, 1.0, 0.0) for step in range(MOST_POINTS)]
    assert thin(points) == points


def test_one_more_point_leaves_what_a_page_already_has():
    points = [(step, float(step * 7919 % 101), 0.0) for step in range(22_500)]
    before, now = thin(points), thin([*points, (22_500, 0.5, 0.0)])
    assert MOST_POINTS / 2 < len(now) <= MOST_POINTS
    assert now[: len(before) - 3] == before[: len(before) - 3]


def row(step, epoch=1, at=None, **numbers):
    return {"step": step, "epoch": epoch, "at": float(step) if at is None else at, **numbers}


def test_every_number_is_a_curve_and_of_layers_there_are_three():
    rows = [
        row(1, loss=None, expert_load=[1.0, 3.0], rows=[0, 8], held_out_loss_sem=0.1, good=True),
        row(2, loss=2.5, expert_load=[1.5, 2.0], new_metric=7, sample={"text": "x"}),
    ]
    curves = curves_of(rows)
    assert curves == {
        "expert_load": [(1, 2.0, 1.0), (2, 1.75, 2.0)],
        "expert_load.lowest": [(1, 1.0, 1.0), (2, 1.5, 2.0)],
        "expert_load.highest": [(1, 3.0, 1.0), (2, 2.0, 2.0)],
        "loss": [(2, 2.5, 2.0)],
        "new_metric": [(2, 7.0, 2.0)],
    }
    assert names_of(rows) == list(curves)


def test_the_losses_on_each_source_are_a_curve_each_next_to_their_mean():
    curves = curves_of(
        [row(1, held_out={"web": 2.0, "my-code": 1.0}), row(2, held_out={"web": 1.5})]
    )
    assert curves == {
        "held_out": [(1, 1.5, 1.0), (2, 1.5, 2.0)],
        "held_out.web": [(1, 2.0, 1.0), (2, 1.5, 2.0)],
        "held_out.my-code": [(1, 1.0, 1.0)],
    }


def test_names_that_others_wrote_are_few_and_short():
    odd = {"<img>": 1, "a b": 1, "x" * 41: 1, "": 1, "nan": float("nan"), "größe": 1}
    many = {f"metric_{n}": n for n in range(3 * MOST_NAMES)}
    assert names_of([row(1, **odd)]) == []
    assert len(names_of([row(1, **many), row(2, **many)])) == MOST_NAMES


def test_a_part_of_a_curve_has_the_point_before_and_the_point_after_it():
    rows = [row(step, loss=1.0) for step in range(0, 100, 10)]

    def steps(first, last):
        found = curves_of(rows, ["loss"], range(first, last + 1))
        return [step for step, _, _ in found["loss"]]

    assert steps(20, 40) == [10, 20, 30, 40, 50]
    assert steps(41, 49) == [40, 50]
    assert steps(0, 0) == [0, 10]
    assert steps(200, 300) == [90]


def test_a_part_of_a_long_curve_has_points_that_the_whole_one_leaves_out():
    rows = [row(step, loss=float(step * 7919 % 101)) for step in range(5 * MOST_POINTS)]
    whole, part = (
        {step for step, _, _ in curves_of(rows, ["loss"], steps)["loss"]}
        for steps in (None, range(1000, 2000))
    )
    assert part >= {*range(1000, 2000)}
    assert len(whole & part) < len(part) / 2


def test_steps_that_were_reported_together_share_the_time_since_the_report_before():
    rows = [row(1, at=100.0), row(2, at=100.0)]
    rows += [row(step, at=200.0) for step in (3, 4, 5, 6)]
    rows += [row(step, epoch=2, at=900.0) for step in (7, 8)]
    assert times_of(rows) == [100.0, 100.0, 125.0, 150.0, 175.0, 200.0, 900.0, 900.0]
