"""Several runs are compared by the settings in which they differ."""

from __future__ import annotations

from pathlib import Path

from pipeline.report.settings import Settings, differing, settings_of
from pipeline.state.stores import FileStore
from tests.support.rented_run import RentedRun
from tests.support.states import read


def settings(folder: Path, name: str, lr: float) -> Settings:
    run = RentedRun(FileStore(folder), name, lr=lr)
    run.rent()
    return settings_of(run.state, read(run.state))


def test_only_what_differs_is_shown_and_no_names(tmp_path: Path) -> None:
    slow, fast = settings(tmp_path, "slow", 1e-4), settings(tmp_path, "fast", 2e-4)
    assert slow.steps == {"pretrain": 600}
    assert differing([slow, fast]) == {
        "pretrain.lr": [1e-4, 2e-4],
        "pretrain.min_lr": [1e-5, 2e-5],
    }


def test_a_run_whose_job_is_not_known_does_not_count(tmp_path: Path) -> None:
    one = settings(tmp_path, "one", 1e-4)
    assert differing([one, Settings()]) is None
    assert differing([one, Settings(), one]) == {}
