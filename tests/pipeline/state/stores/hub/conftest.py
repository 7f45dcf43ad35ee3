"""A Hub on loopback with one repository, and stores in it."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline.state.stores.hub.store import HubStore
from tests.support.clock import FakeClock
from tests.support.hub_server import HubServer, hub_server

REPO = "user/runs"
HOUR = 3600.0
MIB = 1 << 20


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, time: FakeClock) -> Iterator[HubServer]:
    with hub_server() as server:
        server.use(monkeypatch, tmp_path / "hf")
        server.now = lambda: time.time
        server.add_repo(REPO, files={".gitattributes": b"*.safetensors filter=lfs\n"})
        yield server


Open = Callable[[], HubStore]


@pytest.fixture
def another(hub: HubServer, time: FakeClock) -> Open:
    """Return a function that opens the same repository again, as another process would."""
    return lambda: HubStore(REPO, sleep=time.sleep)


@pytest.fixture
def store(another: Open) -> HubStore:
    return another()


def large(name: str, size: int = MIB) -> bytes:
    """Return bytes that are unique to this name."""
    return hashlib.shake_128(name.encode()).digest(size)


def commits(hub: HubServer) -> int:
    return len(hub.commits(REPO))
