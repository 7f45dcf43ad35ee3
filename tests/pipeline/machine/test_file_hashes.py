"""Prepared data and bases in a folder are what was stored there, and each file is hashed once.

So is a file that Pion did not write: the text to train on.
"""

import errno
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

from pion.data.shard_writer import ShardWriter
from pion.data.shards import Manifest
from pion.errors import BadInput, PionError
from pipeline.machine import file_hashes
from pipeline.machine.file_hashes import HASHES, hashed_once
from pipeline.state.stores import FileStore
from pipeline.state.workspace import Workspace

SHARD = "0/train/shard_00000.npy"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pion"


@pytest.fixture
def store(tmp_path):
    return FileStore(tmp_path / "runs")


@pytest.fixture
def hashed(monkeypatch):
    """The files that were hashed, by the last three parts of their paths."""
    names = []
    digest = hashlib.file_digest

    def note(file, name):
        names.append("/".join(Path(os.readlink(f"/proc/self/fd/{file.fileno()}")).parts[-3:]))
        return digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", note)
    return names


def prepared(store, key="aa/bb", *, listed=True):
    """Put prepared data into the store; without a list, as if copied from another store."""
    workspace = Workspace(store, "_data")
    folder = workspace.folder(key) / "0" / "train"
    writer = ShardWriter(folder, seq_len=4, vocab_size=90, rows_per_shard=8)
    writer.append_rows(np.arange(32).reshape(8, 4))
    Manifest("tokens", 4, 90, writer.finish()).write(folder / "manifest.json")
    (workspace.folder(key) / "tokenizer.json").write_text("{}")
    if listed:
        workspace.keep(key)
    return workspace


def roll(path):
    """Change the token ids in place."""
    rows = np.load(path, mmap_mode="r+")
    rows[:] = np.roll(rows, 1, axis=1)
    rows.flush()


@pytest.mark.parametrize("listed", [True, False])
def test_changed_token_ids_are_refused_with_the_file_and_what_to_do(store, listed):
    workspace = prepared(store, listed=listed)
    folder = workspace.bring("aa/bb")
    roll(folder / SHARD)
    os.utime(folder / SHARD, ns=(1, 1))
    with pytest.raises(PionError, match=rf"{SHARD} has been altered.*--redo prepare") as refused:
        Workspace(store, "_data").bring("aa/bb")
    assert not isinstance(refused.value, BadInput)


def test_a_changed_tokenizer_and_a_damaged_list_are_refused(store):
    workspace = prepared(store)
    tokenizer = workspace.folder("aa/bb") / "tokenizer.json"
    tokenizer.write_text("[]")
    with pytest.raises(PionError, match=r"tokenizer.json has been altered"):
        workspace.bring("aa/bb")
    (tokenizer.parent / ".files.json").write_text("{")
    with pytest.raises(PionError, match=r"\.files\.json is damaged.*--redo prepare"):
        workspace.bring("aa/bb")


def test_a_file_that_the_list_does_not_have_is_refused(store):
    workspace = prepared(store)
    files = workspace.folder("aa/bb") / ".files.json"
    known = json.loads(files.read_bytes())
    del known["files"]["tokenizer.json"]
    files.write_text(json.dumps(known))
    with pytest.raises(PionError, match=r"has no hash of tokenizer\.json.*--redo prepare"):
        workspace.bring("aa/bb")


def test_a_copy_of_a_remote_store_has_the_list_of_that_store(store):
    workspace = prepared(store)
    folder = workspace.folder("aa/bb")
    (folder / ".files.json").rename(folder / "files.json")
    assert workspace.bring("aa/bb") == folder
    (folder / "tokenizer.json").write_text("[]")
    with pytest.raises(PionError, match=r"tokenizer.json has been altered"):
        workspace.bring("aa/bb")


def test_each_file_is_hashed_once_on_a_machine_and_again_when_it_changes(store, hashed, cache):
    workspace = prepared(store)
    hashed.clear()
    folder = workspace.bring("aa/bb")
    assert hashed.count(SHARD) == 1
    hashed.clear()
    assert Workspace(store, "_data").bring("aa/bb") == folder  # as another worker or start
    assert hashed == []
    status = (folder / SHARD).stat()
    os.utime(folder / SHARD, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    workspace.bring("aa/bb")
    assert hashed == [SHARD]
    copied = (folder / SHARD).read_bytes()  # the same content as another file
    (folder / SHARD).rename(store.folder / "other")
    (folder / SHARD).write_bytes(copied)
    os.utime(folder / SHARD, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    hashed.clear()
    workspace.bring("aa/bb")
    assert hashed == [SHARD]
    assert len(list(cache.glob("*.json"))) == 1


def test_without_a_cache_folder_everything_is_hashed(store, hashed, monkeypatch):
    workspace = prepared(store)
    hashed.clear()
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    for _ in range(2):
        workspace.bring("aa/bb")
    assert hashed.count(SHARD) == 2


# ---------------------------------------------------------------- hashes of other files

OLD = 10**18


@pytest.fixture
def record(cache, monkeypatch):
    """The record of hashes. Files that a test has just written are remembered, too."""
    monkeypatch.setattr(file_hashes, "JUST_CHANGED", -1e6)
    return cache / HASHES


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text").write_text("river")
    os.utime(tmp_path / "text", ns=(OLD, OLD))
    return tmp_path / "text"


@pytest.fixture
def read(monkeypatch):
    """What was read to be hashed."""
    contents = []

    def note(file, name):
        contents.append(file.read())
        return hashlib.new(name, contents[-1])

    monkeypatch.setattr(file_hashes.hashlib, "file_digest", note)
    return contents


def check_hash(path):
    """Hash as a new start does."""
    with hashed_once() as sha256_of:
        found = sha256_of(path)
    assert found == hashlib.sha256(path.read_bytes()).hexdigest()


def write_again(path):
    path.write_text("rider")


def write_again_and_set_the_time_back(path):
    path.write_text("rider")
    os.utime(path, ns=(OLD, OLD))


def replace_and_set_the_time_back(path):
    path.with_name("other").write_text("rider")
    os.utime(path.with_name("other"), ns=(OLD, OLD))
    path.with_name("other").replace(path)


@pytest.mark.usefixtures("record")
@pytest.mark.parametrize(
    "change", [write_again, write_again_and_set_the_time_back, replace_and_set_the_time_back]
)
def test_a_file_is_read_once_and_again_after_a_change_that_keeps_its_size(text, read, change):
    check_hash(text)
    check_hash(text)
    assert read == [b"river"]
    change(text)
    check_hash(text)
    check_hash(text)
    assert read == [b"river", b"rider"]


@pytest.mark.parametrize("seconds", [-1.0, 0.0, 1e6], ids=["a second ago", "now", "in the future"])
def test_a_file_that_has_just_changed_is_not_remembered(text, cache, monkeypatch, seconds):
    status = text.stat()
    os.utime(text, ns=(OLD, OLD + 10**9))
    monkeypatch.setattr(file_hashes.time, "time", lambda: status.st_ctime - seconds)
    check_hash(text)
    assert not (cache / HASHES).exists()
    monkeypatch.setattr(file_hashes.time, "time", lambda: text.stat().st_ctime + 3.0)
    check_hash(text)
    assert (cache / HASHES).exists()


def test_a_file_that_changes_while_it_is_hashed_is_not_remembered(text, record, monkeypatch):
    digest = hashlib.file_digest

    def slowly(file, name):
        found = digest(file, name)
        text.write_text("rider")
        return found

    monkeypatch.setattr(file_hashes.hashlib, "file_digest", slowly)
    with hashed_once() as sha256_of:
        assert sha256_of(text) == hashlib.sha256(b"river").hexdigest()
    assert not record.exists()


def damages(good):
    ((key, entry),) = json.loads(good).items()
    return {
        "empty": b"",
        "zeros": bytes(len(good)),
        "cut short": good[:-9].encode(),
        "not text": b"\xff\xfe",
        "brackets": b"[" * 100_000,
        "a list": b"[]",
        "no stamps": json.dumps({key: ["x"]}).encode(),
        "half a hash": json.dumps({key: entry[:-1]}).encode(),
        "no hash": json.dumps({key: entry[:-64] + "x" * 64}).encode(),
    }


@pytest.mark.parametrize("damage", list(damages('{"a": "b"}')))
def test_a_damaged_record_is_replaced(text, record, read, damage):
    check_hash(text)
    good = record.read_text()
    record.write_bytes(damages(good)[damage])
    check_hash(text)
    assert len(read) == 2
    assert record.read_text() == good


def take_its_place(record, monkeypatch):
    (record / "folder").mkdir(parents=True)


def forbid_the_folder(record, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")


def give_it_to_another_user(record, monkeypatch):
    owner = os.geteuid()
    record.parent.mkdir(parents=True)
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)


def fill_the_disk(record, monkeypatch):
    def full(known, file):
        file.write("{")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(file_hashes.json, "dump", full)


@pytest.mark.parametrize(
    "trouble", [take_its_place, forbid_the_folder, give_it_to_another_user, fill_the_disk]
)
def test_without_a_record_each_start_hashes_and_none_fails(
    text, record, read, monkeypatch, trouble
):
    trouble(record, monkeypatch)
    check_hash(text)
    check_hash(text)
    assert len(read) == 2
    assert not record.is_file()
    assert not record.with_suffix(".part").exists()


@pytest.mark.usefixtures("record")
def test_two_starts_at_once_remember_the_files_of_both(text, read):
    other = text.with_name("other")
    other.write_text("other")
    with hashed_once() as mine:
        with hashed_once() as theirs:
            theirs(other)
        mine(text)
    check_hash(text)
    check_hash(other)
    assert read == [b"other", b"river"]


def test_a_start_that_is_interrupted_remembers_what_it_has_hashed(text, record, read):
    def interrupted():
        with hashed_once() as sha256_of:
            sha256_of(text)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    check_hash(text)
    assert len(read) == 1
    assert record.stat().st_mode & 0o777 == 0o600


def test_the_files_used_last_are_remembered(text, record, read, monkeypatch):
    monkeypatch.setattr(file_hashes, "MOST_HASHES", 2)
    others = [text.with_name(name) for name in "abc"]
    for path in others:
        path.write_text(path.name)
        check_hash(path)
    assert len(json.loads(record.read_text())) == 2
    check_hash(others[1])
    check_hash(others[2])
    assert len(read) == 3
    check_hash(others[0])
    assert len(read) == 4
