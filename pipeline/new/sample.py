"""Which part of the data is looked at: all of it, or the beginnings of some files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from pion.data.documents.find_files import PACKED_SUFFIXES, PARQUET_SUFFIXES
from pipeline.new.files import Group
from pipeline.new.read import Progress, ReadItem, Record, read_file

# So many bytes are read, of all files together.
LOOK_BYTES = 64 << 20
# Of so many files at most, if there are more bytes; and else, too, because each takes time.
MOST_FILES, MOST_SMALL_FILES = 64, 2_000
# So many records are read, of all files together.
MOST_RECORDS = 100_000
# Of files, the first records, each with its `file:line`.
Firsts = list[tuple[Path, list[tuple[str, Record]]]]
# From so many files and records, the layout is known.
LAYOUT_FILES, LAYOUT_RECORDS = 16, 100
# So many records of a file, readable or not, are tried for that.
TRIED_RECORDS = 1_000


@dataclass
class Sample:
    """About `limit` bytes of a group of files. The other numbers are known once it was iterated.

    Attributes:
        stored: bytes on the disk of what was read.
        files: how many files were read.
        whole: whether all was read.
    """

    group: Group
    limit: int
    stored: int = 0
    files: int = 0
    whole: bool = True

    @property
    def factor(self) -> float:
        """How many times more there is than was read."""
        return 1.0 if self.whole else self.group.bytes / max(1, self.stored)

    def __iter__(self) -> Iterator[ReadItem]:
        group, small = self.group, self.group.bytes <= self.limit
        files = spread(group.files, MOST_SMALL_FILES if small else MOST_FILES)
        self.whole = small and len(files) == len(group.files)
        for file in files:
            progress, most = Progress(), MOST_RECORDS // len(files)
            found = read_file(group.kind, file, self._share(file, len(files)), progress)
            yield from islice(found, most)
            progress.whole = progress.whole and next(found, None) is None
            self.files += 1
            self.stored += file.stat().st_size if progress.whole else progress.stored
            self.whole = self.whole and progress.whole

    def _share(self, file: Path, files: int) -> float:
        """Return how many bytes of a file are read, unpacked."""
        if self.group.bytes > self.limit:
            return self.limit / files
        # Once it is unpacked, such a file may have any size.
        if file.name.endswith((*PACKED_SUFFIXES, *PARQUET_SUFFIXES)):
            return self.limit * file.stat().st_size / max(1, self.group.bytes)
        return float("inf")


def first_records(group: Group) -> Firsts:
    """Return the first records of some files, which show their layout; of text, none are needed."""
    found = []
    for file in spread(group.files, LAYOUT_FILES) if group.kind != "text" else ():
        items = read_file(group.kind, file, LOOK_BYTES // LAYOUT_FILES, Progress())
        tried = islice(items, TRIED_RECORDS)
        known = ((item.where, item.record) for item in tried if item.record is not None)
        if records := list(islice(known, LAYOUT_RECORDS)):
            found.append((file, records))
    return found


def spread(files: Sequence[Path], most: int) -> list[Path]:
    """Return at most so many of the files, at even distances."""
    if len(files) <= most:
        return list(files)
    return [files[i * len(files) // most] for i in range(most)]
