"""Read a sample of data: all of it, or the beginnings of some files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from pion.data.documents.find_files import PACKED_SUFFIXES, PARQUET_SUFFIXES
from pipeline.new.files import Group
from pipeline.new.read import ReadItem, read_file

# So many bytes are read, of all files of a kind together.
SAMPLE_BYTES = 8 << 20
# Of so many files at most, if there are more bytes; and else, too, because each takes time.
MOST_FILES, MOST_SMALL_FILES = 64, 2_000
# So many records are read, of all files together.
MOST_RECORDS = 8_000


@dataclass
class Sample:
    """What was read of a group of files.

    Attributes:
        files: the records of each file that was read, and what can't be read.
        stored: bytes on the disk of what was read.
        whole: whether all was read.
    """

    group: Group
    files: dict[Path, list[ReadItem]] = field(default_factory=dict)
    stored: int = 0
    whole: bool = True

    @property
    def items(self) -> list[ReadItem]:
        """The records of all files, and what can't be read."""
        return [item for items in self.files.values() for item in items]

    @property
    def factor(self) -> float:
        """How many times more there is than was read."""
        return 1.0 if self.whole else self.group.bytes / max(1, self.stored)


def sample_of(group: Group, limit: int | None = None) -> Sample:
    """Return about `limit` bytes of a group of files; None: SAMPLE_BYTES."""
    limit = limit or SAMPLE_BYTES
    small = group.bytes <= limit
    files = _spread(group.files, MOST_SMALL_FILES if small else MOST_FILES)
    sample = Sample(group, whole=small and len(files) == len(group.files))
    for file in files:
        total = file.stat().st_size
        most = float("inf") if small else limit / len(files)
        # Once it is unpacked, such a file may have any size.
        if small and file.name.endswith((*PACKED_SUFFIXES, *PARQUET_SUFFIXES)):
            most = limit * total / max(1, group.bytes)
        found, kept, read = read_file(group.kind, file, most), list[ReadItem](), 0
        for item in islice(found, MOST_RECORDS // len(files)):
            kept.append(item)
            read += item.bytes
            if read >= most:
                break
        ended = next(found, None) is None
        sample.files[file] = kept
        sample.stored += total if ended or not kept else kept[-1].stored
        sample.whole = sample.whole and ended
    return sample


def _spread(files: Sequence[Path], most: int) -> list[Path]:
    """Return at most so many of the files, at even distances."""
    if len(files) <= most:
        return list(files)
    return [files[i * len(files) // most] for i in range(most)]
