"""Check files against their hashes, and remember what was hashed, so that each is hashed once.

A file counts as unchanged while its size, its time of change and its inode are the same. What was
right is remembered in the private cache of this machine, one record for each folder. The hashes of
files that Pion did not write are remembered there too, all in one record.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pion.errors import BadInput
from pion.untrusted import open_file, read_json
from pipeline.machine.folders import locked, open_private, private_cache_folder

# The folder of the records, below the cache folder.
RECORDS = "verified"
_LARGEST = 256 << 20
# The record of hashes, in the cache folder, and the most files that it remembers.
HASHES = "hashes.json"
MOST_HASHES = 100_000
# A file that changes twice in a moment may have the same time after both changes. So what changed
# less than this many seconds ago is not remembered.
JUST_CHANGED = 2.0
_SHA256 = re.compile(r"[0-9a-f]{64}")

# (name below the folder, size, sha256) → why the file is not that one; None if it is.
Check = Callable[[str, int, str], str | None]


def file_problem(folder: Path, name: str, size: int, sha256: str) -> str | None:
    """Return why the file `name` below `folder` does not have that size and hash; None if it
    does."""
    try:
        with open_file(folder / name) as file:
            found = os.fstat(file.fileno()).st_size
            if found != size:
                return f"{name} has {found:,} bytes instead of {size:,}"
            same = hashlib.file_digest(file, "sha256").hexdigest() == sha256
        if not same:
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
    right. One process of this machine at a time: the others then find everything remembered.

    Threads may share the check. Without a cache folder, nothing is remembered.
    """
    with contextlib.ExitStack() as closing:
        try:
            place = str(folder.resolve()).encode(errors="surrogateescape")
            name = hashlib.sha256(place).hexdigest()[:32]
            record = private_cache_folder(RECORDS) / f"{name}.json"
            closing.enter_context(locked(record.with_name(f".lock-{name}")))
        except (BadInput, OSError):
            yield functools.partial(file_problem, folder)
            return
        before: dict[str, Any] = {}
        with contextlib.suppress(OSError, BadInput, ValueError, KeyError, TypeError):
            before = dict(read_json(record, _LARGEST)["files"])
        known = dict(before)

        def check(name: str, size: int, sha256: str) -> str | None:
            seen = _look(folder / name, sha256)
            if seen is not None and seen[0] == size and known.get(name) == seen:
                return None
            problem = file_problem(folder, name, size, sha256)
            if problem is None and seen is not None and seen == _look(folder / name, sha256):
                known[name] = seen
            return problem

        yield check
        if known != before:
            _write(record, folder, known)


def _look(path: Path, sha256: str) -> list[Any] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns, found.st_ino, sha256]


def _write(record: Path, folder: Path, known: dict[str, Any]) -> None:
    """Replace the record, and remove those of folders that are gone."""
    with contextlib.suppress(OSError):
        part = record.with_suffix(f".{os.getpid()}")
        with open(part, "w", opener=open_private) as file:
            json.dump({"folder": str(folder), "files": known}, file)
        part.replace(record)
        for other in record.parent.glob("*.json"):
            with contextlib.suppress(BadInput, KeyError, TypeError):
                if not Path(read_json(other, _LARGEST)["folder"]).exists():
                    other.unlink()
                    other.with_name(f".lock-{other.stem}").unlink(missing_ok=True)


@contextlib.contextmanager
def hashed_once() -> Iterator[Callable[[Path], str]]:
    """Yield a function that returns the sha256 of a file. It reads only a file that has changed
    since it was last hashed on this machine.

    Threads may share the function. It raises OSError for a file that can't be read. Without a cache
    folder, nothing is remembered.
    """
    record: Path | None = None
    with contextlib.suppress(BadInput, OSError):
        record = private_cache_folder() / HASHES
    before = {} if record is None else _read_hashes(record)
    now: dict[str, str] = {}

    def sha256_of(path: Path) -> str:
        key = hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:32]
        stamp, _, sha256 = before.get(key, "").rpartition(" ")
        if stamp == _stamp(path.stat()) and _SHA256.fullmatch(sha256):
            now[key] = before[key]
            return sha256
        begun = time.time()
        with open_file(path) as file:
            status = os.fstat(file.fileno())
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            unchanged = _stamp(os.fstat(file.fileno())) == _stamp(status)
        if unchanged and max(status.st_mtime, status.st_ctime) < begun - JUST_CHANGED:
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
            with open(part, "w", opener=open_private) as file:
                json.dump(dict(known), file)
            part.replace(record)
        finally:
            part.unlink(missing_ok=True)
