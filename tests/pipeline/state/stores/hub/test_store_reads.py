"""What is read from a Hub repository: large files in ranges, and lists."""

import hashlib

import httpx
import pytest

from pion.errors import BadInput
from pipeline.state.stores import Entry, StoreError
from pipeline.state.stores import base as stores_base
from pipeline.state.stores.hub.repo import _may_get_token
from tests.pipeline.state.stores.hub.conftest import MIB, REPO, large
from tests.support.hub_server import repo_calls

# ---------------------------------------------------------------- downloads and lists


@pytest.fixture
def model(hub):
    """A file of three ranges, on the Hub, that is served by another host."""
    hub.cdn = True
    content = large("a model", 20 * MIB)
    hub.add_repo(REPO, files={"demo/model.safetensors": content})
    return content


def test_a_large_file_comes_in_ranges_from_a_host_that_gets_no_token(hub, store, model, tmp_path):
    target = tmp_path / "model"
    sha256 = store.download("demo/model.safetensors", target)
    assert sha256 == hashlib.sha256(model).hexdigest()
    assert target.read_bytes() == model
    assert hub.count("GET /cdn/") == 3  # it answers 400 to a request that brings a token


def test_a_range_that_breaks_or_whose_address_expires_is_fetched_on_its_own(
    hub, store, model, tmp_path
):
    hub.truncate("GET /cdn/")
    hub.fail("GET /cdn/", status=403)
    hub.before("HEAD .*/resolve/", lambda: None)  # the first look
    squash = hub.repos["model", REPO].squash
    hub.before("HEAD .*/resolve/", lambda: squash("main", "squashed", 0.0))
    store.download("demo/model.safetensors", tmp_path / "model")
    assert (tmp_path / "model").read_bytes() == model
    assert hub.count("GET /cdn/") == 5


def test_a_file_replaced_during_its_download_is_not_mixed(hub, store, model, tmp_path):
    def replace():
        hub.add_repo(REPO, files={"demo/model.safetensors": large("another", 20 * MIB)})
        hub.repos["model", REPO].squash("main", "squashed", 0.0)

    hub.fail("GET /cdn/", status=403)
    hub.before("HEAD .*/resolve/", lambda: None)
    hub.before("HEAD .*/resolve/", replace)
    with pytest.raises(StoreError, match="the file was replaced during the download"):
        store.download("demo/model.safetensors", tmp_path / "model")
    assert list(tmp_path.glob("model")) == []


def test_a_small_file_replaced_during_its_download_comes_as_it_was(hub, store, tmp_path):
    hub.add_repo(REPO, files={"demo/state.json": b"old"})
    hub.before("GET .*/resolve/", lambda: hub.add_repo(REPO, files={"demo/state.json": b"new"}))
    store.download("demo/state.json", tmp_path / "state")
    assert (tmp_path / "state").read_bytes() == b"old"


def test_the_hash_of_a_download_is_of_what_arrived(hub, store, model, tmp_path):
    hub.corrupt("GET /cdn/")
    sha256 = store.download("demo/model.safetensors", tmp_path / "model")
    assert sha256 != hashlib.sha256(model).hexdigest()
    assert sha256 == hashlib.sha256((tmp_path / "model").read_bytes()).hexdigest()


def test_a_list_of_many_files_is_fetched_once_per_commit(hub, store):
    names = [f"demo/metrics/{number:04}.jsonl" for number in range(1100)]
    hub.add_repo(REPO, files=dict.fromkeys(names, b"{}"))
    assert [entry.key for entry in store.list("demo/metrics/")] == names
    assert len(store.list("demo/metrics/00")) == 100
    assert hub.count("GET .*/tree/") == 2  # of 1,000 entries each
    hub.add_repo(REPO, files={"demo/metrics/more.jsonl": b"{}"})
    assert len(store.list("demo/metrics/")) == 1101
    assert store.list("nothing/below/") == []


def test_a_list_survives_a_squash_of_the_history(hub, store):
    hub.add_repo(REPO, files={"demo/a": b"x"})
    squash = hub.repos["model", REPO].squash
    hub.before("GET .*/tree/", lambda: squash("main", "squashed", 0.0))
    assert store.list() == [Entry("demo/a", 1)]


def test_the_repositorys_own_files_are_no_keys(hub, store):
    assert ".gitattributes" in hub.files(REPO)
    assert store.list() == []


# ---------------------------------------------------------------- pages of a list of folders

RUNS = [f"run-{number}" for number in range(5)]
LIST = "GET .*/tree/"


@pytest.fixture
def pages(hub, monkeypatch):
    """A Hub with five runs and a loose file, which lists two names a page. Its client does not
    wait before it asks for a page again."""
    monkeypatch.setattr(repo_calls, "TREE_PAGE", 2)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    files = {f"{name}/{file}": b"{}" for name in RUNS for file in ("HEAD.json", "metrics/1/a")}
    hub.add_repo(REPO, files=files | {"README.md": b"#"})
    return hub


def test_a_list_of_runs_is_asked_for_page_by_page(pages, store):
    assert store.folders() == RUNS
    assert pages.count(LIST) == 4  # .gitattributes, README.md and the runs


@pytest.mark.parametrize(
    "fail",
    [
        lambda hub: hub.fail(LIST, status=503),
        lambda hub: hub.fail(LIST, status=429, retry_after="1"),
        lambda hub: hub.drop(LIST),
        lambda hub: hub.truncate(LIST),
        lambda hub: hub.answer_page(LIST, b"<html>log in</html>"),
        lambda hub: hub.answer_page(LIST, b'{"error": "later"}'),
        lambda hub: hub.before(LIST, lambda: hub.repos["model", REPO].squash("main", "new", 0.0)),
    ],
    ids=["503", "429", "dropped", "cut", "a proxy's page", "no list", "squashed meanwhile"],
)
def test_a_page_in_the_middle_that_fails_loses_no_run(pages, store, fail):
    pages.before(LIST, lambda: None)  # the first page
    fail(pages)
    assert store.folders() == RUNS
    assert not [fault for fault in pages.faults if fault.times]


def test_while_a_page_in_the_middle_fails_no_half_of_a_list_is_returned(pages, store):
    for _ in range(100):  # each time the first page is there, and the second is not
        pages.before(LIST, lambda: None)
        pages.drop(LIST)
    with pytest.raises(StoreError, match="the Hub sent no complete response") as raised:
        store.folders()
    assert raised.value.outage


def test_a_list_that_continues_on_another_host_brings_it_no_token(pages, store):
    pages.links_elsewhere = True  # it answers 400 to a request that brings a token
    assert store.folders() == RUNS
    assert [entry.key for entry in store.list("run-3/")] == ["run-3/HEAD.json", "run-3/metrics/1/a"]


@pytest.mark.parametrize(
    ("url", "may"),
    [
        ("http://127.0.0.1:80/api/models", True),  # HF_ENDPOINT
        ("http://127.0.0.1:81/api/models", False),
        ("https://127.0.0.1:80/api/models", False),
        ("https://huggingface.co/api/models", True),  # where the lists of a mirror continue
        ("https://datasets-server.huggingface.co/parquet", True),
        ("http://huggingface.co/api/models", False),  # everybody on the way could read it
        ("https://not-huggingface.co/api/models", False),
        ("https://huggingface.co.evil.org/api/models", False),
        ("https://huggingface.co@evil.org/api/models", False),
    ],
)
def test_the_token_is_for_the_hub_only(monkeypatch, url, may):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:80")
    assert _may_get_token(httpx.URL(url)) == may


def test_a_repository_with_too_many_other_names_is_refused_without_listing_all(
    pages, store, monkeypatch
):
    monkeypatch.setattr(stores_base, "MOST_NAMES", 3)
    with pytest.raises(BadInput, match=r"hf://user/runs has more than 3 .* in another repository"):
        store.folders()
    assert pages.count(LIST) == 2
