"""What Ray Train is told of the number of workers."""

from __future__ import annotations

from pipeline.workers.ray_fit import scaling_of


def test_a_number_of_workers_is_fixed() -> None:
    assert scaling_of(3) == {"num_workers": 3}


def test_the_fewest_and_the_most_are_ray_trains_elastic_policy() -> None:
    assert scaling_of([2, 16]) == {
        "num_workers": (2, 16),
        "elastic_resize_monitor_interval_s": 60.0,
    }
