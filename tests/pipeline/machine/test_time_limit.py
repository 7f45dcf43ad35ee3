"""Work that may take forever is waited for longer where the machine is slow."""

from __future__ import annotations

import threading

import pytest

from pipeline.machine import time_limit
from pipeline.machine.time_limit import within


def test_work_on_a_busy_machine_has_more_time(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = threading.Event()

    def slowness() -> float:
        asked.set()
        return 1e6

    monkeypatch.setattr(time_limit, "slowness", slowness)
    assert within(1e-3, lambda: asked.wait(60))


def test_work_that_never_ends_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    forever = threading.Event()
    with pytest.raises(TimeoutError):
        within(1e-3, forever.wait)
    forever.set()
