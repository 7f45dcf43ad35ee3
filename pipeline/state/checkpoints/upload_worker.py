"""The process that brings checkpoints to disk and store while its driver trains on.

    python -m pipeline.state.checkpoints.upload_worker FD

Jobs come on standard input, answers go to standard output.

It maps the driver's snapshot, writes the files, uploads them, and says what is there now. It never
commits: HEAD belongs to its driver, and when the driver's pipe closes, by whatever death, this
process ends at once.
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
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pion.errors import PionError
from pipeline.kill_points import mark
from pipeline.state.checkpoints.snapshot import MODEL, Extent, map_extents
from pipeline.state.error_codec import error_to_json
from pipeline.state.records import FORMAT, CheckpointEntry
from pipeline.state.stores import FileStore, Store, StoreError, open_store
from pipeline.state.stores.direct_io import read_directly

MANIFEST = "manifest.json"
COMPARED_AT_ONCE = 1 << 20
Content = bytes | memoryview


@dataclass(frozen=True)
class SaveJob:
    """What the driver wants saved, as plain JSON.

    `key` is the checkpoint's folder in the store, run included; `copy` the workspace folder that
    gets the same files first, None where the store itself is on this machine. `extents` say where
    the large files lie in the snapshot; `texts` are small files. `about` is what the manifest says
    besides the files.
    """

    store: str
    key: str
    copy: str | None
    extents: Mapping[str, Extent]
    texts: Mapping[str, str]
    about: Mapping[str, Any]


@dataclass(frozen=True)
class Saved:
    """What is in the store now: sizes and hashes by name, and what waits for the commit."""

    files: Mapping[str, Mapping[str, Any]]
    staged: list[dict[str, Any]]
    local_seconds: float
    upload_seconds: float

    def entry(self, about: Mapping[str, Any], key: str) -> CheckpointEntry:
        """How HEAD lists it; `key` relative to the run."""
        names = ("stage", "step", "epoch", "digest", "at", "ancestor")
        return CheckpointEntry(
            **{name: about[name] for name in names},
            key=key,
            bytes=sum(file["size"] for file in self.files.values()),
            model_sha256=str(self.files[MODEL]["sha256"]),
        )


def save(store: Store, job: SaveJob, memory: Mapping[str, Content]) -> Saved:
    """Write a checkpoint's files, the manifest last, and check what the store then holds.

    Raises `StoreError`.
    """
    started = time.monotonic()
    contents: dict[str, Content] = {
        **memory,
        **{name: text.encode() for name, text in job.texts.items()},
    }
    place: Store = store if job.copy is None else FileStore(job.copy)
    prefix = f"{job.key}/" if job.copy is None else ""
    with ThreadPoolExecutor(2) as pool:
        hashes = pool.map(lambda data: hashlib.sha256(data).hexdigest(), contents.values())
        for name, data in contents.items():
            mark("save")
            place.write(prefix + name, data)
        files = {
            name: {"size": len(data), "sha256": sha256}
            for (name, data), sha256 in zip(contents.items(), hashes)
        }
    manifest = {**job.about, "format": FORMAT, "files": files}
    text = (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode()
    place.write(prefix + MANIFEST, text)
    written = time.monotonic()
    if job.copy is not None:
        with ThreadPoolExecutor(2) as pool:
            for _ in pool.map(lambda name: _upload(store, job, name), contents):
                continue
        store.write(f"{job.key}/{MANIFEST}", text)
    _check(store, job.key, contents)
    return Saved(files, store.staged(), written - started, time.monotonic() - written)


def _upload(store: Store, job: SaveJob, name: str) -> None:
    assert job.copy is not None
    mark("upload")
    store.write(f"{job.key}/{name}", Path(job.copy) / name)


def _check(store: Store, key: str, contents: Mapping[str, Content]) -> None:
    """What the store holds is what was written: every byte where it is on this machine, else sizes,
    as remote stores check the hashes of what they are sent."""
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
        raise StoreError("store", f"{store.url}/{key}", f"read back, {'; '.join(wrong)}")


def _difference(path: Path, written: Content) -> str | None:
    """How a file differs from what was `written`: compared, which costs training far less of its
    cores than a second hash would."""
    expected, position = memoryview(written), 0
    try:
        for piece in read_directly(path):
            for start in range(0, len(piece), COMPARED_AT_ONCE):
                found = piece[start : start + COMPARED_AT_ONCE].tobytes()
                if found != expected[position : position + len(found)].tobytes():
                    return f"{path.name} has other bytes than were written, from {position:,} on"
                position += len(found)
    except OSError as error:
        return f"{path.name} can't be read ({error.strerror})"
    if position < len(expected):
        return f"{path.name} has {position:,} bytes instead of {len(expected):,}"
    return None


# ---------------------------------------------------------------- the process


def main() -> None:
    """Answer one JSON line to each JSON line, until the input ends."""
    fd = int(sys.argv[1])
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the driver decides what is still worth saving
    # Training comes first. (At 19 a step beside a busy uploader would take 1.2 times as long on two
    # cores, not 1.4 times; but saves would take so long there that many would be skipped.)
    os.nice(5)
    jobs: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_listen, args=(jobs,), daemon=True).start()
    store: Store | None = None
    while True:
        job = SaveJob(**json.loads(jobs.get()))
        try:
            if store is None or store.commits:  # what it has staged is the driver's to commit
                store = open_store(job.store)
            saved = save(store, job, map_extents(fd, job.extents))
            answer: dict[str, Any] = {"saved": dataclasses.asdict(saved)}
        except PionError as error:
            answer = {"error": error_to_json(error)}
        print(json.dumps(answer), flush=True)


def _listen(jobs: queue.Queue[str]) -> None:
    for line in sys.stdin:
        jobs.put(line)
    os._exit(0)  # nobody is left to commit what is being written


if __name__ == "__main__":
    main()
