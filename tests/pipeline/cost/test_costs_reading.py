"""What a run has cost is read from its store with few waits."""

from __future__ import annotations

from pathlib import Path

from pipeline.cost.costs import costs_of, read_log
from pipeline.report.reading import HistoryReader
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore
from tests.support.rented_run import RentedRun
from tests.support.side_by_side import SideBySide


def test_the_last_heartbeats_of_all_machines_are_read_side_by_side(tmp_path: Path) -> None:
    run = RentedRun(FileStore(tmp_path))
    for _ in range(4):
        run.rent()
        run.train(10)
    assert run.claim is not None
    seen = RunState(SideBySide(tmp_path, r"demo/owner/[123]\.json", 3), "demo", run.state.clock)
    log = read_log(seen)
    found = costs_of(seen, run.claim.head, run.time.time, log)
    assert found == costs_of(run.state, run.claim.head, run.time.time, log)
    assert len(found.machines) == 4
    history = HistoryReader(seen).read()
    assert history is not None
    assert history.costs == found
