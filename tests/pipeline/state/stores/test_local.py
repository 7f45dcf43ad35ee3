"""The local store: dying writers, disks that refuse, and names of stores.

Tests that apply to all stores are in test_base_conformance.py.
"""

import fcntl
import mmap
import os
import tempfile
from pathlib import Path

import pytest

from pion.errors import BadInput
from pipeline.state.stores import FileStore, Missing, StoreError, open_store, split_run
from pipeline.state.stores.local import read_directly, write_directly
from tests.support.waiting import read_until, rest_of


def hidden_files(store):
    return [path.name for path in store.folder.rglob(".tmp-*")]


def test_deleting_leaves_no_empty_folders(store):
    store.write("demo/checkpoints/pretrain/1-1/model", b"x")
    store.write("demo/HEAD", b"x")
    store.delete("demo/checkpoints/pretrain/1-1/model")
    assert [path.name for path in (store.folder / "demo").iterdir()] == ["HEAD"]


@pytest.mark.parametrize("racing", [4, pytest.param(12, marks=pytest.mark.soak)])
def test_racing_processes_lose_no_swap(store, start, racing):
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
    racers = [start(increment, store.folder) for _ in range(racing)]
    for racer in racers:
        read_until(racer, "ready")
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    assert [racer.wait(60) for racer in racers] == [0] * racing
    assert int(store.read("count")) == 5 * racing


@pytest.mark.parametrize("before", [None, b"the old checkpoint"])
def test_a_writer_killed_in_the_middle_leaves_the_old_content(store, start, tmp_path, before):
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
        writer.wait(60)
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


def test_a_file_that_does_not_fit_is_refused_with_the_reason_and_leaves_nothing(store, start):
    store.write("demo/model", b"old")
    write = """
import resource, sys
from pipeline.state.stores import FileStore, StoreError
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    FileStore(sys.argv[1]).write("demo/model", bytes(200_000))
except StoreError as error:
    print(error.where, error.reason)
"""
    output = rest_of(start(write, store.folder))
    assert output.startswith(f"{store.folder}/demo/model the file would be larger")
    assert store.read("demo/model") == b"old"
    assert hidden_files(store) == []


@pytest.fixture
def locked_folder():
    """A folder that this process can read but not write, even if the tests run as root."""
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


def test_an_unwritable_folder_is_named_with_the_reason(locked_folder):
    store = FileStore(locked_folder)
    with pytest.raises(StoreError, match=f"Cannot write {locked_folder}/HEAD: no permission"):
        store.write("HEAD", b"x")
    with pytest.raises(StoreError, match="no permission"):
        store.compare_and_swap("demo/HEAD", b"x", None)
    assert store.list() == []


def test_a_store_below_a_file_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(BadInput, match=r"notes.txt is a file, not a folder"):
        open_store(str(tmp_path / "notes.txt"))
    with pytest.raises(StoreError, match="part of the path is a file"):
        FileStore(tmp_path / "notes.txt" / "runs").write("HEAD", b"x")


@pytest.mark.parametrize(
    ("target", "why"),
    [("nowhere", "a link that leads nowhere"), ("runs", "a link that leads to itself")],
)
def test_a_store_that_is_a_broken_link_is_refused(tmp_path, target, why):
    (tmp_path / "runs").symlink_to(target)
    with pytest.raises(StoreError, match=why):
        FileStore(tmp_path / "runs").write("demo/HEAD.json", b"")


def test_a_store_is_a_path_or_a_file_url_and_is_not_created_by_opening_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert open_store("runs").url == f"file://{tmp_path}/runs"
    assert open_store(f"file://{tmp_path}/runs").url == open_store("runs").url
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "url", ["ftp://host/runs", "file://relative", "s4://bucket", "", "file://"]
)
def test_a_store_that_cannot_be_opened_names_the_valid_forms(url):
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
        ("s3://bucket/demo/", ("s3://bucket", "demo")),
        ("s3://demo", ("s3://", "demo")),
        ("hf://user/repo/demo", ("hf://user/repo", "demo")),
        ("hf://datasets/user/repo/demo/", ("hf://datasets/user/repo", "demo")),
    ],
)
def test_a_run_is_a_store_and_a_name(run, parts):
    assert split_run(run) == parts


@pytest.mark.parametrize("run", ["", "runs/..", "runs/.hidden", "my run", "runs/-x", "x" * 101])
def test_a_run_name_must_be_legal_in_every_store(run):
    with pytest.raises(BadInput, match="can't be the name of a run"):
        split_run(run)


@pytest.mark.parametrize("name", ["_data", "_bases"])
def test_no_run_has_the_name_of_what_runs_share(name):
    with pytest.raises(BadInput, match="_data, _bases and _ladders are taken"):
        split_run(f"runs/{name}")


def test_a_store_that_looks_like_an_option_is_refused():
    with pytest.raises(BadInput, match=r"written \./-x"):
        open_store("-x")


# ---------------------------------------------------------------- direct access to large files


SIZES = [0, 1, 4095, 4096, 4097, 3 * 4096 + 5, (16 << 20) + 4096 + 1]
NO_DIRECT_ACCESS = Path("/proc/self/status")


def aligned(size):
    """Return random bytes that are aligned to a page."""
    memory = mmap.mmap(-1, max(size, 1))
    memory[:size] = os.urandom(size)
    return memoryview(memory)[:size]


def read(path):
    return b"".join(piece.tobytes() for piece in read_directly(path))


@pytest.mark.parametrize("size", SIZES)
def test_what_is_written_directly_is_whole_pages_and_the_rest_follows(tmp_path, size):
    data = aligned(size)
    with (tmp_path / "file").open("xb") as file:
        written = write_directly(file.fileno(), data)
        assert written in (0, size // 4096 * 4096), "0 where the file system has no direct access"
        assert not fcntl.fcntl(file.fileno(), fcntl.F_GETFL) & os.O_DIRECT
        file.write(data[written:])
    assert (tmp_path / "file").read_bytes() == data.tobytes()
    assert read(tmp_path / "file") == data.tobytes()


def test_memory_that_is_not_aligned_is_left_to_the_cache_or_written_right(tmp_path):
    data = aligned(3 * 4096 + 1)[1:]
    with (tmp_path / "file").open("xb") as file:
        written = write_directly(file.fileno(), data)
        file.write(data[written:])
    assert read(tmp_path / "file") == data.tobytes()


def test_a_file_system_without_direct_access_is_read_through_the_cache():
    with pytest.raises(OSError, match="Invalid argument"):
        os.open(NO_DIRECT_ACCESS, os.O_RDONLY | os.O_DIRECT)
    assert read(NO_DIRECT_ACCESS).startswith(b"Name:")


def test_other_errors_are_raised(tmp_path):
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "missing")
    with (tmp_path / "file").open("xb") as file:
        descriptor = os.open(file.name, os.O_RDONLY)
        with pytest.raises(OSError, match="Bad file descriptor"):
            write_directly(descriptor, aligned(4096))
        os.close(descriptor)


@pytest.mark.parametrize("size", [32 << 20, (32 << 20) + 1])
def test_a_store_keeps_large_objects_as_they_are(tmp_path, size):
    data = aligned(size)
    store = FileStore(tmp_path)
    store.write("a/large", data)
    store.write("b/large", data.tobytes())
    assert store.read("a/large", size) == store.read("b/large", size) == data.tobytes()
