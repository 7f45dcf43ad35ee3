"""The owners before and after a hop, and the run's HEAD about them."""

from __future__ import annotations

from pipeline.state.head import Head
from pipeline.state.run_state import RunState
from tests.support.states import someone

OLD = someone(host="pod-old", launch_id="launch-old")
NEW = someone(host="pod-new", launch_id="launch-new")


def head_of(run: RunState) -> Head:
    head = run.read()
    assert head is not None
    return head
