"""Prepared data goes to a remote store file by file, and an interrupted upload is resumed. Files
get into another folder as links, or as copies where links are not possible."""

import os

import pytest

from pipeline.state.stores import StoreError
from pipeline.state.workspace import Workspace, files_below, link_or_copy
from tests.support.far_store import FarStore


class Remote(FarStore):
    """A bucket that fails after `most` writes."""

    def __init__(self, folder, most=1000):
        super().__init__(folder)
        self.most = most
        self.written = []

    def write(self, key, data):
        if len(self.written) == self.most:
            raise StoreError("write", key, "the network is down", outage=True)
        self.written.append(key.rpartition("/")[2])
        super().write(key, data)


def workspace(tmp_path, store):
    return Workspace(store, "_data", tmp_path / "machine")


@pytest.fixture
def names(tmp_path):
    """Write files to this machine, and return their names."""
    folder = workspace(tmp_path, Remote(tmp_path / "store")).folder("key")
    folder.mkdir(parents=True)
    found = [f"shard_{number:05d}.npy" for number in range(40)]
    for name in found:
        (folder / name).write_text(name)
    return found


def test_an_interrupted_upload_continues_with_the_missing_files(tmp_path, names):
    broken = Remote(tmp_path / "store", most=25)
    with pytest.raises(StoreError):
        workspace(tmp_path, broken).keep("key")
    kept = workspace(tmp_path, broken).folder("key") / ".kept.json"
    lines = kept.read_text()
    kept.write_text(lines[:-5])  # a process was killed while it wrote
    known = lines.count("shard_")

    whole = Remote(tmp_path / "store")
    workspace(tmp_path, whole).keep("key")
    assert 0 < known <= 25
    assert len(whole.written) == len(names) - (known - 1) + 1  # the torn line's file, and the list
    assert whole.written[-1] == "files.json"
    assert kept.read_text().count("shard_") == len(names) + 1, "each upload adds one line"

    again = Remote(tmp_path / "store")
    workspace(tmp_path, again).keep("key")
    assert again.written == ["files.json"]


def test_a_file_that_changed_or_is_gone_from_the_store_is_uploaded_again(tmp_path, names):
    workspace(tmp_path, Remote(tmp_path / "store")).keep("key")
    again = Remote(tmp_path / "store")
    (workspace(tmp_path, again).folder("key") / names[3]).write_text("changed content.")
    again.delete(f"_data/key/{names[5]}")
    workspace(tmp_path, again).keep("key")
    assert again.written == [names[3], names[5], "files.json"]


def refuse(*_):
    raise OSError("no links here")


@pytest.mark.parametrize("links", [True, False])
def test_a_file_is_linked_or_copied_over_what_was_there_and_nothing_else_is_left(
    tmp_path, monkeypatch, links
):
    if not links:
        monkeypatch.setattr(os, "link", refuse)
    (tmp_path / "new").write_bytes(b"new")
    (tmp_path / "old").write_bytes(b"old")
    for _ in range(2):  # the second time, it is the same file already
        link_or_copy(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old").read_bytes() == b"new"
    assert os.path.samefile(tmp_path / "new", tmp_path / "old") == links
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "old"]


def test_hidden_files_are_temporary_and_not_listed(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("b/two", "a", "b/.two.part"):
        (tmp_path / name).touch()
    assert [p.relative_to(tmp_path).as_posix() for p in files_below(tmp_path)] == ["a", "b/two"]
