"""Write and upload checkpoints in a separate process while this one trains: both ends of its pipe.

    python -m pipeline.state.checkpoints.uploader FD

Requests arrive on the process's standard input, and answers go to its standard output. It maps the
parent's snapshot, writes the files, uploads them, and reports what the store has now. It never
commits: HEAD belongs to the parent. When the parent ends for any reason, its pipe closes and the
process ends at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pion.errors import PionError
from pipeline.console.formats import duration
from pipeline.machine.child_process import of_store
from pipeline.machine.kill_points import mark
from pipeline.state.checkpoints.layout import MANIFEST, Provenance
from pipeline.state.checkpoints.snapshot import Extent, Snapshot, map_extents
from pipeline.state.stores import FileStore, Store, StoreError, open_store
from pipeline.state.stores.base import Staged
from pipeline.state.stores.errors import error_from_json, error_to_json
from pipeline.state.stores.local import explained, read_directly
from pipeline.state.workspace import Files

KILL_SECONDS = 5.0
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

    @classmethod
    def from_json(cls, text: str) -> SaveRequest:
        """Return the request that was written as JSON."""
        fields = json.loads(text)
        return cls(**fields | {"provenance": Provenance(**fields["provenance"])})


@dataclass(frozen=True)
class Saved:
    """The files that were written, and the writes that wait for the parent's commit."""

    files: Files
    staged: list[Staged]


def save(store: Store, request: SaveRequest, memory: Mapping[str, Content]) -> Saved:
    """Write a checkpoint's files, the manifest last, and check what the store has then.

    Raises `StoreError`.
    """
    contents: dict[str, Content] = {
        **memory,
        **{name: text.encode() for name, text in request.texts.items()},
    }
    files = _write(store, request, contents)
    if request.local_folder is not None:
        _upload(store, request, contents)
    _check(store, request.key, contents)
    return Saved(files, store.staged())


def _write(store: Store, request: SaveRequest, contents: Mapping[str, Content]) -> Files:
    """Write the files to the folder on this machine, or else to the store; return them."""
    folder = request.local_folder
    target: Store = store if folder is None else FileStore(folder)
    prefix = f"{request.key}/" if folder is None else ""
    with ThreadPoolExecutor(2) as pool:
        hashes = pool.map(lambda data: hashlib.sha256(data).hexdigest(), contents.values())
        for name, data in contents.items():
            mark("save")
            target.write(prefix + name, data)
        files = {
            name: (len(data), sha256) for (name, data), sha256 in zip(contents.items(), hashes)
        }
    target.write(prefix + MANIFEST, request.provenance.manifest(files))
    return files


def _upload(store: Store, request: SaveRequest, names: Collection[str]) -> None:
    """Upload the files of these names that are in the folder on this machine, then the manifest."""
    assert request.local_folder is not None
    folder = Path(request.local_folder)

    def upload(name: str) -> None:
        mark("upload")
        store.write(f"{request.key}/{name}", folder / name)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(upload, names))
    with explained("read", folder / MANIFEST):
        manifest = (folder / MANIFEST).read_bytes()
    store.write(f"{request.key}/{MANIFEST}", manifest)


def _check(store: Store, key: str, contents: Mapping[str, Content]) -> None:
    """Raise `StoreError` unless the store has the written files.

    On this machine the files are compared byte by byte. In a remote store only the sizes are
    compared: the store itself checks the hashes of uploads.
    """
    folder = store.local_path(key)
    if folder is not None:
        differences = (_difference(folder / name, data) for name, data in contents.items())
        wrong = list(filter(None, differences))
    else:
        sizes = {entry.key: entry.size for entry in store.list(key + "/")}
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
                part = piece[start : start + COMPARED_AT_ONCE].tobytes()
                if part != expected[position : position + len(part)].tobytes():
                    return f"{path.name} differs from the written data at byte {position:,}"
                position += len(part)
    except OSError as error:
        return f"{path.name} can't be read ({error.strerror})"
    if position < len(expected):
        return f"{path.name} has {position:,} bytes instead of {len(expected):,}"
    return None


# ---------------------------------------------------------------- the parent


class UploaderDied(StoreError):
    """The uploading process ended before it answered."""


class Uploader:
    """Uploads `snapshot` to `store` in a separate process, and replaces a process that died or
    hangs. Of the environment's secrets, the process gets only those of this kind of store.

    `store` is a URL. `patience` is the number of seconds that a save may take.
    """

    def __init__(self, snapshot: Snapshot, store: str, patience: float = math.inf) -> None:
        self.snapshot = snapshot
        self.patience = patience
        self._store = store
        self._closed = False
        self._hangs = False
        self._process = self._start()

    def save(self, request: SaveRequest) -> Saved:
        """Return what the process saved. Raises the process's error, or `UploaderDied`.

        A process that does not answer within `patience` is killed. This counts as an outage.
        """
        if (self._hangs or self._process.poll() is not None) and not self._closed:
            self._process, self._hangs = self._start(), False
        process = self._process
        line = self._ask(process, request)
        if line is None:
            self._hangs = True
            _end(process)
            reason = (
                "the process that saves checkpoints did not respond within "
                f"{duration(self.patience)}, so Pion killed the process. If the store works but is "
                "slow, raise checkpoint.max_undurable"
            )
            raise StoreError("save", f"{request.store}/{request.key}", reason, outage=True)
        if not line:
            process.kill()
            reason = (
                f"the process that saves checkpoints stopped (exit code {process.wait()}). If the "
                "machine ran out of memory, use a smaller hardware.micro_batch"
            )
            raise UploaderDied("save", f"{request.store}/{request.key}", reason)
        answer = json.loads(line)
        if "error" in answer:
            raise error_from_json(answer["error"])
        return Saved(**answer["saved"])

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self._closed = True
        _end(self._process)

    def _ask(self, process: subprocess.Popen[str], request: SaveRequest) -> str | None:
        """Return the answer: empty if the process ended first, None if it took too long.

        A separate thread asks, because a pipe to a process that hangs may block in both directions,
        and a process that hangs in the kernel keeps its pipes open even when it is killed.
        """
        question = json.dumps(dataclasses.asdict(request)) + "\n"
        answers: queue.SimpleQueue[str] = queue.SimpleQueue()

        def ask() -> None:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.write(question)
                process.stdin.flush()
                answers.put(process.stdout.readline())
            except (OSError, ValueError):
                answers.put("")

        threading.Thread(target=ask, name="uploader", daemon=True).start()
        try:
            return answers.get(timeout=min(self.patience, threading.TIMEOUT_MAX))
        except queue.Empty:
            return None

    def _start(self) -> subprocess.Popen[str]:
        fd = self.snapshot.fd
        with explained("start", Path("the process that saves checkpoints")):
            return subprocess.Popen(
                [sys.executable, "-m", "pipeline.state.checkpoints.uploader", str(fd)],
                env=of_store(self._store),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                encoding="utf-8",
                pass_fds=[fd],
                start_new_session=True,
            )


def _end(process: subprocess.Popen[str]) -> None:
    """Kill the process. If it hangs in the kernel, on a bad disk, leave it and its pipes."""
    process.kill()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(KILL_SECONDS)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


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
            print(json.dumps({"saved": dataclasses.asdict(saved)}), flush=True)
        except PionError as error:
            print(json.dumps({"error": error_to_json(error)}), flush=True)


def _listen(requests: queue.Queue[str]) -> None:
    for line in sys.stdin:
        requests.put(line)
    os._exit(0)  # nobody is left to commit what is being written


if __name__ == "__main__":
    main()
