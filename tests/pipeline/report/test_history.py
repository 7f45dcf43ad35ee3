"""Several runs are compared by the settings in which they differ."""

from __future__ import annotations

from pathlib import Path

from pipeline.job import Job
from pipeline.report.history import differing
from pipeline.state.status.recorded_job import recorded_job
from pipeline.state.stores import FileStore
from tests.support.rented_run import RentedRun
from tests.support.states import read


def job(folder: Path, name: str, lr: float) -> Job | None:
    run = RentedRun(FileStore(folder), name, lr=lr)
    run.rent()
    return recorded_job(run.state, read(run.state))


def test_only_what_differs_is_shown_and_no_names(tmp_path: Path) -> None:
    slow, fast = job(tmp_path, "slow", 1e-4), job(tmp_path, "fast", 2e-4)
    assert differing([slow, fast]) == {
        "pretrain.lr": [1e-4, 2e-4],
        "pretrain.min_lr": [1e-5, 2e-5],
    }


def test_a_run_whose_job_is_not_known_does_not_count(tmp_path: Path) -> None:
    one = job(tmp_path, "one", 1e-4)
    assert differing([one, None]) is None
    assert differing([one, None, one]) == {}
