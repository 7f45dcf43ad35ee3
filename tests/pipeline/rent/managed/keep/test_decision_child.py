"""On-demand machines are timed in a child process, with the same result."""

from __future__ import annotations

from pipeline.machine.child_process import in_child
from pipeline.rent.managed.keep.decision import _on_demand
from pipeline.rent.sky_yaml import read_sky_yaml
from pipeline.state.run_state import RunState
from tests.pipeline.rent.conftest import SkyHome
from tests.pipeline.rent.managed.keep.test_keeper_deadline import MIXED
from tests.support.clock import FakeClock
from tests.support.two_markets import launched_on_spot


def test_a_child_times_the_machines_as_this_process_does(
    sky_home: SkyHome, run: RunState, time: FakeClock
) -> None:
    job = launched_on_spot(read_sky_yaml(sky_home.yaml(MIXED)), time)
    values = run.store.url, run.name, run.read(), job
    here = _on_demand(*values)
    assert [machine.candidate.gpu for machine in here] == ["RTXA6000", "A40"]
    assert all(machine.work for machine in here)
    assert in_child(_on_demand, *values) == here
