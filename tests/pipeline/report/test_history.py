"""Several runs are compared by the settings in which they differ, and a run knows its attempts."""

from typing import Any

from pipeline.cost.costs import Costs
from pipeline.report.history import RunHistory, differing
from pipeline.state.head import Head
from pipeline.state.status.recorded_job import recorded_job
from pipeline.state.stores import FileStore
from tests.support.rented_run import RentedRun
from tests.support.states import read


def job(folder, name, lr):
    run = RentedRun(FileStore(folder), name, lr=lr)
    run.rent()
    return recorded_job(run.state, read(run.state))


def test_only_what_differs_is_shown_and_no_names(tmp_path):
    slow, fast = job(tmp_path, "slow", 1e-4), job(tmp_path, "fast", 2e-4)
    assert differing([slow, fast]) == {"pretrain.lr": [1e-4, 2e-4], "pretrain.min_lr": [1e-5, 2e-5]}


def test_a_run_whose_job_is_not_known_does_not_count(tmp_path):
    one = job(tmp_path, "one", 1e-4)
    assert differing([one, None]) is None
    assert differing([one, None, one]) == {}


class Counted(dict[str, Any]):
    """A row that counts how often any row is asked for a value."""

    asked = 0

    def __getitem__(self, key):
        Counted.asked += 1
        return super().__getitem__(key)


def test_a_run_that_has_moved_often_looks_at_each_of_its_rows_once():
    attempts = 50
    rows = [Counted(step=step, epoch=1 + step // 10, at=float(step)) for step in range(500)]
    events = [
        {"event": "training", "stage": "pretrain", "epoch": 1 + number, "at": 10.0 * number}
        for number in range(attempts)
    ]
    history = RunHistory(None, "runs/demo", Head(), events, {"pretrain": rows}, Costs((), {}))
    Counted.asked = 0
    found = history.attempts()
    assert [row["to_step"] for row in found] == [10 * number + 9 for number in range(attempts)]
    assert [row["seconds"] for row in found] == [9.0] * attempts
    assert Counted.asked <= 2 * len(rows)
