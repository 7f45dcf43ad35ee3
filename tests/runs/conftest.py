"""What whole runs in the process of a test need: what their steps take, without tracing them."""

import pytest

from pion.train.memory_trace import remembered
from tests.support.recorded_traces import recorded_trace


@pytest.fixture(scope="module", autouse=True)
def _recorded_traces():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remembered, "_trace", recorded_trace)
        yield
