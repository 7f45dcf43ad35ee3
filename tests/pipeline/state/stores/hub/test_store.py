"""The store in a Hub repository: one commit per swap, a commit budget, and a bounded repository.

The real huggingface_hub client talks to a Hub on loopback.
"""

import hashlib
import json
import os
import sys
import time as real_time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from pion.errors import BadInput
from pipeline.state.claim import claim_run
from pipeline.state.owner import Owner
from pipeline.state.run_state import RunState
from pipeline.state.stores import Conflict, Entry, Missing, StoreError
from pipeline.state.stores import base as stores_base
from pipeline.state.stores.hub import errors
from pipeline.state.stores.hub.repo import _may_get_token
from pipeline.state.stores.hub.store import COMMITS_KEPT, HubStore
from tests.support.clock import FakeClock
from tests.support.hub_server import (
    FINE_GRAINED_TOKEN,
    READ_TOKEN,
    WRITE_TOKEN,
    HubServer,
    hub_server,
    repo_calls,
)
from tests.support.waiting import run_to_end

REPO = "user/runs"
HOUR = 3600.0
MIB = 1 << 20
SAVES = 200


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


# ---------------------------------------------------------------- its name


def test_it_is_named_by_a_repository_and_opening_it_asks_nothing(hub: HubServer) -> None:
    before = len(hub.requests)
    assert HubStore.open("user/repo/").url == "hf://user/repo"
    assert HubStore.open("datasets/user/repo").url == "hf://datasets/user/repo"
    assert len(hub.requests) == before


@pytest.mark.parametrize("rest", ["", "user", "user/", "user/repo/run", "us er/repo", "user/..x"])
def test_another_form_is_refused_with_the_right_one(rest: str) -> None:
    with pytest.raises(BadInput, match="use hf://user/repo"):
        HubStore.open(rest)


# ---------------------------------------------------------------- one commit


def test_a_checkpoint_its_metrics_deletes_and_head_are_one_commit(
    hub: HubServer, store: HubStore, another: Open, tmp_path: Path
) -> None:
    store.write("demo/old.json", b"old")
    store.flush()
    before = commits(hub)

    model = tmp_path / "model"
    model.write_bytes(large("model"))
    store.write("demo/model.safetensors", model)
    store.write("demo/optimizer.safetensors", memoryview(b"small, and LFS all the same"))
    store.write("demo/metrics/1.jsonl", b"{}")
    store.delete("demo/old.json")
    store.delete("demo/never-there.json")
    assert commits(hub) == before
    assert [entry.key for entry in another().list("demo/")] == ["demo/old.json"]

    store.compare_and_swap("demo/HEAD.json", b"head", None)
    assert commits(hub) == before + 1
    assert hub.files(REPO) == {
        ".gitattributes": b"*.safetensors filter=lfs\n",
        "demo/HEAD.json": b"head",
        "demo/metrics/1.jsonl": b"{}",
        "demo/model.safetensors": large("model"),
        "demo/optimizer.safetensors": b"small, and LFS all the same",
    }
    store.flush()
    assert commits(hub) == before + 1
    assert store.staged() == []


def test_only_the_stores_own_reads_see_staged_changes(
    hub: HubServer, store: HubStore, another: Open, tmp_path: Path
) -> None:
    store.write("demo/kept", b"1")
    store.write("demo/gone", b"1")
    store.flush()
    store.write("demo/new", b"12")
    store.write("demo/kept", b"123")
    store.delete("demo/gone")

    assert store.list("demo/") == [Entry("demo/kept", 3), Entry("demo/new", 2)]
    assert store.read("demo/kept") == b"123"
    assert store.download("demo/new", tmp_path / "new") == hashlib.sha256(b"12").hexdigest()
    assert (tmp_path / "new").read_bytes() == b"12"
    with pytest.raises(Missing, match="demo/gone"):
        store.read("demo/gone")
    with pytest.raises(Missing, match="demo/gone"):
        store.download("demo/gone", tmp_path / "gone")

    other = another()
    assert other.list("demo/") == [Entry("demo/gone", 1), Entry("demo/kept", 1)]
    assert other.read("demo/kept") == b"1"


def test_reading_back_a_large_file_commits_it_first(
    hub: HubServer, store: HubStore, tmp_path: Path
) -> None:
    store.write("demo/model", large("model"))
    before = commits(hub)
    assert store.list() == [Entry("demo/model", MIB)]
    assert commits(hub) == before
    assert store.read("demo/model") == large("model")
    assert commits(hub) == before + 1
    store.download("demo/model", tmp_path / "model")
    assert (tmp_path / "model").read_bytes() == large("model")


def test_unchanged_content_makes_no_commit(hub: HubServer, store: HubStore) -> None:
    version = store.compare_and_swap("demo/HEAD.json", b"{}", None)
    store.write("demo/model", large("model"))
    store.flush()
    before = commits(hub)
    store.write("demo/model", large("model"))
    store.write("demo/HEAD.json", b"{}")
    store.delete("demo/never-there")
    store.flush()
    assert store.compare_and_swap("demo/HEAD.json", b"{}", version) == version
    assert commits(hub) == before


def test_a_swapped_key_that_waits_is_committed_before_it_is_compared(store: HubStore) -> None:
    store.write("demo/HEAD.json", b"first")
    version = store.read_versioned("demo/HEAD.json")[1]
    store.compare_and_swap("demo/HEAD.json", b"second", version)
    assert store.read("demo/HEAD.json") == b"second"


def test_a_file_that_gitignore_keeps_out_is_refused_rather_than_lost(
    hub: HubServer, store: HubStore
) -> None:
    hub.add_repo(REPO, files={".gitignore": b"checkpoints\n"})
    store.write("demo/checkpoints/state.json", b"{}")
    with pytest.raises(StoreError, match=r"state.json: the repository's .gitignore excludes this"):
        store.compare_and_swap("demo/HEAD.json", b"{}", None)
    with pytest.raises(StoreError, match=r"model: the repository's .gitignore excludes this"):
        store.write("demo/checkpoints/model", large("model"))
    assert "demo/HEAD.json" not in hub.files(REPO)


def test_a_missing_local_file_is_named(store: HubStore, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="demo/model: No such file") as raised:
        store.write("demo/model", tmp_path / "nothing")
    assert not raised.value.outage


# ---------------------------------------------------------------- comparing


def test_a_refused_swap_commits_nothing_and_keeps_staged_changes(
    hub: HubServer, store: HubStore, another: Open
) -> None:
    version = store.compare_and_swap("demo/HEAD.json", b"1", None)
    another().compare_and_swap("demo/HEAD.json", b"2", version)
    store.write("demo/model", large("model"))
    before = commits(hub)
    with pytest.raises(Conflict):
        store.compare_and_swap("demo/HEAD.json", b"3", version)
    assert commits(hub) == before
    assert [waiting["key"] for waiting in store.staged()] == ["demo/model"]

    version = store.read_versioned("demo/HEAD.json")[1]
    store.compare_and_swap("demo/HEAD.json", b"3", version)
    assert hub.files(REPO)["demo/model"] == large("model")


def test_a_commit_of_other_files_in_between_is_no_conflict(hub: HubServer, store: HubStore) -> None:
    store.write("demo/model", large("model"))
    hub.before("POST .*/commit/", lambda: hub.add_repo(REPO, files={"other/HEAD.json": b"x"}))
    store.compare_and_swap("demo/HEAD.json", b"1", None)
    assert {"other/HEAD.json", "demo/HEAD.json", "demo/model"} <= set(hub.files(REPO))
    assert hub.count("PUT /lfs/") == 1


@pytest.mark.parametrize("moment", ["preupload", "commit"])
@pytest.mark.parametrize("theirs", [b"theirs", b"mine"])
def test_a_swap_in_between_is_a_conflict_even_of_the_same_bytes(
    hub: HubServer, store: HubStore, theirs: bytes, moment: str
) -> None:
    files = {"demo/HEAD.json": theirs}
    hub.before(f"POST .*/{moment}/", lambda: hub.add_repo(REPO, files=files))
    with pytest.raises(Conflict):
        store.compare_and_swap("demo/HEAD.json", b"mine", None)
    assert hub.files(REPO)["demo/HEAD.json"] == theirs


def test_a_history_squashed_in_between_is_no_conflict(hub: HubServer, store: HubStore) -> None:
    version = store.compare_and_swap("demo/HEAD.json", b"1", None)
    squash = hub.repos["model", REPO].squash
    for request in ("POST .*/paths-info/", "POST .*/commit/"):
        hub.before(request, lambda: squash("main", "squashed", 0.0))
        version = store.compare_and_swap("demo/HEAD.json", request.encode(), version)
        assert hub.files(REPO)["demo/HEAD.json"] == request.encode()


def test_racing_commits_of_different_files_all_arrive(hub: HubServer, another: Open) -> None:
    def write(number: int) -> None:
        store = another()
        store.write(f"demo/{number}", b"x")
        store.flush()

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(write, range(6)))
    assert {f"demo/{number}" for number in range(6)} <= set(hub.files(REPO))


def test_a_swap_whose_acknowledgement_is_lost_is_a_success_and_made_once(
    hub: HubServer, store: HubStore
) -> None:
    store.write("demo/model", large("model"))
    before = commits(hub)
    hub.drop_after("POST .*/commit/")
    version = store.compare_and_swap("demo/HEAD.json", b"1", None)
    assert commits(hub) == before + 1
    assert store.read_versioned("demo/HEAD.json") == (b"1", version)
    assert store.staged() == []


def test_a_lost_swap_that_somebody_else_has_replaced_is_a_conflict(
    hub: HubServer, store: HubStore
) -> None:
    hub.drop_after("POST .*/commit/")
    hub.before("GET .*/refs", lambda: None)
    hub.before("GET .*/refs", lambda: hub.add_repo(REPO, files={"demo/HEAD.json": b"theirs"}))
    with pytest.raises(Conflict):
        store.compare_and_swap("demo/HEAD.json", b"mine", None)
    assert hub.files(REPO)["demo/HEAD.json"] == b"theirs"


def test_a_flush_with_deletes_whose_acknowledgement_is_lost_is_made_once(
    hub: HubServer, store: HubStore
) -> None:
    store.write("demo/old", b"x")
    store.flush()
    before = commits(hub)
    store.write("demo/model", large("model"))
    store.delete("demo/old")
    hub.drop_after("POST .*/commit/")
    store.flush()
    assert commits(hub) == before + 1
    assert store.list("demo/") == [Entry("demo/model", MIB)]


# ---------------------------------------------------------------- another process


def test_another_process_uploads_and_this_one_commits_without_sending_it_again(
    hub: HubServer, store: HubStore, tmp_path: Path
) -> None:
    upload = """
import json, pathlib, sys
from pipeline.state.stores import open_store
store = open_store("hf://user/runs")
store.write("demo/model.safetensors", pathlib.Path(sys.argv[1]))
store.write("demo/state.json", b"{}")
store.delete("demo/old")
print(json.dumps(store.staged()))
"""
    store.write("demo/old", b"x")
    store.flush()
    model = tmp_path / "model"
    model.write_bytes(large("model", 3 * MIB))
    environment = os.environ | hub.environment(tmp_path / "child")
    child = run_to_end([sys.executable, "-c", upload, str(model)], env=environment, check=True)
    model.unlink()
    before, sent = commits(hub), hub.count("/lfs/")

    store.adopt(json.loads(child.stdout))
    assert store.list("demo/") == [
        Entry("demo/model.safetensors", 3 * MIB),
        Entry("demo/state.json", 2),
    ]
    store.compare_and_swap("demo/HEAD.json", b"1", None)
    assert commits(hub) == before + 1
    assert hub.count("PUT /lfs/") == 1
    assert hub.count("/lfs/") == sent  # it does not even ask where to
    assert hub.files(REPO)["demo/model.safetensors"] == large("model", 3 * MIB)
    assert "demo/old" not in hub.files(REPO)


# ---------------------------------------------------------------- a bounded repository


def test_only_old_objects_of_this_run_that_no_path_uses_are_deleted(
    hub: HubServer, store: HubStore, time: FakeClock
) -> None:
    shared, gone, anothers = large("shared"), large("gone"), large("of another run")
    for key, content in (("a", shared), ("b", shared), ("c", gone)):
        store.write(f"demo/{key}.safetensors", content)
    store.write("other/d.safetensors", anothers)
    store.flush()
    for key in ("demo/a", "demo/c", "other/d"):
        store.delete(f"{key}.safetensors")
    store.flush()

    assert store.sweep_unfinished("demo/", time.time - HOUR) == 0  # they are too young
    time.sleep(2 * HOUR)
    assert store.sweep_unfinished("demo/", time.time - HOUR) == 1
    assert set(hub.blobs.values()) == {shared, anothers}
    assert store.read("demo/b.safetensors") == shared


def test_an_object_that_a_tag_uses_or_that_waits_for_its_commit_is_kept(
    hub: HubServer, store: HubStore, time: FakeClock
) -> None:
    tagged, again = large("tagged"), large("again")
    store.write("demo/a.safetensors", tagged)
    store.flush()
    HfApi().create_tag(REPO, tag="published")
    store.write("demo/b.safetensors", again)
    store.flush()
    store.delete("demo/a.safetensors")
    store.delete("demo/b.safetensors")
    store.flush()
    time.sleep(2 * HOUR)
    store.write("demo/c.safetensors", again)
    assert hub.count("PUT /lfs/") == 2  # the Hub has these bytes still, so they were not sent
    assert store.sweep_unfinished("demo/", time.time - HOUR) == 0
    store.flush()
    assert store.read("demo/c.safetensors") == again


@pytest.mark.slow
@pytest.mark.parametrize(
    ("saves", "commits_kept"), [(40, 10), pytest.param(SAVES, COMMITS_KEPT, marks=pytest.mark.soak)]
)
def test_days_of_training_leave_a_bounded_repository(
    hub: HubServer,
    store: HubStore,
    time: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
    saves: int,
    commits_kept: int,
) -> None:
    monkeypatch.setattr("pipeline.state.stores.hub.store.COMMITS_KEPT", commits_kept)
    size, kept = 64 << 10, 2
    version: str | None = None
    largest = 0
    for step in range(saves):
        for name in ("model.safetensors", "optimizer.safetensors"):
            store.write(f"demo/checkpoints/{step}/{name}", large(f"{step} {name}", size))
        if step >= kept:
            for entry in store.list(f"demo/checkpoints/{step - kept}/"):
                store.delete(entry.key)
        version = store.compare_and_swap("demo/HEAD.json", b"%d" % step, version)
        time.sleep(0.5 * HOUR)
        if step % 20 == 0:
            store.sweep_unfinished("demo/", time.time - HOUR)
        largest = max(largest, hub.lfs_bytes(REPO))
        assert commits(hub) <= commits_kept + 21
    store.sweep_unfinished("demo/", time.time - HOUR)
    assert hub.lfs_bytes(REPO) <= (kept + 1) * 2 * size
    assert largest <= (20 + 2 * kept) * 2 * size
    assert store.read(f"demo/checkpoints/{saves - 1}/model.safetensors")
    assert len(store.list("demo/checkpoints/")) == kept * 2


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


# ---------------------------------------------------------------- pages of a list of folders

RUNS = [f"run-{number}" for number in range(5)]
LIST = "GET .*/tree/"


@pytest.fixture
def pages(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """A Hub with five runs and a loose file, which lists two names a page. Its client does not
    wait before it asks for a page again."""
    monkeypatch.setattr(repo_calls, "TREE_PAGE", 2)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    files = {f"{name}/{file}": b"{}" for name in RUNS for file in ("HEAD.json", "metrics/1/a")}
    hub.add_repo(REPO, files=files | {"README.md": b"#"})
    return hub


def test_a_list_of_runs_is_asked_for_page_by_page(pages: HubServer, store: HubStore) -> None:
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
def test_a_page_in_the_middle_that_fails_loses_no_run(
    pages: HubServer, store: HubStore, fail: Callable[[HubServer], None]
) -> None:
    pages.before(LIST, lambda: None)  # the first page
    fail(pages)
    assert store.folders() == RUNS
    assert not [fault for fault in pages.faults if fault.times]


def test_while_a_page_in_the_middle_fails_no_half_of_a_list_is_returned(
    pages: HubServer, store: HubStore
) -> None:
    for _ in range(100):  # each time the first page is there, and the second is not
        pages.before(LIST, lambda: None)
        pages.drop(LIST)
    with pytest.raises(StoreError, match="the Hub sent no complete response") as raised:
        store.folders()
    assert raised.value.outage


def test_a_list_that_continues_on_another_host_brings_it_no_token(
    pages: HubServer, store: HubStore
) -> None:
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
def test_the_token_is_for_the_hub_only(
    monkeypatch: pytest.MonkeyPatch, url: str, may: bool
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:80")
    assert _may_get_token(httpx.URL(url)) == may


def test_a_repository_with_too_many_other_names_is_refused_without_listing_all(
    pages: HubServer, store: HubStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores_base, "MOST_NAMES", 3)
    with pytest.raises(BadInput, match=r"hf://user/runs has more than 3 .* in another repository"):
        store.folders()
    assert pages.count(LIST) == 2


# ---------------------------------------------------------------- outages and limits


@pytest.mark.parametrize("status", [429, 503])
def test_the_store_waits_as_long_as_the_hub_asks(
    hub: HubServer, store: HubStore, time: FakeClock, status: int
) -> None:
    before = time.time
    hub.fail("POST .*/commit/", status=status, retry_after="70")
    store.compare_and_swap("demo/HEAD.json", b"1", None)
    assert time.time - before >= 70


@pytest.mark.parametrize("call", ["refs", "paths-info", "commit", "resolve"])
def test_a_transient_failure_of_any_call_is_retried(
    hub: HubServer, store: HubStore, call: str
) -> None:
    version = store.compare_and_swap("demo/HEAD.json", b"1", None)
    hub.fail(f"/{call}", status=502)
    hub.drop(f"/{call}")
    assert store.read_versioned("demo/HEAD.json") == (b"1", version)
    store.compare_and_swap("demo/HEAD.json", b"2", version)
    assert hub.files(REPO)["demo/HEAD.json"] == b"2"


def test_a_hub_that_stays_down_is_an_outage_and_staged_changes_are_kept(
    hub: HubServer, store: HubStore
) -> None:
    store.write("demo/a", b"x")
    hub.fail("POST .*/commit/", status=503, times=100)
    with pytest.raises(
        StoreError, match=r"Cannot write hf://user/runs/?: the Hub answered 503"
    ) as e:
        store.flush()
    assert e.value.outage
    hub.faults.clear()
    store.flush()
    assert hub.files(REPO)["demo/a"] == b"x"


def test_a_stalled_request_times_out_and_is_retried(
    hub: HubServer, store: HubStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write("demo/a", b"x")
    store.flush()
    monkeypatch.setattr("pipeline.state.stores.hub.repo.TIMEOUT", httpx.Timeout(0.3))
    hub.before("GET .*/tree/", lambda: real_time.sleep(1.0))
    assert store.list("demo/") == [Entry("demo/a", 1)]
    assert hub.count("GET .*/tree/") == 2


def test_an_offline_client_is_no_outage(
    hub: HubServer, store: HubStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(StoreError, match="HF_HUB_OFFLINE is set; unset HF_HUB_OFFLINE") as raised:
        store.read("demo/HEAD.json")
    assert not raised.value.outage


def test_a_gated_repository_says_that_access_has_to_be_granted(hub: HubServer) -> None:
    hub.add_repo("user/gated", files={"demo/HEAD.json": b"{}"}, gated=True)
    with pytest.raises(StoreError, match="access to hf://user/gated has to be granted") as raised:
        HubStore("user/gated").read("demo/HEAD.json")
    assert not raised.value.outage


def test_a_broken_upload_is_sent_again(hub: HubServer, store: HubStore) -> None:
    hub.drop("PUT /lfs/")
    store.write("demo/model", large("model"))
    store.flush()
    assert hub.files(REPO)["demo/model"] == large("model")


def test_an_hour_of_saves_stays_within_the_hubs_budget(
    hub: HubServer, another: Open, time: FakeClock
) -> None:
    hub.commit_limit = 128
    begun = commits(hub)
    state = RunState(another(), "demo", time.clock())
    claim = claim_run(state, Owner.me())
    saves = 0
    until = time.time + HOUR
    while time.time < until:
        claim.store.write(f"demo/checkpoints/{saves}/model.safetensors", b"x" * saves)
        claim.store.write(f"demo/metrics/{saves}.jsonl", b"{}")
        claim.commit(lambda head: head)
        saves += 1
        time.sleep(claim.store.save_seconds)
    claim.release()
    assert saves == 30
    assert commits(hub) - begun == saves + 2 <= 64  # two runs fit, with room to start again
    assert hub.count("POST .*/commit/") == saves + 2  # not one was refused


def test_a_spent_budget_is_an_outage_that_says_so(hub: HubServer, store: HubStore) -> None:
    hub.commit_limit = 1
    with pytest.raises(StoreError, match="hourly quotas for action: commit") as raised:
        store.compare_and_swap("demo/HEAD.json", b"1", None)
    assert raised.value.outage


# ---------------------------------------------------------------- the probe


def test_a_good_store_is_probed_without_a_commit(hub: HubServer, store: HubStore) -> None:
    before = hub.commits(REPO), hub.files(REPO)
    store.probe("demo/")
    assert (hub.commits(REPO), hub.files(REPO)) == before


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (None, "there is no Hub token"),
        (READ_TOKEN, "the token of tester is read-only"),
        (FINE_GRAINED_TOKEN, "the Hub denied access"),
    ],
)
def test_a_token_that_may_not_write_is_refused(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, token: str | None, message: str
) -> None:
    hub.use(monkeypatch, tmp_path / "hf", token)
    with pytest.raises(BadInput, match=message) as raised:
        HubStore(REPO).probe("demo/")
    assert "https://huggingface.co/settings/tokens" in str(raised.value)
    assert "Nothing was started." in str(raised.value)
    assert "hf_test" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("user/nothing", "`hf repos create user/nothing --private`"),
        ("datasets/user/d", "`hf repos create user/d --private --repo-type dataset`"),
    ],
)
def test_a_missing_repository_is_refused_with_the_command_that_makes_it(
    hub: HubServer, name: str, command: str
) -> None:
    with pytest.raises(BadInput, match="there is no such repository") as raised:
        HubStore.open(name).probe("demo/")
    assert command in str(raised.value)


def test_a_hub_that_commits_on_any_parent_is_refused_and_left_clean(
    hub: HubServer, store: HubStore
) -> None:
    hub.ignores_parents = True
    before = hub.files(REPO)
    with pytest.raises(BadInput, match="ignores a commit's parent"):
        store.probe("demo/")
    assert hub.files(REPO) == before


def test_a_hub_that_is_down_is_no_bad_input(hub: HubServer, store: HubStore) -> None:
    hub.drop("/refs", times=100)
    with pytest.raises(StoreError, match="the Hub sent no complete response") as raised:
        store.probe("demo/")
    assert raised.value.outage


def test_an_expired_token_is_an_outage_that_names_the_fix_and_not_the_token(
    hub: HubServer, store: HubStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    with pytest.raises(StoreError, match="does not accept the token in HF_TOKEN") as raised:
        store.compare_and_swap("demo/HEAD.json", b"1", None)
    assert raised.value.outage
    assert "hf auth login" in str(raised.value)
    assert "hf_expired" not in str(raised.value)
    monkeypatch.setenv("HF_TOKEN", WRITE_TOKEN)
    store.compare_and_swap("demo/HEAD.json", b"1", None)


def test_a_data_set_repository_holds_runs_too(hub: HubServer, time: FakeClock) -> None:
    hub.add_repo("user/d", "dataset")
    store = HubStore("user/d", "dataset", sleep=time.sleep)
    store.probe("demo/")
    store.write("demo/model", large("model"))
    store.compare_and_swap("demo/HEAD.json", b"1", None)
    assert store.list() == [Entry("demo/HEAD.json", 1), Entry("demo/model", MIB)]
    assert store.sweep_unfinished("demo/", time.time + HOUR) == 0


# ---------------------------------------------------------------- answers of others


@pytest.mark.parametrize("page", [b"<html>Sign in</html>", b"", b"null", b'[{"type": "fi'])
def test_what_is_not_an_answer_of_the_hub_is_asked_again_and_then_an_outage(
    hub: HubServer, store: HubStore, another: Open, tmp_path: Path, page: bytes
) -> None:
    store.write("demo/large", large("a"))
    version = store.compare_and_swap("demo/HEAD.json", b"0", None)

    def swap() -> None:
        nonlocal version
        version = store.compare_and_swap("demo/HEAD.json", b"1" + version.encode(), version)

    calls: list[tuple[str, Callable[[], object]]] = [
        ("GET .*/refs", swap),
        ("POST .*/commit/", swap),
        ("GET .*/resolve/", lambda: store.read("demo/HEAD.json")),
        ("HEAD .*/resolve/", lambda: store.download("demo/large", tmp_path / "large")),
        ("GET .*/tree/", lambda: another().list("demo/")),
    ]
    for match, call in calls:
        hub.answer_page(match, page)
        call()
        assert hub.faults[-1].times == 0, match
        hub.answer_page(match, page, times=100)
        with pytest.raises(StoreError, match=r"check HF_ENDPOINT, and any proxy") as caught:
            call()
        assert caught.value.outage
        hub.faults.clear()


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ("Private repository storage limit reached, please upgrade", "there is no room left"),
        ("Your account has been suspended", "has suspended this account"),
        ("", "denied access; set HF_TOKEN"),
    ],
)
def test_not_every_refusal_is_a_missing_permission(message: str, says: str) -> None:
    request = httpx.Request("POST", "https://huggingface.co/api")
    response = httpx.Response(403, request=request)
    refused = HfHubHTTPError(message, response=response, server_message=message)
    assert says in errors.explain(refused, "hf://user/repo", "")


def test_a_certificate_that_is_not_trusted_does_not_pass_by_itself() -> None:
    error = httpx.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed")
    assert not errors.is_transient(error)
    assert not errors.is_outage(error)
    assert "SSL_CERT_FILE" in errors.explain(error, "hf://user/repo", "")
