"""A run in a temporary folder, with a clock that only moves on command."""

import pytest

from pipeline.state.claim import claim_run
from pipeline.state.run_state import RunState
from pipeline.state.stores import FileStore
from tests.support.states import someone


@pytest.fixture
def store(tmp_path):
    return FileStore(tmp_path / "runs")


@pytest.fixture
def run(store, time):
    return RunState(store, "demo", time.clock())


@pytest.fixture
def claim(run):
    return claim_run(run, someone())
