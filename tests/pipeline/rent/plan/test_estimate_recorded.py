"""The recorded traces that many tests read are equal to new ones."""

from __future__ import annotations

import pytest

from pion.train.memory_trace import remembered
from tests.support.recorded_traces import (
    RecordedTrace,
    key_of,
    recorded,
    recorded_trace,
    traced_again,
    traced_of,
)


def smallest() -> str:
    """Return the key of the smallest compiled model."""
    assert recorded(), "record them with this torch (tests/support/recorded_traces.py)"
    keys = (key for key in recorded() if traced_of(key).compiled and traced_of(key).bf16)
    return min(keys, key=lambda key: (traced_of(key).config.d_model, key))


def test_the_smallest_model_needs_what_is_recorded() -> None:
    assert traced_again(smallest()) == recorded()[smallest()]


@pytest.mark.soak
def test_all_models_need_what_is_recorded() -> None:
    outdated = [key for key, found in recorded().items() if traced_again(key) != found]
    assert outdated == [], "record them again (tests/support/recorded_traces.py)"


def test_the_tests_of_this_folder_read_the_record() -> None:
    assert remembered._trace is recorded_trace
    assert key_of(traced_of(smallest())) == smallest()


def test_what_is_not_recorded_is_traced(monkeypatch: pytest.MonkeyPatch) -> None:
    what = traced_of(smallest())
    monkeypatch.setattr("tests.support.recorded_traces.recorded", dict)
    traced: list[object] = []

    class Step:
        def __init__(self, what: object) -> None:
            traced.append(what)

        def peaks(self, rows: int, **_: object) -> int:
            return rows

    monkeypatch.setattr("tests.support.recorded_traces.StepTrace", Step)
    assert RecordedTrace(what).peaks(7, recompute=False) == 7
    assert traced == [what]
