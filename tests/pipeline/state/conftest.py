"""A run in a temporary folder, with a clock that only moves on command."""

from pathlib import Path

import pytest

from pipeline.state.claim import Claim, claim_run
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore
from tests.support.clock import FakeClock
from tests.support.states import someone


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "runs")


@pytest.fixture
def run(store: FileStore, time: FakeClock) -> RunState:
    return RunState(store, "demo", time.clock())


@pytest.fixture
def claim(run: RunState) -> Claim:
    return claim_run(run, someone())
