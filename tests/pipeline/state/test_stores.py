"""The local store: all or nothing, one winner, and errors that say what to do."""

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pion.errors import BadInput, PionError
from pipeline.state.stores import (
    Conflict,
    Entry,
    FileStore,
    Missing,
    StoreError,
    open_store,
    split_run,
    write_once,
)

Start = Callable[..., subprocess.Popen[str]]


def hidden_files(store: FileStore) -> list[str]:
    return [path.name for path in store.folder.rglob(".tmp-*")]


def test_what_is_written_is_read_whether_bytes_a_view_or_a_file(
    store: FileStore, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"from a file")
    store.write("demo/bytes", b"plain")
    store.write("demo/view", memoryview(b"a view"))
    store.write("demo/file", source)
    assert store.read("demo/bytes") == b"plain"
    assert store.read("demo/view") == b"a view"
    assert store.read("demo/file") == b"from a file"
    local = store.local_path("demo/file")
    assert local is not None
    assert local.read_bytes() == b"from a file"


@pytest.mark.parametrize("key", ["demo/nothing", "demo", "demo/HEAD.json/below"])
def test_reading_what_is_not_there_names_it(store: FileStore, key: str, tmp_path: Path) -> None:
    store.write("demo/HEAD.json", b"{}")
    for read in (store.read, store.read_versioned, lambda key: store.download(key, tmp_path / "x")):
        with pytest.raises(Missing, match=key):
            read(key)
    store.delete(key)
    assert store.read("demo/HEAD.json") == b"{}"


def test_list_gives_keys_with_a_prefix_in_order_with_sizes(store: FileStore) -> None:
    assert store.list() == []
    for key in ("demo/b/2", "demo/b/10", "demo/bc", "other/x"):
        store.write(key, key.encode())
    assert store.list("demo/b/") == [Entry("demo/b/10", 9), Entry("demo/b/2", 8)]
    assert [entry.key for entry in store.list("demo/b")] == ["demo/b/10", "demo/b/2", "demo/bc"]
    assert len(store.list()) == 4
    assert store.list("nothing/") == []


def test_deleting_twice_is_fine_and_leaves_no_empty_folders(store: FileStore) -> None:
    store.write("demo/checkpoints/pretrain/1-1/model", b"x")
    store.write("demo/HEAD", b"x")
    store.delete("demo/checkpoints/pretrain/1-1/model")
    store.delete("demo/checkpoints/pretrain/1-1/model")
    assert [path.name for path in (store.folder / "demo").iterdir()] == ["HEAD"]


def test_a_download_replaces_the_file_whole(store: FileStore, tmp_path: Path) -> None:
    store.write("demo/model", b"new")
    target = tmp_path / "deep" / "model"
    target.parent.mkdir()
    target.write_bytes(b"much older content")
    store.download("demo/model", target)
    assert target.read_bytes() == b"new"


def test_compare_and_swap_refuses_any_version_but_the_present_one(store: FileStore) -> None:
    with pytest.raises(Conflict):
        store.compare_and_swap("HEAD", b"1", "a version of something that is not there")
    first = store.compare_and_swap("HEAD", b"1", None)
    with pytest.raises(Conflict):
        store.compare_and_swap("HEAD", b"2", None)
    second = store.compare_and_swap("HEAD", b"2", first)
    with pytest.raises(Conflict):
        store.compare_and_swap("HEAD", b"3", first)
    assert store.read_versioned("HEAD") == (b"2", second)
    assert [entry.key for entry in store.list()] == ["HEAD"]


def test_twelve_racing_processes_lose_no_swap(store: FileStore, start: Start) -> None:
    increment = """
import sys
from pipeline.state.stores import Conflict, FileStore
store = FileStore(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
done = 0
while done < 5:
    data, version = store.read_versioned("count")
    try:
        store.compare_and_swap("count", str(int(data) + 1).encode(), version)
        done += 1
    except Conflict:
        pass
"""
    store.write("count", b"0")
    racers = [start(increment, store.folder) for _ in range(12)]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("go\n")
        racer.stdin.flush()
    assert [racer.wait() for racer in racers] == [0] * 12
    assert store.read("count") == b"60"


@pytest.mark.parametrize("before", [None, b"the old checkpoint"])
def test_a_writer_killed_in_the_middle_leaves_what_was_there(
    store: FileStore, start: Start, tmp_path: Path, before: bytes | None
) -> None:
    if before is not None:
        store.write("demo/model", before)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    write = """
import sys, pathlib
from pipeline.state.stores import FileStore
FileStore(sys.argv[1]).write("demo/model", pathlib.Path(sys.argv[2]))
"""
    writer = start(write, store.folder, pipe)
    with open(pipe, "wb", buffering=0) as feed:
        feed.write(b"x" * (3 << 20))  # returns once the writer has read most of it
        writer.kill()
        writer.wait()
    (leftover,) = hidden_files(store)

    if before is None:
        with pytest.raises(Missing):
            store.read("demo/model")
        assert store.list() == []
    else:
        assert store.read("demo/model") == before
        assert len(store.list()) == 1

    path = next(store.folder.rglob(leftover))
    age = path.stat().st_mtime
    assert store.sweep_unfinished("demo/", before=age) == 0
    assert store.sweep_unfinished("demo/", before=age + 1) == 1
    assert hidden_files(store) == []


def test_a_file_that_does_not_fit_is_refused_with_the_reason_and_leaves_nothing(
    store: FileStore, start: Start
) -> None:
    store.write("demo/model", b"old")
    write = """
import resource, sys
from pipeline.state.stores import FileStore, StoreError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    FileStore(sys.argv[1]).write("demo/model", bytes(200_000))
except StoreError as error:
    print(error.exit_code, error.where, error.reason)
"""
    output, _ = start(write, store.folder).communicate()
    assert output.startswith(f"74 {store.folder}/demo/model the file would be larger")
    assert store.read("demo/model") == b"old"
    assert hidden_files(store) == []


@pytest.fixture
def locked_folder() -> Iterator[Path]:
    """A folder this process may read but not write, also when the tests run as root."""
    with tempfile.TemporaryDirectory() as outer:
        folder = Path(outer) / "runs"
        folder.mkdir()
        os.chmod(outer, 0o755)
        os.chmod(folder, 0o555)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            yield folder
        finally:
            os.seteuid(user)
            os.chmod(folder, 0o755)


def test_an_unwritable_folder_is_named_with_the_reason(locked_folder: Path) -> None:
    store = FileStore(locked_folder)
    with pytest.raises(StoreError, match=f"Cannot write {locked_folder}/HEAD: no permission"):
        store.write("HEAD", b"x")
    with pytest.raises(StoreError, match="no permission"):
        store.compare_and_swap("demo/HEAD", b"x", None)
    assert store.list() == []


def test_a_store_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(BadInput, match=r"notes.txt is a file, not a folder"):
        open_store(str(tmp_path / "notes.txt"))
    with pytest.raises(StoreError, match="part of the path is a file"):
        FileStore(tmp_path / "notes.txt" / "runs").write("HEAD", b"x")


@pytest.mark.parametrize(
    "key",
    ["", "/etc/passwd", "../x", "demo/../../x", "demo//x", "demo/.tmp-1", "a\0b", "a\\b", "demo/"],
)
def test_keys_cannot_leave_the_store_or_touch_its_own_files(store: FileStore, key: str) -> None:
    with pytest.raises(BadInput, match="can't be a name in a store"):
        store.write(key, b"x")
    assert not store.folder.exists()


def test_write_once_accepts_the_same_and_refuses_another_content(store: FileStore) -> None:
    write_once(store, "demo/jobs/abc.yaml", b"steps: 1")
    write_once(store, "demo/jobs/abc.yaml", b"steps: 1")
    with pytest.raises(PionError, match=r"jobs/abc.yaml already holds something else"):
        write_once(store, "demo/jobs/abc.yaml", b"steps: 2")
    assert store.read("demo/jobs/abc.yaml") == b"steps: 1"


def test_a_store_is_a_path_or_a_file_url_and_is_not_created_by_opening_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_store("runs").url == f"file://{tmp_path}/runs"
    assert open_store(f"file://{tmp_path}/runs").url == open_store("runs").url
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "url", ["ftp://host/runs", "file://relative", "s4://bucket", "", "file://"]
)
def test_a_store_that_cannot_be_opened_says_what_can(url: str) -> None:
    with pytest.raises(BadInput, match="file:///"):
        open_store(url)


@pytest.mark.parametrize(
    ("run", "parts"),
    [
        ("demo", ("runs", "demo")),
        ("here/demo", ("here", "demo")),
        ("/abs/here/demo/", ("/abs/here", "demo")),
        ("/demo", ("/", "demo")),
        ("file:///abs/demo", ("file:///abs", "demo")),
        ("file:///demo", ("file:///", "demo")),
        ("s3://bucket/prefix/demo", ("s3://bucket/prefix", "demo")),
        ("s3://demo", ("s3://", "demo")),
    ],
)
def test_a_run_is_a_store_and_a_name(run: str, parts: tuple[str, str]) -> None:
    assert split_run(run) == parts


@pytest.mark.parametrize("run", ["", "runs/..", "runs/.hidden", "my run", "runs/-x", "x" * 101])
def test_a_run_name_must_be_legal_in_every_store(run: str) -> None:
    with pytest.raises(BadInput, match="can't be the name of a run"):
        split_run(run)
