"""Prepared text is read from the run's store shard by shard: training begins after one window."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pion.data.shards import Shard
from pion.errors import PionError
from pipeline.data import shard_cache
from pipeline.data.prepared import open_data
from pipeline.data.shard_cache import Fetch, ShardCache, fetching_from
from pipeline.job import Job
from pipeline.state.stores import FileStore
from pipeline.state.workspace import Workspace
from tests.support.corpora import make_job, prepared, write_corpus
from tests.support.waiting import PATIENCE_SECONDS

KEY = "aa/bb"
WINDOW = 3
BATCH = 4


class Remote(FileStore):
    """A folder that can't be memory-mapped, like a bucket."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.downloads: list[str] = []

    def local_path(self, key: str) -> None:
        return None

    def download(self, key: str, path: Path, limit: int | None = None) -> str:
        self.downloads.append(key.rpartition("/")[2])
        return super().download(key, path, limit)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    write_corpus(tmp_path / "corpus.jsonl")
    return make_job(tmp_path, data={"shard_rows": 20})


@pytest.fixture
def store(tmp_path: Path, job: Job) -> Remote:
    """A store with data that a machine has prepared, which is gone since."""
    store = Remote(tmp_path / "store")
    machine = Workspace(store, "_data", tmp_path / "gone")
    prepared(job, machine.folder(KEY))
    machine.keep(KEY)
    return store


@pytest.fixture
def machine(tmp_path: Path, store: Remote) -> Workspace:
    """An empty machine."""
    return Workspace(store, "_data", tmp_path / "machine")


@pytest.fixture
def fetch(store: Remote) -> Fetch:
    return fetching_from(store, f"_data/{KEY}", lambda download: download())


@pytest.fixture
def cache(tmp_path: Path, fetch: Fetch) -> Iterator[ShardCache]:
    cache = ShardCache(tmp_path / "cache", 1 << 30, fetch)
    yield cache
    cache.close()


def shards_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("0/train/*.npy"))


def test_all_but_the_shards_to_train_on_is_brought(machine: Workspace, store: Remote) -> None:
    folder = machine.bring(KEY, shards=False)
    assert shards_of(folder) == []
    # Nor is anything else that grows with the number of shards.
    assert [path.name for path in (folder / "0" / "train").iterdir()] == ["manifest.json"]
    assert list(folder.glob("0/held_out/*.npy"))
    assert (folder / "tokenizer.json").exists()
    assert open_data(folder).stream("held_out", 1, WINDOW).total_rows > 0
    assert len(shards_of(machine.bring(KEY))) > 3 * WINDOW  # a fork copies them all
    assert machine.bring(KEY, shards=False) == folder


def test_the_first_batch_needs_one_window_of_shards(
    tmp_path: Path, machine: Workspace, store: Remote, fetch: Fetch
) -> None:
    data = open_data(machine.bring(KEY, shards=False))
    window: set[str] = set()
    go_on = threading.Event()

    def held_back(shard: Shard, folder: Path) -> Path:
        """Download what is not in the window only when the test is over."""
        if shard.name not in window:
            assert go_on.wait(PATIENCE_SECONDS)
        return fetch(shard, folder)

    cache = ShardCache(tmp_path / "cache", 1 << 30, held_back)
    stream = data.stream("train", 1, WINDOW, lambda: cache)
    shards = data.manifest(data.sources[0], "train").shards
    window |= {shards[number].name for _, number in stream.upcoming_shards(0, WINDOW)}
    store.downloads.clear()
    stream.batch(range(BATCH))
    assert {*store.downloads} <= window
    go_on.set()
    cache.close()


def test_the_rows_are_those_of_the_machine_that_prepared_them(
    tmp_path: Path, machine: Workspace, cache: ShardCache
) -> None:
    there = open_data(tmp_path / "gone" / machine.folder(KEY).relative_to(tmp_path / "machine"))
    here = open_data(machine.bring(KEY, shards=False))
    local = there.stream("train", 1, WINDOW)
    streamed = here.stream("train", 1, WINDOW, lambda: cache)
    assert streamed.total_rows == local.total_rows
    for i in range(local.total_rows):
        assert np.array_equal(streamed.row(i).tokens, local.row(i).tokens)


def test_shards_that_are_here_are_read_here(
    tmp_path: Path, machine: Workspace, store: Remote, cache: ShardCache
) -> None:
    folder = machine.bring(KEY)
    store.downloads.clear()
    shard = folder / "0" / "train" / shards_of(folder)[0]
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert machine.bring(KEY, shards=False) == folder
    assert not shard.exists()  # it was damaged
    stream = open_data(folder).stream("train", 1, WINDOW, lambda: cache)
    for i in range(stream.total_rows):
        stream.row(i)
    assert store.downloads == [shard.name]


@pytest.mark.parametrize("content", [None, b"short"])
def test_a_shard_that_the_store_has_lost_is_refused_before_training(
    machine: Workspace, store: Remote, content: bytes | None
) -> None:
    key = f"_data/{KEY}/0/train/shard_00002.npy"
    if content is None:
        store.delete(key)
    else:
        store.write(key, content)
    with pytest.raises(PionError, match=r"shard_00002\.npy is missing, or has another size.*redo"):
        machine.bring(KEY, shards=False)


def test_a_shard_that_is_lost_during_training_says_how_to_continue(
    machine: Workspace, store: Remote, cache: ShardCache
) -> None:
    stream = open_data(machine.bring(KEY, shards=False)).stream("train", 1, WINDOW, lambda: cache)
    for entry in store.list(f"_data/{KEY}/0/train/"):
        store.delete(entry.key)
    with pytest.raises(PionError, match=r"0/train/shard_\d+\.npy is missing.*--redo prepare"):
        stream.batch(range(BATCH))


def test_a_shard_is_hashed_once_a_machine(
    tmp_path: Path, machine: Workspace, fetch: Fetch, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = open_data(machine.bring(KEY, shards=False))
    hashed: list[str] = []
    sha256_file = shard_cache.sha256_file
    monkeypatch.setattr(
        shard_cache, "sha256_file", lambda path: hashed.append(path.name) or sha256_file(path)
    )
    for _ in range(3):  # as three workers
        cache = ShardCache(tmp_path / "cache", 1 << 30, fetch)
        stream = data.stream("train", 1, WINDOW, lambda cache=cache: cache)
        for i in range(stream.total_rows):
            stream.row(i)
        cache.close()
    assert len(hashed) == len(data.manifest(data.sources[0], "train").shards)
    path = sorted((tmp_path / "cache").glob("*.npy"))[0]
    path.write_bytes(path.read_bytes())  # it may be another one now
    cache = ShardCache(tmp_path / "cache", 1 << 30, fetch)
    stream = data.stream("train", 1, WINDOW, lambda: cache)
    for i in range(stream.total_rows):
        stream.row(i)
    assert hashed[-1] == path.name


def test_a_window_larger_than_the_cache_has_room(
    tmp_path: Path, machine: Workspace, fetch: Fetch
) -> None:
    """Large shards of other programs were all on this disk before there was a cache."""
    data = open_data(machine.bring(KEY, shards=False))
    cache = ShardCache(tmp_path / "cache", 1, fetch)
    stream = data.stream("train", 1, WINDOW, lambda: cache)
    stream.batch(range(BATCH))
    largest = max(shard.bytes for shard in data.manifest(data.sources[0], "train").shards)
    assert cache.budget_bytes <= WINDOW * largest
    cache.close()
