"""What every store promises: a folder, a bucket, a bucket with a bad network, or a Hub repo."""

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from pion.errors import BadInput, Fenced, PionError
from pipeline.state.claim import claim_run
from pipeline.state.record_json import Damaged
from pipeline.state.run_state import RunState
from pipeline.state.stores import Conflict, Entry, FileStore, Missing, Store, write_once
from tests.support.contents import content, sha256
from tests.support.s3_server import SMALLEST_PART
from tests.support.states import someone
from tests.support.waiting import PATIENCE_SECONDS

# Parts of a large object.
PART = max(SMALLEST_PART, 300_000)

# In bad weather, S3 answers most requests as it always does.
PLACES = ["file", pytest.param("s3", marks=pytest.mark.soak), "s3 in bad weather", "hf"]


@dataclass(frozen=True)
class Place:
    """The place of a store. Each `open` gives a view of it like another process's."""

    open: Callable[[], Store]


@pytest.fixture(params=PLACES)
def place(request, tmp_path, monkeypatch):
    if request.param == "file":
        yield Place(lambda: FileStore(tmp_path / "store"))
    elif request.param == "hf":
        pytest.importorskip("pipeline.state.stores.hub.store")
        from pipeline.state.stores.hub.store import HubStore
        from tests.support.hub_server import hub_server

        with hub_server() as hub:
            hub.add_repo("tester/runs")
            hub.use(monkeypatch, tmp_path / "hf")
            yield Place(lambda: HubStore.open("tester/runs"))
    else:
        from pipeline.state.stores.s3.store import S3Store

        s3 = request.getfixturevalue("s3")
        bucket = s3.bucket()
        if request.param == "s3 in bad weather":
            request.getfixturevalue("proxy").storm(every=3)
        else:
            s3.use(monkeypatch)
        yield Place(
            lambda: S3Store(
                bucket,
                "some/prefix",
                upload_bytes=PART,
                download_bytes=200_000,
                sleep=lambda seconds: None,
            )
        )


@pytest.fixture
def store(place):
    return place.open()


# Reading and writing


def test_what_is_written_is_read_whether_bytes_a_view_or_a_file(store, tmp_path):
    source = tmp_path / "source"
    source.write_bytes(b"from a file")
    store.write("demo/bytes", b"a long first value, which the next one replaces")
    store.write("demo/bytes", b"plain")
    store.write("demo/view", memoryview(b"not this: a view")[10:])
    store.write("demo/file", source)
    assert store.read("demo/bytes") == b"plain"
    assert store.read("demo/view") == b"a view"
    assert store.read("demo/file") == b"from a file"


def test_folders_are_the_names_below_which_there_is_something(place):
    store = place.open()
    for key in ("demo/HEAD.json", "demo/metrics/1/a", "other/x/y/z", "loose", "demo-2/HEAD.json"):
        store.write(key, b"1")
    assert store.folders() == ["demo", "demo-2", "other"]  # also before a commit
    store.flush()
    assert place.open().folders() == ["demo", "demo-2", "other"]


def test_others_see_a_write_once_it_is_flushed(place):
    mine, theirs = place.open(), place.open()
    mine.write("demo/a", b"1")
    assert mine.read("demo/a") == b"1"
    mine.flush()
    assert theirs.read("demo/a") == b"1"
    mine.delete("demo/a")
    with pytest.raises(Missing):
        mine.read("demo/a")
    mine.flush()
    with pytest.raises(Missing):
        theirs.read("demo/a")


def test_others_see_writes_and_deletes_with_the_next_swap(place):
    mine, theirs = place.open(), place.open()
    mine.write("demo/old", b"1")
    mine.flush()
    mine.delete("demo/old")
    mine.write("demo/new", b"2")
    mine.compare_and_swap("demo/HEAD.json", b"{}", None)
    assert [entry.key for entry in theirs.list()] == ["demo/HEAD.json", "demo/new"]


def test_an_empty_value_is_a_value(store, tmp_path):
    store.write("demo/empty", b"")
    store.flush()
    assert store.read("demo/empty") == b""
    assert store.list() == [Entry("demo/empty", 0)]
    assert store.download("demo/empty", tmp_path / "empty") == sha256(b"")
    assert (tmp_path / "empty").read_bytes() == b""


@pytest.mark.parametrize("form", ["a view", "a file"])
def test_a_large_object_goes_up_and_comes_down_whole(place, tmp_path, form):
    data = content(5 * PART + 1)
    (tmp_path / "source").write_bytes(data)
    store = place.open()
    store.write("demo/model", memoryview(data) if form == "a view" else tmp_path / "source")
    store.flush()
    assert store.list("demo/") == [Entry("demo/model", len(data))]
    target = tmp_path / "target"
    assert place.open().download("demo/model", target) == sha256(data)
    assert target.read_bytes() == data
    assert store.read("demo/model", len(data)) == data


def test_several_threads_may_use_one_store(store, tmp_path):
    together = threading.Barrier(8, timeout=60)

    def use(number):
        data = content(number % 2 * 2 * PART + number)  # half of them go in several parts
        together.wait()
        store.write(f"demo/{number}", data)
        assert store.read(f"demo/{number}", len(data)) == data
        assert store.download(f"demo/{number}", tmp_path / str(number)) == sha256(data)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(use, range(8)))
    assert len(store.list("demo/")) == 8


@pytest.mark.parametrize("key", ["demo/nothing", "demo", "demo/HEAD.json/below"])
def test_reading_a_missing_key_names_the_key(store, key, tmp_path):
    store.write("demo/HEAD.json", b"{}")
    for read in (store.read, store.read_versioned, lambda key: store.download(key, tmp_path / "x")):
        with pytest.raises(Missing, match=key):
            read(key)
    assert list(tmp_path.glob("x*")) == []
    store.delete(key)
    assert store.read("demo/HEAD.json") == b"{}"


def test_a_download_replaces_the_file_whole_or_not_at_all(store, tmp_path):
    store.write("demo/model", b"new")
    folder = tmp_path / "target"
    folder.mkdir()
    target = folder / "model"
    target.write_bytes(b"much older content")
    with pytest.raises(Missing):
        store.download("demo/another", target)
    assert target.read_bytes() == b"much older content"
    for path in (target, tmp_path / "deep" / "down" / "model"):
        store.download("demo/model", path)
        assert path.read_bytes() == b"new"
        assert list(path.parent.iterdir()) == [path]


def test_a_key_on_this_machine_can_be_mapped_and_another_says_so(store):
    store.write("demo/model", b"x")
    local = store.local_path("demo/model")
    assert local is None or local.read_bytes() == b"x"


# Listing and deleting


def test_list_gives_keys_with_a_prefix_in_order_with_sizes(store):
    assert store.list() == []
    for key in ("demo/b/2", "demo/b/10", "demo/bc", "other/x"):
        store.write(key, key.encode())
    assert store.list("demo/b/") == [Entry("demo/b/10", 9), Entry("demo/b/2", 8)]
    assert [entry.key for entry in store.list("demo/b")] == ["demo/b/10", "demo/b/2", "demo/bc"]
    assert len(store.list()) == 4
    assert store.list("nothing/") == []


def test_deleting_twice_is_fine_and_touches_nothing_else(store):
    store.write("demo/checkpoints/1/model", b"x")
    store.write("demo/checkpoints/10/model", b"x")
    store.flush()
    store.delete("demo/checkpoints/1/model")
    store.delete("demo/checkpoints/1/model")
    store.flush()
    assert [entry.key for entry in store.list()] == ["demo/checkpoints/10/model"]


def test_sweeping_keeps_complete_objects(store, tmp_path):
    store.write("demo/model", content(3 * PART + 200_000))
    store.flush()
    store.sweep_unfinished("demo/", before=4e9)
    assert store.download("demo/model", tmp_path / "model") == sha256(content(3 * PART + 200_000))


# Keys


def test_every_legal_key_is_kept_as_it_is(store):
    keys = ["0/Z_a.b+c=d@e-f.json", "demo/1-1/x.tmp-1", "demo/a=b+c@d", "demo/a_b", "demo/a~b"]
    *legal, illegal = keys
    for key in legal:
        store.write(key, key.encode())
    store.flush()
    assert [entry.key for entry in store.list()] == sorted(legal)
    assert [store.read(key) for key in legal] == [key.encode() for key in legal]
    with pytest.raises(BadInput):
        store.write(illegal, b"x")


def test_illegal_keys_are_refused_by_everything(store, tmp_path):
    calls = [
        store.read,
        store.read_versioned,
        lambda key: store.write(key, b"x"),
        lambda key: store.compare_and_swap(key, b"x", None),
        store.delete,
        lambda key: store.download(key, tmp_path / "x"),
    ]
    dotted = ("../x", "a/../../x", "a/./x", "a/.x", ".x")
    for key in ("", "/x", "a//x", "a/", *dotted, "a\0b", "a\\b", "a b", "ä", "a?b", "a/-x"):
        for call in calls:
            with pytest.raises(BadInput, match="can't be a name in a store"):
                call(key)
    assert store.list() == []


def test_write_once_accepts_the_same_and_refuses_another_content(store):
    write_once(store, "demo/jobs/abc.yaml", b"steps: 1")
    write_once(store, "demo/jobs/abc.yaml", b"steps: 1")
    with pytest.raises(PionError, match=r"jobs/abc.yaml already has different content"):
        write_once(store, "demo/jobs/abc.yaml", b"steps: 2")
    assert store.read("demo/jobs/abc.yaml") == b"steps: 1"


# Compare-and-swap


def test_nothing_larger_than_its_limit_is_read_or_downloaded(store, tmp_path):
    store.write("demo/five", b"12345")
    store.flush()
    target = tmp_path / "target"
    assert store.read("demo/five", 5) == b"12345"
    assert store.download("demo/five", target, limit=5) == sha256(b"12345")
    target.unlink()
    for read in (
        lambda: store.read("demo/five", 4),
        lambda: store.download("demo/five", target, 4),
    ):
        with pytest.raises(Damaged, match="demo/five is damaged: it has more than 4 bytes"):
            read()
    assert not target.exists()


def test_compare_and_swap_refuses_any_version_but_the_present_one(store):
    with pytest.raises(Conflict):
        store.compare_and_swap("HEAD", b"0", "0" * 32)
    first = store.compare_and_swap("HEAD", b"1", None)
    with pytest.raises(Conflict):
        store.compare_and_swap("HEAD", b"2", None)
    assert store.read_versioned("HEAD") == (b"1", first)
    second = store.compare_and_swap("HEAD", b"2", first)
    assert second != first
    with pytest.raises(Conflict):
        store.compare_and_swap("HEAD", b"3", first)
    assert store.read_versioned("HEAD") == (b"2", second)
    assert [entry.key for entry in store.list()] == ["HEAD"]


def test_of_eight_racing_writers_one_creates_the_key(place):
    together = threading.Barrier(8, timeout=60)

    def race(number):
        store = place.open()
        together.wait()
        try:
            store.compare_and_swap("HEAD", b"%d" % number, None)
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(race, range(8)))
    assert won.count(True) == 1
    assert place.open().read("HEAD") == b"%d" % won.index(True)


def test_racing_swaps_lose_no_update(place):
    place.open().compare_and_swap("names", b"", None)

    def add_three(racer):
        store = place.open()
        for name in (b"%d.%d" % (racer, number) for number in range(3)):
            while True:
                names, version = store.read_versioned("names")
                if name in names.split():
                    break  # also after a conflict with writers who replaced it
                with contextlib.suppress(Conflict):
                    store.compare_and_swap("names", names + b" " + name, version)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add_three, range(4)))
    names = place.open().read("names").split()
    assert sorted(names) == [b"%d.%d" % (r, number) for r in range(4) for number in range(3)]


def test_a_read_and_its_version_belong_together_while_others_write(place):
    versions = {b"0": place.open().compare_and_swap("HEAD", b"0", None)}
    reader, seen, stop = place.open(), set(), threading.Event()

    def read_all_the_time():
        while not stop.is_set():
            seen.add(reader.read_versioned("HEAD"))

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read_all_the_time)
        writer, last = place.open(), b"0"
        for number in range(1, 9):
            data = b"%d" % number
            versions[data] = writer.compare_and_swap("HEAD", data, versions[last])
            last = data
        stop.set()
        reading.result(PATIENCE_SECONDS)
    seen.add(reader.read_versioned("HEAD"))
    assert (last, versions[last]) in seen
    assert seen <= set(versions.items())


# Runs


def test_of_four_simultaneous_claims_only_the_last_epoch_can_commit(place, time):
    together = threading.Barrier(4, timeout=60)

    def claim(number):
        state = RunState(place.open(), "demo", time.clock())
        together.wait()
        claim = claim_run(state, someone(), take_over=True)
        return claim.epoch, lambda: claim.set_job(f"job of {claim.epoch}")

    with ThreadPoolExecutor(4) as pool:
        claims = dict(pool.map(claim, range(4)))
    assert sorted(claims) == [1, 2, 3, 4]
    for epoch in (1, 2, 3):
        with pytest.raises(Fenced):
            claims[epoch]()
    claims[4]()
    head = RunState(place.open(), "demo").read()
    assert head.job == "job of 4"


def test_a_good_store_passes_the_probe_which_leaves_nothing(store):
    store.write("demo/HEAD.json", b"{}")
    store.flush()
    store.probe("demo/")
    store.probe("")
    assert store.list() == [Entry("demo/HEAD.json", 2)]
