"""Data that is not finished, on its way to the store and from it."""

import threading
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from pipeline.state.shared import unfinished
from pipeline.state.shared.unfinished import EarlyUpload, bring_unfinished
from pipeline.state.stores import StoreError
from tests.support.far_store import FarStore
from tests.support.waiting import PATIENCE_SECONDS, wait_until

FINGERPRINT, FOLDER = "f" * 64, "0" * 32
KEY = f"_data/{FINGERPRINT}/{FOLDER}"


class Failing(FarStore):
    """A store of which the first `failures` writes fail, and all writes of the file `refused`.
    Writes wait for `gate`. Notes what was tried, in order."""

    def __init__(self, folder, failures=0, refused=""):
        super().__init__(folder)
        self.left, self.refused, self.tried = failures, refused, []
        self.gate = threading.Event()
        self.gate.set()

    def write(self, key, data):
        assert self.gate.wait(PATIENCE_SECONDS)
        name = key.removeprefix(f"{KEY}/")
        self.tried.append(name)
        if self.left or name == self.refused:
            self.left = max(0, self.left - 1)
            raise StoreError("write", key, "the network is down", outage=True)
        super().write(key, data)

    def has(self, name):
        return any(entry.key == f"{KEY}/{name}" for entry in self.list(KEY))

    def gets(self, *names):
        for name in names:
            wait_until(partial(self.has, name), f"{name} to be in the store")


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The folder in which data is prepared, with a tokenizer, a shard, and its record."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(unfinished, "RETRY_SECONDS", 0.01)
    (tmp_path / "own" / "0").mkdir(parents=True)
    for name in ("0/a.npy", "0/a.json", "0/b.npy", "tokenizer.json"):
        (tmp_path / "own" / name).write_bytes(f"mine {name}".encode())
    return tmp_path / "own"


@contextmanager
def uploading(store, own, finished="0/b.npy"):
    upload = EarlyUpload(store, FINGERPRINT, FOLDER, own)
    try:
        upload.finished(own / finished)
        yield upload
    finally:
        upload.close()


def test_an_upload_that_fails_is_tried_again_and_holds_up_no_other_file(tmp_path, own, monkeypatch):
    monkeypatch.setattr(unfinished, "MOST_WAITING", 0)
    store = Failing(tmp_path / "store", failures=5, refused="0/a.npy")
    with uploading(store, own) as upload:
        store.gets("tokenizer.json", "0/a.json", "0/b.npy")
        assert not store.has("0/a.npy")
        store.refused = ""
        store.gets("0/a.npy")
        (own / "0" / "c.npy").write_bytes(b"new")
        upload.finished(own / "0" / "c.npy")
        store.gets("0/c.npy")
        store.gate.clear()
        upload.finished(own / "0" / "a.json")
        with waiting(upload):  # again, and for the last file alone
            store.gate.set()


def test_while_the_store_can_not_be_reached_nobody_waits_for_it_or_for_the_next_try(
    tmp_path, own, monkeypatch
):
    monkeypatch.setattr(unfinished, "MOST_WAITING", 1)
    monkeypatch.setattr(unfinished, "RETRY_SECONDS", PATIENCE_SECONDS)
    store = Failing(tmp_path / "store", failures=1)
    with uploading(store, own) as upload:
        upload.wait()
        assert len(store.tried) == 1
    assert len(store.tried) == 1


def test_a_file_that_is_deleted_while_it_is_looked_at_or_before_ends_no_upload(
    tmp_path, own, monkeypatch
):
    stat = Path.stat

    def stat_and_delete(path, *, follow_symlinks=True):
        found = stat(path, follow_symlinks=follow_symlinks)
        if path.name == "a.npy" and threading.current_thread().name == "early upload":
            path.unlink()
        return found

    store = Failing(tmp_path / "store")
    monkeypatch.setattr(Path, "stat", stat_and_delete)
    with uploading(store, own, "0/gone.npy"):
        store.gets("0/b.npy")
    assert not (own / "0" / "a.npy").exists()
    assert "0/a.npy" not in store.tried


def test_while_the_store_refuses_the_tokenizer_no_other_file_is_tried(tmp_path, own):
    store = Failing(tmp_path / "store", refused="tokenizer.json")
    with uploading(store, own):
        wait_until(lambda: len(store.tried) >= 5, "several tries")
    assert set(store.tried) == {"tokenizer.json"}


@contextmanager
def waiting(upload):
    """Let a thread wait for the store, which stops waiting in the block."""
    thread = threading.Thread(target=upload.wait)
    thread.start()
    wait_until(lambda: upload.waits, "it to wait for the store")
    yield
    thread.join(PATIENCE_SECONDS)
    assert not thread.is_alive()
    assert not upload.waits


def test_who_finishes_files_waits_while_too_many_are_not_in_the_store(tmp_path, own, monkeypatch):
    monkeypatch.setattr(unfinished, "MOST_WAITING", 4)
    store = Failing(tmp_path / "store")
    store.gate.clear()
    with uploading(store, own) as upload:  # and three from before
        upload.wait()
        upload.finished(own / "0" / "a.json")
        with waiting(upload):
            store.gate.set()


def test_nobody_waits_any_more_when_it_is_closed(tmp_path, own, monkeypatch):
    monkeypatch.setattr(unfinished, "MOST_WAITING", 1)
    store = Failing(tmp_path / "store")
    store.gate.clear()
    with uploading(store, own) as upload:
        with waiting(upload):
            upload.stop()
        store.gate.set()


def test_what_is_in_the_store_by_another_machine_comes_last_and_what_is_nowhere_first(
    tmp_path, own
):
    store = Failing(tmp_path / "store")
    there = f"_data/{FINGERPRINT}/{'1' * 32}"
    for name in ("0/a.npy", "0/b.npy"):
        store.write(f"{there}/{name}", (own / name).read_bytes())
    store.write(f"{there}/0/a.json", b"of another size")
    store.tried.clear()
    (own / "0" / "c.npy").write_bytes(b"new")
    with uploading(store, own, "0/c.npy"):
        wait_until(lambda: len(store.tried) == 5, "all files to be in the store")
    assert store.tried[:3] == ["tokenizer.json", "0/a.json", "0/c.npy"]
    assert set(store.tried[3:]) == {"0/a.npy", "0/b.npy"}


def test_the_tokenizer_of_another_machine_does_not_replace_this_one(tmp_path, own):
    store = FarStore(tmp_path / "store")
    for name in ("tokenizer.json", "template.jinja", "0/c.json"):
        store.write(f"{KEY}/{name}", b"theirs " * 100)
    assert bring_unfinished(store, FINGERPRINT, own)
    assert (own / "tokenizer.json").read_bytes() == b"mine tokenizer.json"
    assert (own / "template.jinja").read_bytes() == (own / "0" / "c.json").read_bytes()
