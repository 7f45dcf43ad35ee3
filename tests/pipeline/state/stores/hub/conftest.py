"""A Hub on loopback with one repository, and stores in it."""

import hashlib

import pytest

from pipeline.state.stores.hub.store import HubStore
from tests.support.hub_server import hub_server

REPO = "user/runs"
HOUR = 3600.0
MIB = 1 << 20


@pytest.fixture
def hub(tmp_path, monkeypatch, time):
    with hub_server() as server:
        server.use(monkeypatch, tmp_path / "hf")
        server.now = lambda: time.time
        server.add_repo(REPO, files={".gitattributes": b"*.safetensors filter=lfs\n"})
        yield server


@pytest.fixture
def another(hub, time):
    """Return a function that opens the same repository again, as another process would."""
    return lambda: HubStore(REPO, sleep=time.sleep)


@pytest.fixture
def store(another):
    return another()


def large(name, size=MIB):
    """Return bytes that are unique to this name."""
    return hashlib.shake_128(name.encode()).digest(size)


def commits(hub):
    return len(hub.commits(REPO))
