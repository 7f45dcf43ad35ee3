"""Ranks wait for the machine that downloads a checkpoint."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pipeline.state.checkpoints.restore import FoundCheckpoint
from pipeline.training.saved_here import saved_here
from pipeline.training.train_request import Group
from pipeline.training.watchdog import Watchdog
from tests.support.states import an_entry


def test_a_long_download_of_another_rank_is_no_hang() -> None:
    time, hangs = [0.0], list[str]()
    watchdog = Watchdog(hangs.append, now=lambda: time[0])

    class WaitsForTwoHours(Group):
        def of_all_ranks(self, value: Any) -> list[Any]:
            for _ in range(3600):
                time[0] += 2
                watchdog.check()
            return [value]

    context: Any = SimpleNamespace(group=WaitsForTwoHours(), watchdog=watchdog)
    saved: Any = object()
    assert saved_here(context, FoundCheckpoint(an_entry(1), Path("here"), []), saved) is saved
    assert hangs == []
