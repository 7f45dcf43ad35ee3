"""Files of a folder: list them, and put them into another folder without a copy where possible."""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def files_below(folder: Path) -> list[Path]:
    """Return the files below `folder`, sorted, without hidden ones: those are temporary."""
    return sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))


def link_or_copy(path: Path, to: Path) -> None:
    """Make `to` a link to the file `path`, all or nothing; a copy if the disk can't link.

    The folder of `to` must exist. Raises OSError.
    """
    part = to.with_name(f".{to.name}.part")
    part.unlink(missing_ok=True)
    try:
        try:
            os.link(path.resolve(), part)
        except OSError:  # another disk, or a disk without hard links
            shutil.copyfile(path, part)
            with part.open("rb") as file:
                os.fsync(file.fileno())
        part.replace(to)
    finally:
        part.unlink(missing_ok=True)  # replacing a link by a link to the same file leaves both
