"""Data that is not finished: share what there is of it, and continue it on another machine.

The files are uploaded where the finished data will be, so that they are uploaded once. They are in
no list there, so nobody takes them for finished data. Which of them can be used together, only
those who write them know: a file is uploaded after all the files that it needs.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pion.data.arrays import sha256_file
from pion.errors import BadInput, PionError
from pion.untrusted import read_json
from pipeline.state.head import SHARED, data_key
from pipeline.state.stores import Store, StoreError
from pipeline.state.stores.base import Entry, check_key
from pipeline.state.workspace import FILES, Workspace, files_below

# The folder of what is kept of pieces, of each source.
PIECES = "pieces"
_TRANSFERS = 4


class EarlyUpload:
    """Uploads finished files below `own` while others are prepared, one after the other.

    An upload that fails is no error: `complete` uploads what is missing.
    """

    def __init__(self, store: Store, fingerprint: str, folder: str, own: Path) -> None:
        self._store, self._own = store, own
        self._workspace = Workspace(store, SHARED)
        self._key = f"{fingerprint}/{folder}"
        self._paths: queue.Queue[Path | None] = queue.Queue()
        self._closing = False
        self._thread: threading.Thread | None = None
        # Uploads that wait for their commit, if the store has commits, and when the last one was.
        self._uncommitted: dict[str, str] = {}
        self._committed = time.monotonic()

    def finished(self, path: Path) -> None:
        """Upload a file. Before the first one, upload what a process before has not uploaded, and
        the tokenizer."""
        if not self._workspace.remote:
            return
        if self._thread is None:
            kept = self._workspace.kept(self._key)
            earlier = sorted(files_below(self._own), key=self._order)
            for one in earlier:
                if one != path and one.relative_to(self._own).as_posix() not in kept:
                    self._paths.put(one)
            self._thread = threading.Thread(target=self._upload, name="early upload", daemon=True)
            self._thread.start()
        self._paths.put(path)

    def _order(self, path: Path) -> tuple[object, ...]:
        """Return what sorts files before those that need them: those of the folder itself, of the
        pieces, and of the shards, each shard before its record."""
        name = path.relative_to(self._own)
        return (
            len(name.parts) > 1,
            PIECES not in name.parts,
            name.parts[:-1],
            path.name.partition(".")[0],
            path.suffix == ".json",
        )

    def close(self) -> None:
        """Finish the upload of one file, and leave the others to `complete`."""
        self._closing = True
        if self._thread is not None:
            self._paths.put(None)
            self._thread.join()

    def _upload(self) -> None:
        while (path := self._paths.get()) is not None and not self._closing:
            with contextlib.suppress(PionError, OSError):
                name, sha256 = path.relative_to(self._own).as_posix(), sha256_file(path)
                self._store.write(f"{SHARED}/{self._key}/{name}", path)
                self._uncommitted[name] = sha256
                self._commit()

    def _commit(self) -> None:
        """Record what was uploaded, once everybody can see it."""
        if self._store.commits:
            if time.monotonic() - self._committed < self._store.save_seconds:
                return
            self._store.flush()
            self._committed = time.monotonic()
        self._workspace.record_kept(self._key, self._uncommitted)
        self._uncommitted = {}


def bring_unfinished(store: Store, fingerprint: str, own: Path) -> int:
    """Download what another process has prepared of some data into the folder `own`, if that is
    more than is there. Return how many bytes that were.

    Shards with another hash than that of their record are left out. Raises StoreError.
    """
    if not Workspace(store, SHARED).remote:
        return 0
    entries = _unfinished(store, fingerprint)
    size = sum(entry.size for entry in entries)
    if size <= sum(path.stat().st_size for path in files_below(own)):
        return 0
    records = [entry for entry in entries if entry.key.endswith(".json")]
    others = [entry for entry in entries if not entry.key.endswith(".json")]
    with ThreadPoolExecutor(_TRANSFERS) as pool:
        for group in (records, others):  # a record has the hash of its shard
            list(pool.map(lambda entry: _download(store, entry, own), group))
    return size


def delete_pieces(store: Store, fingerprint: str, folder: str) -> None:
    """Delete what was kept of the pieces of finished data. Raises StoreError."""
    for entry in store.list(f"{data_key(fingerprint, folder)}/"):
        if f"/{PIECES}/" in entry.key:
            store.delete(entry.key)


def _unfinished(store: Store, fingerprint: str) -> Sequence[Entry]:
    """Return the files of the folder that has most of some data, and is not finished."""
    folders: dict[str, list[Entry]] = {}
    for entry in store.list(f"{SHARED}/{fingerprint}/"):
        if len(parts := entry.key.split("/")) > 3:
            folders.setdefault(parts[2], []).append(entry)
    open_ones = [
        entries
        for entries in folders.values()
        if not any(entry.key.endswith(f"/{FILES}") for entry in entries)
    ]
    return max(open_ones, key=lambda entries: sum(e.size for e in entries), default=[])


def _download(store: Store, entry: Entry, own: Path) -> None:
    name = check_key("/".join(entry.key.split("/")[3:]))
    path = own / name
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        sha256 = store.download(entry.key, path, limit=entry.size)
    except StoreError:
        raise
    except PionError:  # deleted meanwhile, or replaced
        return
    if path.suffix == ".npy" and sha256 != _recorded(path):
        path.unlink()


def _recorded(path: Path) -> str | None:
    """Return the hash of a shard, or of its flags, by its record; None if there is no record."""
    shard = path.with_name(path.name.replace(".flags.npy", ".npy"))
    try:
        found = read_json(shard.with_suffix(".json"))["shard"]
        return str(found["sha256" if shard == path else "flags_sha256"])
    except (OSError, BadInput, KeyError, TypeError):
        return None
