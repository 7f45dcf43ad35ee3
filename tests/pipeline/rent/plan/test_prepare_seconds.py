"""The time to tokenize text on a machine with other cores than the one that was measured."""

from __future__ import annotations

import pytest

from pipeline.rent.plan.prepare_seconds import SERIAL, prepare_seconds
from pipeline.state.shared.speeds import PastPreparing

# The library's tokenizer, on two cores: docs/performance.md.
TWO_CORES = PastPreparing("run", 1e9, 4.6, 2)


def hours(cores: float | None, *, in_pieces: bool, measured: PastPreparing = TWO_CORES) -> float:
    """Return the hours for 100 GB of text."""
    return prepare_seconds(100_000, measured, cores, in_pieces=in_pieces) / 3600


@pytest.mark.parametrize("in_pieces", [True, False])
def test_as_many_cores_take_as_long_as_was_measured(in_pieces: bool) -> None:
    assert hours(2, in_pieces=in_pieces) == pytest.approx(100_000 / 4.6 / 3600)


def test_text_in_pieces_uses_all_cores_and_other_text_is_limited_by_one_thread() -> None:
    assert hours(16, in_pieces=True) == pytest.approx(0.79, abs=0.02)
    assert hours(128, in_pieces=True) < 0.2
    assert hours(128, in_pieces=False) > 100_000 * SERIAL / 3600


def test_fewer_cores_take_longer() -> None:
    assert hours(1, in_pieces=True) > 1.9 * hours(2, in_pieces=True)


@pytest.mark.parametrize("cores", [None, 0, 64])
def test_cores_that_are_not_known_change_nothing(cores: float | None) -> None:
    unknown = PastPreparing("run", 1e9, 4.6)
    for measured in (TWO_CORES, unknown) if not cores else (unknown,):
        found = hours(cores, in_pieces=True, measured=measured)
        assert found == pytest.approx(100_000 / 4.6 / 3600)


def test_a_measurement_faster_than_one_thread_can_be_is_not_extrapolated_below_zero() -> None:
    fast = PastPreparing("run", 1e9, 200.0, 128)
    for cores in (1, 8, 256):
        assert hours(cores, in_pieces=False, measured=fast) >= 100_000 / 200 / 3600
