"""Data that is not finished: share what there is of it, and continue it on another machine.

The files are uploaded where the finished data will be, so that they are uploaded once. They are in
no list there, so nobody takes them for finished data. Data with one fingerprint has the same files
wherever it is prepared, so a machine may continue with files of several others. What is missing
among them is prepared again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from pion.errors import BadInput, PionError
from pion.files import sha256_file
from pion.untrusted import read_json
from pipeline.state.head import SHARED, data_key
from pipeline.state.stores import Store, StoreError
from pipeline.state.stores.base import Entry, check_key
from pipeline.state.workspace import FILES, Workspace, files_below

# The folder of what is kept of pieces, of each source.
PIECES = "pieces"
# A folder with this file is finished (prepared.py).
DATASET = "dataset.json"
_TRANSFERS = 4
# While so many files more are finished than are in the store, no other work is finished. With
# pieces and shards of the usual size, these are about five pieces.
MOST_WAITING = 12
# After an upload has failed, the next one begins so many seconds later.
RETRY_SECONDS = 10.0


class EarlyUpload:
    """Uploads finished files below `own` while others are prepared, one after the other.

    An upload that fails is no error. It is tried again later, and `complete` uploads what is
    missing.

    Attributes:
        waits: whether `wait` waits now.
    """

    def __init__(self, store: Store, fingerprint: str, folder: str, own: Path) -> None:
        self._store, self._fingerprint, self._own = store, fingerprint, own
        self._workspace = Workspace(store, SHARED)
        self._key = f"{fingerprint}/{folder}"
        self._thread: threading.Thread | None = None
        # Files that are nowhere in the store yet, and then those that another process has put
        # there. A file that only waits for its commit is not counted, though nobody else sees it.
        self._missing: list[Path] = []
        self._elsewhere: list[Path] = []
        self._fails = self._closing = self.waits = False
        self._changed = threading.Condition()
        # Uploads that wait for their commit, if the store has commits, and when the last one was.
        self._uncommitted: dict[str, str] = {}
        self._committed = time.monotonic()

    def finished(self, path: Path) -> None:
        """Upload a file, after what an earlier process has finished and nobody has uploaded.

        The tokenizer is uploaded before all others, because they are of no use without it.
        """
        if not self._workspace.remote:
            return
        if self._thread is None:
            uploaded = self._workspace.kept(self._key)
            earlier = sorted(
                files_below(self._own), key=lambda p: (p.parent != self._own, p.stat().st_mtime_ns)
            )
            self._missing = [p for p in earlier if p != path and self._name(p) not in uploaded]
            self._thread = threading.Thread(target=self._upload, name="early upload", daemon=True)
            self._thread.start()
        with self._changed:
            self._missing.append(path)
            self._changed.notify_all()

    def wait(self) -> None:
        """Wait while more than MOST_WAITING finished files are not in the store. So little is done
        again if this machine is lost. On the Hub, what was uploaded since the last commit is done
        again, too.

        While the store can't be reached, nobody waits: that would only lose more time.
        """
        with self._changed:
            while len(self._missing) > MOST_WAITING and not self._fails and not self._closing:
                self.waits = True
                self._changed.wait()
            self.waits = False

    def stop(self) -> None:
        """Begin no other upload, and don't wait for the one that is under way."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()

    def close(self) -> None:
        """Finish the upload of one file, and leave the others to `complete`."""
        self.stop()
        if self._thread is not None:
            self._thread.join()

    def _name(self, path: Path) -> str:
        return path.relative_to(self._own).as_posix()

    def _upload(self) -> None:
        try:
            while not self._closing and not self._try(self._set_apart):
                pass
            while files := self._next():
                path = files[0]
                done = _size(path) is None or self._try(partial(self._send, path))
                with self._changed:
                    if done:
                        files.pop(0)
                    elif path.parent != self._own:  # else the others are of no use without it
                        files.append(files.pop(0))
                    self._changed.notify_all()
        finally:
            self.stop()

    def _set_apart(self) -> None:
        """Put last what is in the store elsewhere: another machine finds it there."""
        stored_sizes = {
            _name(entry): entry.size for entry in _unfinished(self._store, self._fingerprint)
        }
        with self._changed:
            of_others = [p for p in self._missing if p.parent != self._own]
            self._elsewhere = [
                p for p in of_others if stored_sizes.get(self._name(p), -1) == _size(p)
            ]
            self._missing = [p for p in self._missing if p not in self._elsewhere]

    def _next(self) -> list[Path]:
        """Wait for a file to upload, and return the files of which it is the first; none at the
        end."""
        with self._changed:
            self._changed.wait_for(lambda: self._missing or self._elsewhere or self._closing)
            return [] if self._closing else self._missing or self._elsewhere

    def _try(self, work: Callable[[], None]) -> bool:
        """Return whether some work was done. After a failure, wait for a while."""
        try:
            work()
        except (PionError, OSError):
            with self._changed:
                self._fails = True
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._closing, RETRY_SECONDS)
            return False
        self._fails = False
        return True

    def _send(self, path: Path) -> None:
        name, sha256 = self._name(path), sha256_file(path)
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
    """Return the files of some data in all folders that are not finished, each file once.

    Where a machine was lost while it shared finished data, the file that says so is left out.
    """
    folders: dict[str, dict[str, Entry]] = {}
    for entry in store.list(f"{SHARED}/{fingerprint}/"):
        if len(parts := entry.key.split("/", 3)) > 3:
            folders.setdefault(parts[2], {})[parts[3]] = entry
    entries: dict[str, Entry] = {}
    for files in sorted(folders.values(), key=len):
        if FILES not in files:
            entries |= files
    entries.pop(DATASET, None)
    return list(entries.values())


def _download(store: Store, entry: Entry, own: Path) -> None:
    name = check_key(_name(entry))
    path = own / name
    if path.parent == own and path.exists():
        return  # this machine's own tokenizer was checked, and no record has the other's hash
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        sha256 = store.download(entry.key, path, limit=entry.size)
    except StoreError:
        raise
    except PionError:  # deleted meanwhile, or replaced
        return
    if path.suffix == ".npy" and sha256 != _recorded(path):
        path.unlink()


def _size(path: Path) -> int | None:
    """Return the bytes of a file; None if it was deleted meanwhile, or can't be found out."""
    try:
        return path.stat().st_size
    except OSError:
        return None


def _name(entry: Entry) -> str:
    """Return the name of a file below the folder of its data."""
    return entry.key.split("/", 3)[3]


def _recorded(path: Path) -> str | None:
    """Return the hash of a shard, or of its flags, by its record; None if there is no record."""
    shard = path.with_name(path.name.replace(".flags.npy", ".npy"))
    try:
        shard_record = read_json(shard.with_suffix(".json"))["shard"]
        return str(shard_record["sha256" if shard == path else "flags_sha256"])
    except (OSError, BadInput, KeyError, TypeError):
        return None
