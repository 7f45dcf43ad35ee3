"""Prepared data and bases in a folder are what was stored there, and each file is hashed once."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from pion.data.shard_writer import ShardWriter
from pion.data.shards import Manifest
from pion.errors import BadInput, PionError
from pipeline.machine import verified
from pipeline.machine.verified import checked_once
from pipeline.state.stores import FileStore
from pipeline.state.workspace import Workspace

SHARD = "0/train/shard_00000.npy"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pion" / verified.RECORDS


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path / "runs")


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that were hashed."""
    names: list[str] = []

    def note(folder: Path, name: str, size: int, sha256: str) -> str | None:
        names.append(name)
        return original(folder, name, size, sha256)

    original = verified.file_problem
    monkeypatch.setattr(verified, "file_problem", note)
    return names


def prepared(store: FileStore, key: str = "aa/bb", *, listed: bool = True) -> Workspace:
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


def roll(path: Path) -> None:
    """Change the token ids in place."""
    rows = np.load(path, mmap_mode="r+")
    rows[:] = np.roll(rows, 1, axis=1)
    rows.flush()


@pytest.mark.parametrize("listed", [True, False])
def test_changed_token_ids_are_refused_with_the_file_and_what_to_do(
    store: FileStore, listed: bool
) -> None:
    workspace = prepared(store, listed=listed)
    folder = workspace.bring("aa/bb")
    roll(folder / SHARD)
    os.utime(folder / SHARD, ns=(1, 1))
    with pytest.raises(PionError, match=rf"{SHARD} has been altered.*--redo prepare") as refused:
        Workspace(store, "_data").bring("aa/bb")
    assert not isinstance(refused.value, BadInput)


def test_a_changed_tokenizer_and_a_damaged_list_are_refused(store: FileStore) -> None:
    workspace = prepared(store)
    tokenizer = workspace.folder("aa/bb") / "tokenizer.json"
    tokenizer.write_text("[]")
    with pytest.raises(PionError, match=r"tokenizer.json has been altered"):
        workspace.bring("aa/bb")
    (tokenizer.parent / ".files.json").write_text("{")
    with pytest.raises(PionError, match=r"\.files\.json is damaged.*--redo prepare"):
        workspace.bring("aa/bb")


def test_each_file_is_hashed_once_on_a_machine_and_again_when_it_changes(
    store: FileStore, hashed: list[str], cache: Path
) -> None:
    workspace = prepared(store)
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
    (folder / SHARD).rename(folder / "other")
    (folder / SHARD).write_bytes(copied)
    os.utime(folder / SHARD, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    hashed.clear()
    workspace.bring("aa/bb")
    assert hashed == [SHARD]
    assert len(list(cache.glob("*.json"))) == 1


def test_records_of_folders_that_are_gone_are_removed(
    tmp_path: Path, cache: Path, hashed: list[str]
) -> None:
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
        with checked_once(tmp_path / name) as check:
            assert check("file", 0, empty) is None
        (tmp_path / "old" / "file").unlink(missing_ok=True)
        (tmp_path / "old").rmdir() if (tmp_path / "old").exists() else None
    assert len(list(cache.glob("*.json"))) == 1


def test_without_a_cache_folder_everything_is_hashed(
    store: FileStore, hashed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = prepared(store)
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    for _ in range(2):
        workspace.bring("aa/bb")
    assert hashed.count(SHARD) == 2
