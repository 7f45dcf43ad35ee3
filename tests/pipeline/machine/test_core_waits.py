"""How long this process waits for cores, as Linux counts it."""

import time

import pytest

from pipeline.machine.core_waits import LEAST_NS, MOST_SLOW, core_times, slowness, waited_share


@pytest.mark.skipif(not core_times(), reason="this kernel does not count waits")
def test_the_times_of_this_process_grow_while_it_computes():
    before, began = core_times(), time.process_time()
    while time.process_time() - began < 2 * LEAST_NS / 1e9:
        pass
    share = waited_share(before, core_times())
    assert 0 <= share < 1


@pytest.mark.parametrize(
    ("before", "now", "share"),
    [
        ({1: (0, 0)}, {1: (3 * LEAST_NS, LEAST_NS)}, 0.25),
        ({1: (LEAST_NS, 9 * LEAST_NS)}, {1: (2 * LEAST_NS, 9 * LEAST_NS)}, 0.0),
        # One thread has ended, another one has begun.
        ({1: (9, 9)}, {2: (LEAST_NS, LEAST_NS)}, 0.5),
        ({1: (0, 0)}, {1: (LEAST_NS // 2, 0)}, None),
        ({}, {}, None),
    ],
)
def test_the_share_is_of_the_time_since_the_look_before(before, now, share):
    assert waited_share(before, now) == share


@pytest.mark.parametrize(
    ("now", "times"),
    [
        ({}, 1.0),
        ({1: (LEAST_NS // 2, 0)}, 1.0),
        ({1: (LEAST_NS, 0)}, 1.0),
        ({1: (LEAST_NS, LEAST_NS), 2: (LEAST_NS, 5 * LEAST_NS)}, 4.0),
        ({1: (0, LEAST_NS)}, MOST_SLOW),
    ],
)
def test_a_process_is_as_slow_as_it_waits_for_cores(now, times):
    assert slowness(now) == times


def test_a_kernel_that_does_not_count_gives_no_times(tmp_path):
    (tmp_path / "17").mkdir()
    assert core_times(tmp_path) == {}
    assert core_times(tmp_path / "none") == {}
