import shutil

import pytest

from tests.hostile.hostile_run import make_hostile_run, path_of


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The run of `make_hostile_run`, which the tests of a file share."""
    return make_hostile_run(tmp_path_factory.mktemp("hostile") / "runs")


@pytest.fixture
def restored(run):
    """The run, whose files are as before when the test has ended."""
    folder = path_of(run, "HEAD.json").parent
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    yield run
    shutil.rmtree(folder)
    for path, data in before.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
