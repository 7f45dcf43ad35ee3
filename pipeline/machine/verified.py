"""Check files against their hashes, and remember which were right, so that each is hashed once.

A file counts as unchanged while its size, its time of change and its inode are the same. What was
right is remembered in the private cache of this machine, one record for each folder.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pion.errors import BadInput
from pion.untrusted import open_file, read_json
from pipeline.machine.folders import locked, open_private, private_cache_folder

# The folder of the records, below the cache folder.
RECORDS = "verified"
_LARGEST = 256 << 20

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
