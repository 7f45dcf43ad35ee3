"""Swaps in a Hub repository: other commits in between, lost acknowledgements, lost races."""

import pytest

from pipeline.state.stores import Conflict, Entry
from tests.pipeline.state.stores.hub.conftest import MIB, REPO, commits, large


def test_a_refused_swap_commits_nothing_and_keeps_staged_changes(hub, store, another):
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


def test_a_commit_of_other_files_in_between_is_no_conflict(hub, store):
    store.write("demo/model", large("model"))
    hub.before("POST .*/commit/", lambda: hub.add_repo(REPO, files={"other/HEAD.json": b"x"}))
    store.compare_and_swap("demo/HEAD.json", b"1", None)
    assert {"other/HEAD.json", "demo/HEAD.json", "demo/model"} <= set(hub.files(REPO))
    assert hub.count("PUT /lfs/") == 1


@pytest.mark.parametrize("moment", ["preupload", "commit"])
@pytest.mark.parametrize("theirs", [b"theirs", b"mine"])
def test_a_swap_in_between_is_a_conflict_even_of_the_same_bytes(hub, store, theirs, moment):
    files = {"demo/HEAD.json": theirs}
    hub.before(f"POST .*/{moment}/", lambda: hub.add_repo(REPO, files=files))
    with pytest.raises(Conflict):
        store.compare_and_swap("demo/HEAD.json", b"mine", None)
    assert hub.files(REPO)["demo/HEAD.json"] == theirs


def test_a_history_squashed_in_between_is_no_conflict(hub, store):
    version = store.compare_and_swap("demo/HEAD.json", b"1", None)
    squash = hub.repos["model", REPO].squash
    for request in ("POST .*/paths-info/", "POST .*/commit/"):
        hub.before(request, lambda: squash("main", "squashed", 0.0))
        version = store.compare_and_swap("demo/HEAD.json", request.encode(), version)
        assert hub.files(REPO)["demo/HEAD.json"] == request.encode()


def test_a_swap_whose_acknowledgement_is_lost_is_a_success_and_made_once(hub, store):
    store.write("demo/model", large("model"))
    before = commits(hub)
    hub.drop_after("POST .*/commit/")
    version = store.compare_and_swap("demo/HEAD.json", b"1", None)
    assert commits(hub) == before + 1
    assert store.read_versioned("demo/HEAD.json") == (b"1", version)
    assert store.staged() == []


def test_a_lost_swap_that_somebody_else_has_replaced_is_a_conflict(hub, store):
    hub.drop_after("POST .*/commit/")
    hub.before("GET .*/refs", lambda: None)
    hub.before("GET .*/refs", lambda: hub.add_repo(REPO, files={"demo/HEAD.json": b"theirs"}))
    with pytest.raises(Conflict):
        store.compare_and_swap("demo/HEAD.json", b"mine", None)
    assert hub.files(REPO)["demo/HEAD.json"] == b"theirs"


def test_a_flush_with_deletes_whose_acknowledgement_is_lost_is_made_once(hub, store):
    store.write("demo/old", b"x")
    store.flush()
    before = commits(hub)
    store.write("demo/model", large("model"))
    store.delete("demo/old")
    hub.drop_after("POST .*/commit/")
    store.flush()
    assert commits(hub) == before + 1
    assert store.list("demo/") == [Entry("demo/model", MIB)]
