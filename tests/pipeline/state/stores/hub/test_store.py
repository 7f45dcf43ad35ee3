"""The store in a Hub repository: one commit per swap, and a bounded repository.

The real huggingface_hub client talks to a Hub on loopback.
"""

import hashlib
import json
import os
import sys

import pytest
from huggingface_hub import HfApi

from pion.errors import BadInput
from pipeline.state.stores import Entry, Missing, StoreError
from pipeline.state.stores.hub.store import COMMITS_KEPT, HubStore
from tests.pipeline.state.stores.hub.conftest import HOUR, MIB, REPO, commits, large
from tests.support.waiting import run_to_end

SAVES = 200


# ---------------------------------------------------------------- its name


def test_it_is_named_by_a_repository_and_opening_it_asks_nothing(hub):
    before = len(hub.requests)
    assert HubStore.open("user/repo/").url == "hf://user/repo"
    assert HubStore.open("datasets/user/repo").url == "hf://datasets/user/repo"
    assert len(hub.requests) == before


@pytest.mark.parametrize("rest", ["", "user", "user/", "user/repo/run", "us er/repo", "user/..x"])
def test_another_form_is_refused_with_the_right_one(rest):
    with pytest.raises(BadInput, match="use hf://user/repo"):
        HubStore.open(rest)


# ---------------------------------------------------------------- one commit


def test_a_checkpoint_its_metrics_deletes_and_head_are_one_commit(hub, store, another, tmp_path):
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


def test_only_the_stores_own_reads_see_staged_changes(hub, store, another, tmp_path):
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


def test_reading_back_a_large_file_commits_it_first(hub, store, tmp_path):
    store.write("demo/model", large("model"))
    before = commits(hub)
    assert store.list() == [Entry("demo/model", MIB)]
    assert commits(hub) == before
    assert store.read("demo/model") == large("model")
    assert commits(hub) == before + 1
    store.download("demo/model", tmp_path / "model")
    assert (tmp_path / "model").read_bytes() == large("model")


def test_unchanged_content_makes_no_commit(hub, store):
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


def test_a_swapped_key_that_waits_is_committed_before_it_is_compared(store):
    store.write("demo/HEAD.json", b"first")
    version = store.read_versioned("demo/HEAD.json")[1]
    store.compare_and_swap("demo/HEAD.json", b"second", version)
    assert store.read("demo/HEAD.json") == b"second"


def test_a_file_that_gitignore_keeps_out_is_refused_rather_than_lost(hub, store):
    hub.add_repo(REPO, files={".gitignore": b"checkpoints\n"})
    store.write("demo/checkpoints/state.json", b"{}")
    with pytest.raises(StoreError, match=r"state.json: the repository's .gitignore excludes this"):
        store.compare_and_swap("demo/HEAD.json", b"{}", None)
    with pytest.raises(StoreError, match=r"model: the repository's .gitignore excludes this"):
        store.write("demo/checkpoints/model", large("model"))
    assert "demo/HEAD.json" not in hub.files(REPO)


def test_a_missing_local_file_is_named(store, tmp_path):
    with pytest.raises(StoreError, match="demo/model: No such file") as raised:
        store.write("demo/model", tmp_path / "nothing")
    assert not raised.value.outage


# ---------------------------------------------------------------- another process


def test_another_process_uploads_and_this_one_commits_without_sending_it_again(
    hub, store, tmp_path
):
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


def test_only_old_objects_of_this_run_that_no_path_uses_are_deleted(hub, store, time):
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


def test_an_object_that_a_tag_uses_or_that_waits_for_its_commit_is_kept(hub, store, time):
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
    ("saves", "commits_kept"), [(22, 4), pytest.param(SAVES, COMMITS_KEPT, marks=pytest.mark.soak)]
)
def test_days_of_training_leave_a_bounded_repository(
    hub, store, time, monkeypatch, saves, commits_kept
):
    monkeypatch.setattr("pipeline.state.stores.hub.store.COMMITS_KEPT", commits_kept)
    size, kept = 64 << 10, 2
    version = None
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
