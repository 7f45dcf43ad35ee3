"""Streaming shards through a small disk: order, budget, and transfers that go wrong."""

from __future__ import annotations

import hashlib
import io
import threading
from contextlib import suppress

import numpy as np
import pytest

from pion.data.order import RowOrder
from pion.data.shards import Manifest, Rows, Shard
from pion.errors import BadInput, PionError
from pipeline.data import shard_cache
from pipeline.data.hub import hub_shards, pin
from pipeline.data.prepared import open_data
from pipeline.data.shard_cache import CachedStream, ShardCache, fetching_from
from pipeline.job import HubNpyShards
from pipeline.state.workspace import Workspace
from tests.support.corpora import make_job, prepared, write_corpus
from tests.support.far_store import FarStore
from tests.support.hub_server import hub_server
from tests.support.waiting import PATIENCE_SECONDS, join

SEQ_LEN = 64
ROWS = 50
SHARDS = 12


def content(number):
    """Return the rows of shard s. Row r begins with the ids s, r."""
    rows = np.zeros((ROWS, SEQ_LEN), np.uint16)
    rows[:, 0], rows[:, 1] = number, np.arange(ROWS)
    file = io.BytesIO()
    np.save(file, rows)
    return file.getvalue()


BYTES = len(content(0))


def manifest(shards):
    return Manifest("tokens", SEQ_LEN, 1000, tuple(shards))


def a_shard(number):
    data = content(number)
    sha256 = hashlib.sha256(data).hexdigest()
    remote = {"repo": "user/shards", "revision": "main", "path": f"shard_{number:02d}.npy"}
    return Shard(f"shard_{number:02d}.npy", ROWS, sha256, len(data), "uint16", remote=remote)


class Downloads:
    """A fetch that records its requests, and first does what a test wants."""

    def __init__(self, before=lambda name: None):
        self.names: list[str] = []
        self._before = before

    def __call__(self, shard, folder):
        self._before(shard.name)
        self.names.append(shard.name)
        path = folder / f"{threading.get_ident()}-{shard.name}"
        path.write_bytes(content(int(shard.name[6:8])))
        return path


def stream_of(shards, cache, window=2):
    described = manifest(shards)
    order = RowOrder(described.shard_rows, described.fingerprint, seed=1, window=window)
    return CachedStream([(Rows(described, cache.path_of), order)], [1.0], 1, cache)


def cached_bytes(folder):
    """Return the bytes of the shards there now, while others may be deleting them."""
    total = 0
    for path in list(folder.glob("*.npy")):
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


@pytest.fixture
def hub(tmp_path, monkeypatch):
    with hub_server() as server:
        server.use(monkeypatch, tmp_path / "hf")
        files = {f"shard_{i:02d}.npy": content(i) for i in range(SHARDS)}
        server.add_repo("user/shards", "dataset", files)
        yield server


def hub_stream(cache):
    source = HubNpyShards(kind="hub-npy", repo="user/shards")
    return stream_of(hub_shards(source, pin(source.repo, None), SEQ_LEN), cache)


def test_an_epoch_larger_than_the_disk_is_read_whole_and_within_the_budget(hub, tmp_path):
    cache = ShardCache(tmp_path / "cache", 4 * BYTES)
    stream = hub_stream(cache)
    seen = set()
    for first in range(0, SHARDS * ROWS, 20):
        tokens = stream.batch(range(first, first + 20)).tokens
        seen |= {(int(s), int(r)) for s, r in tokens[:, :2]}
        assert cached_bytes(tmp_path / "cache") <= 4 * BYTES
    cache.close()
    assert seen == {(s, r) for s in range(SHARDS) for r in range(ROWS)}


def test_the_shards_needed_next_are_fetched_before_they_are_asked_for(tmp_path):
    fetched = threading.Semaphore(0)
    downloads = Downloads(lambda name: fetched.release())
    cache = ShardCache(tmp_path, 5 * BYTES, downloads)
    stream = stream_of([a_shard(i) for i in range(SHARDS)], cache)
    stream.batch([0])
    for _ in range(5):
        assert fetched.acquire(timeout=PATIENCE_SECONDS)
    ahead = [f"shard_{s:02d}.npy" for _, s in stream.upcoming_shards(0, 5)]
    cache.close()
    assert set(downloads.names) == set(ahead)


def test_a_shard_that_is_needed_waits_for_no_other_download(tmp_path):
    began, go_on = threading.Event(), threading.Event()

    def hold_back(name):
        if name == slow.name:
            began.set()
            assert go_on.wait(PATIENCE_SECONDS)

    slow, needed = a_shard(0), a_shard(1)
    cache = ShardCache(tmp_path, 3 * BYTES, Downloads(hold_back))
    cache.want([slow, needed])
    assert began.wait(PATIENCE_SECONDS)
    assert cache.path_of(needed).exists()
    assert cached_bytes(tmp_path) == BYTES
    go_on.set()
    cache.close()


def test_a_shard_in_the_window_is_never_evicted(tmp_path):
    downloads = Downloads()
    cache = ShardCache(tmp_path, 2 * BYTES, downloads)
    stream = stream_of([a_shard(i) for i in range(SHARDS)], cache)
    for i in range(2 * ROWS):  # one window, a row at a time
        stream.batch([i])
    cache.close()
    window = {f"shard_{s:02d}.npy" for _, s in stream.upcoming_shards(0, 2)}
    assert sorted(downloads.names) == sorted(window)  # each exactly once


def test_a_shard_needed_next_is_not_evicted_for_one_that_is_not(tmp_path):
    cache = ShardCache(tmp_path, 2 * BYTES, Downloads())
    needed = [a_shard(0), a_shard(1)]
    cache.want(needed)
    paths = [cache.path_of(shard) for shard in needed]
    cache.path_of(a_shard(2))
    cache.close()
    assert all(path.exists() for path in paths)


def test_a_used_shard_makes_room_and_its_mapping_is_let_go(tmp_path):
    cache = ShardCache(tmp_path, 1 * BYTES, Downloads())
    first, second = a_shard(0), a_shard(1)
    released = []
    cache.on_evict(first, lambda: released.append(first.name))
    path = cache.path_of(first)
    cache.path_of(second)
    assert released == [first.name]
    assert not path.exists()
    assert cached_bytes(tmp_path) == BYTES


def test_a_transfer_that_breaks_off_is_resumed(hub, tmp_path):
    cache = ShardCache(tmp_path / "cache", 4 * BYTES)
    stream = hub_stream(cache)
    hub.truncate("GET .*/resolve/.*shard_", times=3)
    assert len(stream.batch(range(40)).tokens) == 40
    cache.close()


def test_a_corrupted_transfer_is_fetched_again_and_at_last_an_error_names_the_shard(hub, tmp_path):
    cache = ShardCache(tmp_path / "cache", 4 * BYTES)
    source = HubNpyShards(kind="hub-npy", repo="user/shards")
    third, fourth = hub_shards(source, pin(source.repo, None), SEQ_LEN)[2:4]
    before = hub.count("GET .*/resolve/.*shard_03")
    hub.corrupt("GET .*/resolve/.*shard_03", times=1)
    assert cache.path_of(fourth).read_bytes() == content(3)
    assert hub.count("GET .*/resolve/.*shard_03") == before + 2
    hub.corrupt("GET .*/resolve/.*shard_02", times=99)
    with pytest.raises(PionError, match=r"shard_02\.npy was downloaded 3 times, but never had"):
        cache.path_of(third)
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 1


def test_a_partial_file_is_never_visible_under_the_shards_name(tmp_path):
    def half(shard, folder):
        path = folder / shard.name
        path.write_bytes(content(0)[: BYTES // 2])
        assert not list(tmp_path.glob("*.npy"))
        raise ConnectionError("the line went dead")

    with pytest.raises(ConnectionError):
        ShardCache(tmp_path, BYTES, half).path_of(a_shard(0))
    assert not list(tmp_path.glob("*.npy"))


def test_a_file_from_an_earlier_start_is_fetched_again_only_if_it_is_damaged(tmp_path):
    path = ShardCache(tmp_path, BYTES, Downloads()).path_of(a_shard(0))
    downloads = Downloads()
    ShardCache(tmp_path, BYTES, downloads).path_of(a_shard(0))
    assert downloads.names == []
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    assert ShardCache(tmp_path, BYTES, downloads).path_of(a_shard(0)).read_bytes() == content(0)
    assert downloads.names == ["shard_00.npy"]


def test_two_readers_of_one_folder_download_a_shard_once(tmp_path):
    meeting = threading.Barrier(2, timeout=60)
    downloads = Downloads()
    caches = [ShardCache(tmp_path, 4 * BYTES, downloads) for _ in range(2)]

    def read(cache):
        meeting.wait()
        cache.path_of(a_shard(0))

    threads = [threading.Thread(target=read, args=(cache,)) for cache in caches]
    for thread in threads:
        thread.start()
    for thread in threads:
        join(thread)
    assert downloads.names == ["shard_00.npy"]


def test_a_file_another_process_has_just_used_is_left_alone(tmp_path):
    theirs = ShardCache(tmp_path, BYTES, Downloads()).path_of(a_shard(0))
    ShardCache(tmp_path, BYTES, Downloads()).path_of(a_shard(1))
    assert theirs.exists()


def test_a_failure_while_fetching_ahead_is_reported_only_when_the_shard_is_needed(tmp_path):
    broken = threading.Event()

    def fail_late(name):
        if name == last:
            broken.set()
            raise PionError("the Hub is down")

    cache = ShardCache(tmp_path, 3 * BYTES, Downloads(fail_late))
    stream = stream_of([a_shard(i) for i in range(3)], cache, window=1)
    order = [shard for _, shard in stream.upcoming_shards(0, 3)]
    last = f"shard_{order[-1]:02d}.npy"
    stream.batch([0])
    assert broken.wait(PATIENCE_SECONDS)
    stream.batch([ROWS])
    with pytest.raises(PionError, match="the Hub is down"):
        stream.batch([2 * ROWS])
    cache.close()


def test_a_budget_below_one_window_is_refused(tmp_path):
    cache = ShardCache(tmp_path, 3 * BYTES, Downloads())
    with pytest.raises(BadInput, match=r"hardware\.shard_cache_gb .* lower data\.window"):
        stream_of([a_shard(i) for i in range(SHARDS)], cache, window=4)


def test_a_folder_that_cannot_be_made_is_bad_input(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BadInput, match="file/cache: this folder can't be made"):
        ShardCache(tmp_path / "file" / "cache", BYTES)


# ---------------------------------------------------------------- shards in the store of the run


KEY = "aa/bb"
WINDOW = 3
BATCH = 4


class Remote(FarStore):
    """A bucket that notes what is downloaded."""

    def __init__(self, folder):
        super().__init__(folder)
        self.downloads: list[str] = []

    def download(self, key, path, limit=None):
        self.downloads.append(key.rpartition("/")[2])
        return super().download(key, path, limit)


@pytest.fixture
def job(tmp_path):
    write_corpus(tmp_path / "corpus.jsonl")
    return make_job(tmp_path, data={"shard_rows": 20})


@pytest.fixture
def store(tmp_path, job):
    """A store with data that a machine has prepared, which is gone since."""
    store = Remote(tmp_path / "store")
    machine = Workspace(store, "_data", tmp_path / "gone")
    prepared(job, machine.folder(KEY))
    machine.keep(KEY)
    return store


@pytest.fixture
def machine(tmp_path, store):
    """An empty machine."""
    return Workspace(store, "_data", tmp_path / "machine")


@pytest.fixture
def fetch(store):
    return fetching_from(store, f"_data/{KEY}", lambda download: download())


@pytest.fixture
def cache(tmp_path, fetch):
    cache = ShardCache(tmp_path / "cache", 1 << 30, fetch)
    yield cache
    cache.close()


def shards_of(folder):
    return sorted(path.name for path in folder.glob("0/train/*.npy"))


def test_all_but_the_shards_to_train_on_is_brought(machine, store):
    folder = machine.bring(KEY, shards=False)
    assert shards_of(folder) == []
    # Nor is anything else that grows with the number of shards.
    assert [path.name for path in (folder / "0" / "train").iterdir()] == ["manifest.json"]
    assert list(folder.glob("0/held_out/*.npy"))
    assert (folder / "tokenizer.json").exists()
    assert open_data(folder).stream("held_out", 1, WINDOW).total_rows > 0
    assert len(shards_of(machine.bring(KEY))) > 3 * WINDOW  # a fork copies them all
    assert machine.bring(KEY, shards=False) == folder


def test_the_first_batch_needs_one_window_of_shards(tmp_path, machine, store, fetch):
    data = open_data(machine.bring(KEY, shards=False))
    window = set()
    go_on = threading.Event()

    def held_back(shard, folder):
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


def test_the_rows_are_those_of_the_machine_that_prepared_them(tmp_path, machine, cache):
    there = open_data(tmp_path / "gone" / machine.folder(KEY).relative_to(tmp_path / "machine"))
    here = open_data(machine.bring(KEY, shards=False))
    local = there.stream("train", 1, WINDOW)
    streamed = here.stream("train", 1, WINDOW, lambda: cache)
    assert streamed.total_rows == local.total_rows
    for i in range(local.total_rows):
        assert np.array_equal(streamed.row(i).tokens, local.row(i).tokens)


def test_shards_that_are_here_are_read_here(tmp_path, machine, store, cache):
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
def test_a_shard_that_the_store_has_lost_is_refused_before_training(machine, store, content):
    key = f"_data/{KEY}/0/train/shard_00002.npy"
    if content is None:
        store.delete(key)
    else:
        store.write(key, content)
    with pytest.raises(PionError, match=r"shard_00002\.npy is missing, or has another size.*redo"):
        machine.bring(KEY, shards=False)


def test_a_shard_that_is_lost_during_training_says_how_to_continue(machine, store, cache):
    stream = open_data(machine.bring(KEY, shards=False)).stream("train", 1, WINDOW, lambda: cache)
    for entry in store.list(f"_data/{KEY}/0/train/"):
        store.delete(entry.key)
    with pytest.raises(PionError, match=r"0/train/shard_\d+\.npy is missing.*--redo prepare"):
        stream.batch(range(BATCH))


def test_a_shard_is_hashed_once_a_machine(tmp_path, machine, fetch, monkeypatch):
    data = open_data(machine.bring(KEY, shards=False))
    hashed = []
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


def test_a_window_larger_than_the_cache_has_room(tmp_path, machine, fetch):
    """Large shards of other programs were all on this disk before there was a cache."""
    data = open_data(machine.bring(KEY, shards=False))
    cache = ShardCache(tmp_path / "cache", 1, fetch)
    stream = data.stream("train", 1, WINDOW, lambda: cache)
    stream.batch(range(BATCH))
    largest = max(shard.bytes for shard in data.manifest(data.sources[0], "train").shards)
    assert cache.budget_bytes <= WINDOW * largest
    cache.close()
