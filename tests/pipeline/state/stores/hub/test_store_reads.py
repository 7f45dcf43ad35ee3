"""What is read from a Hub repository: large files in ranges, and lists."""

import hashlib
from pathlib import Path

import pytest

from pipeline.state.stores import Entry, StoreError
from pipeline.state.stores.hub.store import HubStore
from tests.pipeline.state.stores.hub.conftest import MIB, REPO, large
from tests.support.hub_server import (
    HubServer,
)

# ---------------------------------------------------------------- downloads and lists


@pytest.fixture
def model(hub: HubServer) -> bytes:
    """A file of three ranges, on the Hub, that is served by another host."""
    hub.cdn = True
    content = large("a model", 20 * MIB)
    hub.add_repo(REPO, files={"demo/model.safetensors": content})
    return content


def test_a_large_file_comes_in_ranges_from_a_host_that_gets_no_token(
    hub: HubServer, store: HubStore, model: bytes, tmp_path: Path
) -> None:
    target = tmp_path / "model"
    sha256 = store.download("demo/model.safetensors", target)
    assert sha256 == hashlib.sha256(model).hexdigest()
    assert target.read_bytes() == model
    assert hub.count("GET /cdn/") == 3  # it answers 400 to a request that brings a token


def test_a_range_that_breaks_or_whose_address_expires_is_fetched_on_its_own(
    hub: HubServer, store: HubStore, model: bytes, tmp_path: Path
) -> None:
    hub.truncate("GET /cdn/")
    hub.fail("GET /cdn/", status=403)
    hub.before("HEAD .*/resolve/", lambda: None)  # the first look
    squash = hub.repos["model", REPO].squash
    hub.before("HEAD .*/resolve/", lambda: squash("main", "squashed", 0.0))
    store.download("demo/model.safetensors", tmp_path / "model")
    assert (tmp_path / "model").read_bytes() == model
    assert hub.count("GET /cdn/") == 5


def test_a_file_replaced_during_its_download_is_not_mixed(
    hub: HubServer, store: HubStore, model: bytes, tmp_path: Path
) -> None:
    def replace() -> None:
        hub.add_repo(REPO, files={"demo/model.safetensors": large("another", 20 * MIB)})
        hub.repos["model", REPO].squash("main", "squashed", 0.0)

    hub.fail("GET /cdn/", status=403)
    hub.before("HEAD .*/resolve/", lambda: None)
    hub.before("HEAD .*/resolve/", replace)
    with pytest.raises(StoreError, match="the file was replaced during the download"):
        store.download("demo/model.safetensors", tmp_path / "model")
    assert list(tmp_path.glob("model")) == []


def test_a_small_file_replaced_during_its_download_comes_as_it_was(
    hub: HubServer, store: HubStore, tmp_path: Path
) -> None:
    hub.add_repo(REPO, files={"demo/state.json": b"old"})
    hub.before("GET .*/resolve/", lambda: hub.add_repo(REPO, files={"demo/state.json": b"new"}))
    store.download("demo/state.json", tmp_path / "state")
    assert (tmp_path / "state").read_bytes() == b"old"


def test_the_hash_of_a_download_is_of_what_arrived(
    hub: HubServer, store: HubStore, model: bytes, tmp_path: Path
) -> None:
    hub.corrupt("GET /cdn/")
    sha256 = store.download("demo/model.safetensors", tmp_path / "model")
    assert sha256 != hashlib.sha256(model).hexdigest()
    assert sha256 == hashlib.sha256((tmp_path / "model").read_bytes()).hexdigest()


def test_a_list_of_many_files_is_fetched_once_per_commit(hub: HubServer, store: HubStore) -> None:
    names = [f"demo/metrics/{number:04}.jsonl" for number in range(1100)]
    hub.add_repo(REPO, files=dict.fromkeys(names, b"{}"))
    assert [entry.key for entry in store.list("demo/metrics/")] == names
    assert len(store.list("demo/metrics/00")) == 100
    assert hub.count("GET .*/tree/") == 2  # of 1,000 entries each
    hub.add_repo(REPO, files={"demo/metrics/more.jsonl": b"{}"})
    assert len(store.list("demo/metrics/")) == 1101
    assert store.list("nothing/below/") == []


def test_a_list_survives_a_squash_of_the_history(hub: HubServer, store: HubStore) -> None:
    hub.add_repo(REPO, files={"demo/a": b"x"})
    squash = hub.repos["model", REPO].squash
    hub.before("GET .*/tree/", lambda: squash("main", "squashed", 0.0))
    assert store.list() == [Entry("demo/a", 1)]


def test_the_repositorys_own_files_are_no_keys(hub: HubServer, store: HubStore) -> None:
    assert ".gitattributes" in hub.files(REPO)
    assert store.list() == []
