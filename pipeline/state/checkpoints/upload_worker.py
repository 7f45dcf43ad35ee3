"""The child process that writes and uploads checkpoints while its parent trains.

    python -m pipeline.state.checkpoints.upload_worker FD

Requests arrive on standard input, and answers go to standard output. uploader.py is the parent's
end. This process maps the parent's snapshot, writes the files, uploads them, and reports what the
store has now. It never commits: HEAD belongs to the parent. When the parent ends for any reason,
its pipe closes and this process ends at once.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pion.errors import PionError
from pipeline.kill_points import mark
from pipeline.state.checkpoints.layout import MANIFEST, Provenance
from pipeline.state.checkpoints.snapshot import Extent, map_extents
from pipeline.state.stores import FileStore, Store, StoreError, open_store
from pipeline.state.stores.base import Staged
from pipeline.state.stores.error_codec import error_to_json
from pipeline.state.stores.local import read_directly
from pipeline.state.workspace import Files

COMPARED_AT_ONCE = 1 << 20
Content = bytes | memoryview


@dataclass(frozen=True)
class SaveRequest:
    """A request of the parent to save a checkpoint, as plain JSON.

    Attributes:
        store: the store's URL.
        key: the checkpoint's folder in the store, including the run.
        local_folder: the folder on this machine that gets the same files first; None if the store
            itself is on this machine.
        extents: the places of the large files in the snapshot.
        texts: the small files.
        provenance: the manifest's fields other than the files.
    """

    store: str
    key: str
    local_folder: str | None
    extents: Mapping[str, Extent]
    texts: Mapping[str, str]
    provenance: Provenance

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, line: str) -> SaveRequest:
        fields = json.loads(line)
        return cls(**{**fields, "provenance": Provenance(**fields["provenance"])})


@dataclass(frozen=True)
class Saved:
    """The files that the store has now, and the writes that wait for the parent's commit."""

    files: Files
    staged: list[Staged]

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Saved:
        files = {name: (size, sha256) for name, (size, sha256) in raw["files"].items()}
        return cls(files, raw["staged"])


def save(store: Store, request: SaveRequest, memory: Mapping[str, Content]) -> Saved:
    """Write a checkpoint's files, the manifest last, and check what the store has then.

    Raises `StoreError`.
    """
    contents: dict[str, Content] = {
        **memory,
        **{name: text.encode() for name, text in request.texts.items()},
    }
    folder = request.local_folder
    place: Store = store if folder is None else FileStore(folder)
    prefix = f"{request.key}/" if folder is None else ""
    with ThreadPoolExecutor(2) as pool:
        hashes = pool.map(lambda data: hashlib.sha256(data).hexdigest(), contents.values())
        for name, data in contents.items():
            mark("save")
            place.write(prefix + name, data)
        files = {
            name: (len(data), sha256) for (name, data), sha256 in zip(contents.items(), hashes)
        }
    manifest = request.provenance.manifest(files)
    place.write(prefix + MANIFEST, manifest)
    if folder is not None:
        local = Path(folder)
        with ThreadPoolExecutor(2) as pool:
            for _ in pool.map(lambda name: _upload(store, request.key, name, local), contents):
                continue
        store.write(f"{request.key}/{MANIFEST}", manifest)
    _check(store, request.key, contents)
    return Saved(files, store.staged())


def _upload(store: Store, key: str, name: str, folder: Path) -> None:
    mark("upload")
    store.write(f"{key}/{name}", folder / name)


def _check(store: Store, key: str, contents: Mapping[str, Content]) -> None:
    """Raise `StoreError` unless the store has the written files.

    On this machine the files are compared byte by byte. In a remote store only the sizes are
    compared: the store itself checks the hashes of uploads.
    """
    folder = store.local_path(key)
    if folder is not None:
        problems = (_difference(folder / name, data) for name, data in contents.items())
        wrong = [problem for problem in problems if problem is not None]
    else:
        sizes = {found.key: found.size for found in store.list(key + "/")}
        wrong = [
            f"{name} has {sizes.get(f'{key}/{name}')} bytes instead of {len(data)}"
            for name, data in contents.items()
            if sizes.get(f"{key}/{name}") != len(data)
        ]
    if wrong:
        raise StoreError("store", f"{store.url}/{key}", f"when read back, {'; '.join(wrong)}")


def _difference(path: Path, written: Content) -> str | None:
    """Return how a file differs from the `written` bytes, or None.

    Comparing takes far less CPU time from training than a second hash would.
    """
    expected, position = memoryview(written), 0
    try:
        for piece in read_directly(path):
            for start in range(0, len(piece), COMPARED_AT_ONCE):
                found = piece[start : start + COMPARED_AT_ONCE].tobytes()
                if found != expected[position : position + len(found)].tobytes():
                    return f"{path.name} differs from the written data at byte {position:,}"
                position += len(found)
    except OSError as error:
        return f"{path.name} can't be read ({error.strerror})"
    if position < len(expected):
        return f"{path.name} has {position:,} bytes instead of {len(expected):,}"
    return None


# ---------------------------------------------------------------- the process


def main() -> None:
    """Answer each line of JSON with a line of JSON, until the input ends."""
    fd = int(sys.argv[1])
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the parent decides what is still saved
    # Training has priority. (At niceness 19 on two cores, a step next to a busy uploader takes 1.2
    # times as long instead of 1.4 times. But then saves take so long that many are skipped.)
    os.nice(5)
    requests: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_listen, args=(requests,), daemon=True).start()
    store: Store | None = None
    while True:
        request = SaveRequest.from_json(requests.get())
        try:
            if store is None or store.commits:  # the parent commits what the old object staged
                store = open_store(request.store)
            saved = save(store, request, map_extents(fd, request.extents))
            answer: dict[str, Any] = {"saved": dataclasses.asdict(saved)}
        except PionError as error:
            answer = {"error": error_to_json(error)}
        print(json.dumps(answer), flush=True)


def _listen(requests: queue.Queue[str]) -> None:
    for line in sys.stdin:
        requests.put(line)
    os._exit(0)  # nobody is left to commit what is being written


if __name__ == "__main__":
    main()
