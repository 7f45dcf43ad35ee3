"""Check files against their hashes, and remember what was hashed, so that each is hashed once.

A file counts as unchanged while its size, its times of change and its inode are the same. The
private cache of this machine has one record of all hashes, also of files that Pion did not write.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from pion.errors import BadInput
from pion.files import is_sha256, private_cache_folder, sha256_file
from pion.untrusted import open_file, read_json
from pipeline.machine.folders import locked, open_private

_LARGEST = 256 << 20
# The record of hashes, in the cache folder, and the most files that it remembers.
HASHES = "hashes.json"
MOST_HASHES = 100_000
# A file that changes twice in a moment may have the same time after both changes. So what others
# changed less than this many seconds ago is not remembered.
JUST_CHANGED = 2.0

# (name below the folder, size, sha256) → why the file is not that one; None if it is.
Check = Callable[[str, int, str], str | None]


def file_problem(
    folder: Path,
    name: str,
    size: int,
    sha256: str,
    sha256_of: Callable[[Path], str] = sha256_file,
) -> str | None:
    """Return why the file `name` below `folder` does not have that size and hash; None if it
    does. `sha256_of` returns a file's hash."""
    try:
        with open_file(folder / name) as file:
            found = os.fstat(file.fileno()).st_size
        if found != size:
            return f"{name} has {found:,} bytes instead of {size:,}"
        if sha256_of(folder / name) != sha256:
            return f"{name} has been altered (its sha256 differs)"
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} can't be read ({error.strerror})"
    except BadInput as error:
        return str(error)
    return None


@contextlib.contextmanager
def checked_once(folder: Path) -> Iterator[Check]:
    """Yield a check of the files below `folder`, which hashes only what has changed since it was
    last hashed. One process of this machine at a time: the others then find everything remembered.

    Threads may share the check. Without a cache folder, nothing is remembered.
    """
    with contextlib.ExitStack() as closing:
        with contextlib.suppress(BadInput, OSError):
            lock = private_cache_folder() / f".lock-{_name_of(folder.resolve())}"
            closing.enter_context(locked(lock))
        sha256_of = closing.enter_context(hashed_once(own=True))
        yield functools.partial(file_problem, folder, sha256_of=sha256_of)


def _name_of(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path)).hexdigest()[:32]


@contextlib.contextmanager
def hashed_once(*, own: bool = False) -> Iterator[Callable[[Path], str]]:
    """Yield a function that returns the sha256 of a file. It reads only a file that has changed
    since it was last hashed on this machine. A file that has just changed is remembered only
    if it is Pion's `own`.

    Threads may share the function. It raises OSError for a file that can't be read. Without a cache
    folder, nothing is remembered.
    """
    record: Path | None = None
    with contextlib.suppress(BadInput, OSError):
        record = private_cache_folder() / HASHES
    before = {} if record is None else _read_hashes(record)
    now: dict[str, str] = {}

    def sha256_of(path: Path) -> str:
        key = _name_of(path.absolute())
        stamp, _, sha256 = before.get(key, "").rpartition(" ")
        if stamp == _stamp(path.stat()) and is_sha256(sha256):
            now[key] = before[key]
            return sha256
        settled = time.time() - (0.0 if own else JUST_CHANGED)
        with open_file(path) as file:
            status = os.fstat(file.fileno())
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            unchanged = _stamp(os.fstat(file.fileno())) == _stamp(status)
        if unchanged and max(status.st_mtime, status.st_ctime) < settled:
            now[key] = f"{_stamp(status)} {sha256}"
        return sha256

    try:
        yield sha256_of
    finally:  # also of a start that was interrupted
        if record is not None and not now.items() <= before.items():
            _remember(record, now)


def _stamp(status: os.stat_result) -> str:
    """Return what differs after a file has changed. Who sets the time of a file back can't set back
    the time of that (ctime)."""
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"


def _read_hashes(record: Path) -> dict[str, str]:
    """Return the stamp and hash of each file; nothing if the record is missing or damaged."""
    try:
        found = dict(read_json(record, _LARGEST))
    except (OSError, BadInput, ValueError, TypeError):
        return {}
    return {key: value for key, value in found.items() if isinstance(value, str)}


def _remember(record: Path, now: Mapping[str, str]) -> None:
    """Add to the record what other processes did not. The files used least recently are left
    out."""
    part = record.with_suffix(".part")
    with contextlib.suppress(OSError), locked(record.with_name(f".lock-{record.stem}")):
        others = {key: value for key, value in _read_hashes(record).items() if key not in now}
        known = [*others.items(), *now.items()][-MOST_HASHES:]
        try:
            with open(part, "w", encoding="utf-8", opener=open_private) as file:
                json.dump(dict(known), file)
            part.replace(record)
        finally:
            part.unlink(missing_ok=True)
