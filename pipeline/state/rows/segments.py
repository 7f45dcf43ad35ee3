"""The files of a log of rows: segments, each written once, and objects that join them.

    <folder>/<epoch>/000123.jsonl                       one flush of an owner
    <folder>/<epoch>/000100-000199-1-345678.jsonl       100 segments joined (level 1), 345,678 bytes
    <folder>/<epoch>/000000-009999-2-34567890.jsonl     such objects joined (level 2)

A joined object has the lines of its parts, in their order, and the parts may still be there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pion.errors import BadInput, PionError
from pipeline.state.rows.row_types import LARGEST_SEGMENT, Unreadable
from pipeline.state.stores import Entry, Missing, Store

# A file below its log's folder. A lost machine's event has a name instead of a number.
_FILE = re.compile(r"(?P<epoch>\d{1,9})/[\w.+=@-]+\.jsonl", re.ASCII)
_NUMBERS = re.compile(
    r"(?P<first>\d{6,9})(-(?P<last>\d{6,9})-(?P<level>[12])-(?P<bytes>\d{1,12}))?\.jsonl", re.ASCII
)


@dataclass(frozen=True)
class Segment:
    """A file of rows with the flushes `first` to `last` of an epoch; -1 for a file with a name.

    Attributes:
        level: 0: a segment; 1: segments joined; 2: those joined.
        bytes: its size in the store.
    """

    epoch: int
    first: int
    last: int
    level: int
    key: str
    bytes: int

    def contains(self, other: Segment) -> bool:
        """Return whether this joined object has the lines of `other`."""
        return (
            self.level > other.level
            and self.epoch == other.epoch
            and 0 <= self.first <= other.first
            and other.last <= self.last
        )


def joined_key(folder: str, parts: Sequence[Segment], size: int) -> str:
    """Return the key of the object in which `parts` of one epoch and level are joined, of `size`
    bytes."""
    numbers = f"{parts[0].first:06d}-{parts[-1].last:06d}"
    return f"{folder}{parts[0].epoch}/{numbers}-{parts[0].level + 1}-{size}.jsonl"


def segments(store: Store, folder: str, unreadable: Unreadable, begin: str = "") -> list[Segment]:
    """Return the files of rows below `folder`, which ends with a slash, in the order of their rows.

    The names below the folder begin with `begin`. Leaves out what a joined object contains. Counts
    files with other names, and joined objects of another size than their name says, in
    `unreadable`.
    """
    return without_parts(found_in(store.list(folder + begin), folder, store.url, unreadable))


def found_in(
    entries: Iterable[Entry], folder: str, url: str, unreadable: Unreadable
) -> list[Segment]:
    """Return the files of rows among the entries of the store `url`, also parts of joined objects.

    Counts in `unreadable` like `segments`.
    """
    segments = []
    for entry in entries:
        if entry.key.endswith(".jsonl"):
            segment = parse(entry, folder)
            if segment is None:
                unreadable.add_file(f"{url}/{entry.key}")
            else:
                segments.append(segment)
    return segments


def parse(entry: Entry, folder: str) -> Segment | None:
    """Return the file of rows below `folder`; None if its name or its size is wrong."""
    file = _FILE.fullmatch(name := entry.key.removeprefix(folder))
    if file is None:
        return None
    epoch, numbers = int(file["epoch"]), _NUMBERS.fullmatch(name.partition("/")[2])
    if numbers is None:
        return Segment(epoch, -1, -1, 0, entry.key, entry.size)
    first = int(numbers["first"])
    if numbers["last"] is None:
        return Segment(epoch, first, first, 0, entry.key, entry.size)
    last, level = int(numbers["last"]), int(numbers["level"])
    # A copy of the store may have been cut short. Its parts may still be whole.
    is_complete = first <= last and int(numbers["bytes"]) == entry.size
    return Segment(epoch, first, last, level, entry.key, entry.size) if is_complete else None


def without_parts(found: Iterable[Segment]) -> list[Segment]:
    """Return the files in the order of their rows, without those that another one contains."""
    segments: list[Segment] = []
    around: Segment | None = None
    # An object comes before its parts.
    for segment in sorted(found, key=lambda s: (s.epoch, s.first, -s.last, -s.level, s.key)):
        if around is not None and around.contains(segment):
            continue
        if segment.level:
            around = segment
        segments.append(segment)
    return segments


def lines_of(store: Store, key: str) -> list[bytes] | None:
    """Return the lines of a file of rows; None if the file can't be read. Raises StoreError."""
    try:
        return store.read(key, LARGEST_SEGMENT).splitlines()
    except (BadInput, Missing):
        return None


class Replaced(PionError):
    """Files of rows that were read are gone: another run has the name now, or the run was reset."""
