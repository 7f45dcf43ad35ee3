import pytest

from tests.support.reference_world import World, make_world


@pytest.fixture(scope="package")
def rows(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("rows")).folder


@pytest.fixture
def world(rows, tmp_path):
    """Rows of pairs (10 to train on, in shards of 4, 4 and 2, and 4 held out), and a new store."""
    (tmp_path / "rows").symlink_to(rows / "rows")
    return World(tmp_path)
