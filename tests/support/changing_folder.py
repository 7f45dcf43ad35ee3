"""The files of a folder whose owner adds and deletes files and folders at the same time."""

import os
from collections.abc import Iterator
from pathlib import Path


def files_below(folder: Path) -> Iterator[Path]:
    """Yield the files below `folder`, without links. `Path.rglob` fails if a folder is deleted."""
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            if path.is_file() and not path.is_symlink():
                yield path
