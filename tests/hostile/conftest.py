import pytest

from tests.hostile.hostile_run import make_hostile_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The run of `make_hostile_run`, which the tests of a file share."""
    return make_hostile_run(tmp_path_factory.mktemp("hostile") / "runs")
