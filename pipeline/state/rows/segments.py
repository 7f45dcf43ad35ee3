"""The files of a log of rows: their names, how they are joined, and how they are read.

    <folder>/<epoch>/000123.jsonl                       one flush of an owner
    <folder>/<epoch>/000096-000127-1-345678.jsonl       the flushes 96 to 127, in 345,678 bytes
    <folder>/<epoch>/000000-001023-2-9876543.jsonl      such files joined: it stays as it is

A joined file has the lines of its parts, in their order, and the parts may still be there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from pion.errors import BadInput
from pipeline.state.rows.row_types import LARGEST_SEGMENT, Row, Unreadable, metrics_row
from pipeline.state.stores import Entry, Missing, Store
from pipeline.state.stores.base import read_all

# The level of a file that is joined no further.
CLOSED = 2
# So often a reader lists the files: one that is listed and then gone has been joined since.
LISTS = 3
# A file below its log's folder. A lost machine's event has a name instead of a number.
_FILE = re.compile(r"(?P<epoch>\d{1,9})/[\w.+=@-]+\.jsonl", re.ASCII)
_NUMBERS = re.compile(
    r"(?P<first>\d{6,9})(-(?P<last>\d{6,9})-(?P<level>[12])-(?P<bytes>\d{1,12}))?\.jsonl", re.ASCII
)


@dataclass(frozen=True)
class Segment:
    """A file of rows with the flushes `first` to `last` of an epoch; -1 for a file with a name.

    Attributes:
        level: 0: a flush; 1: flushes joined; 2: those joined.
        bytes: its size in the store.
    """

    epoch: int
    first: int
    last: int
    level: int
    key: str
    bytes: int


def segments(entries: Iterable[Entry], folder: str) -> list[Segment]:
    """Return the files of rows below `folder`, which ends with a slash, also parts of joined files.

    Leaves out files with other names, and joined files of another size than their name says.
    """
    return [segment for entry in entries if (segment := parse(entry, folder)) is not None]


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
    whole = first <= last and int(numbers["bytes"]) == entry.size
    return Segment(epoch, first, last, level, entry.key, entry.size) if whole else None


def without_parts(found: Iterable[Segment]) -> list[Segment]:
    """Return the files in the order of their rows, without those whose flushes another one has."""
    kept: list[Segment] = []
    reached = (0, -1)
    # A joined file comes before its parts.
    order = sorted(found, key=lambda s: (s.epoch, s.first, -s.last, -s.level, -s.bytes, s.key))
    for segment in order:
        if segment.first < 0 or (segment.epoch, segment.last) > reached:
            kept.append(segment)
            reached = (segment.epoch, segment.last)
    return kept


def joined(folder: str, parts: Mapping[Segment, bytes]) -> tuple[Segment, bytes]:
    """Return the file that has the lines of `parts`, and its content.

    `parts` are neighbours of one epoch with their contents. `folder` ends with a slash.
    """
    segments = [*parts]
    epoch, first, last = segments[0].epoch, segments[0].first, segments[-1].last
    contents = parts.values()
    lines = b"".join(c if c.endswith(b"\n") or not c else c + b"\n" for c in contents)
    level = max(segment.level for segment in segments) + 1
    key = f"{folder}{epoch}/{first:06d}-{last:06d}-{level}-{len(lines)}.jsonl"
    return Segment(epoch, first, last, level, key, len(lines)), lines


def lines_of(store: Store, key: str) -> list[bytes] | None:
    """Return the lines of a file of rows; None if the file can't be read. Raises StoreError."""
    try:
        return store.read(key, LARGEST_SEGMENT).splitlines()
    except (BadInput, Missing):
        return None


def rows_in(
    lines: Iterable[bytes], row_of: Callable[[bytes], Row | None] = metrics_row
) -> dict[int, Row]:
    """Return the rows of those lines that can be read, by a hash of the line.

    An attempt writes a row again if it was not told that it was written. Such rows count once.
    """
    return {hash(line): row for line in lines if (row := row_of(line)) is not None}


class RowReader:
    """Reads all rows below a folder, which ends with a slash, and each file only once. `row_of`
    reads a line: `metrics_row` or `event_row`.

    Counts the rows and files that can't be read in `unreadable`.
    """

    def __init__(
        self,
        store: Store,
        folder: str,
        unreadable: Unreadable,
        row_of: Callable[[bytes], Row | None] = metrics_row,
    ) -> None:
        self._store, self._folder, self._unreadable = store, folder, unreadable
        self._row_of = row_of
        # The names of the files that were listed last.
        self._names: set[str] = set()
        # By the hashes of their lines.
        self._rows: dict[Segment, Mapping[int, Row]] = {}

    def read(self) -> list[Row]:
        """Return all rows there are now, by epoch and file. Reads only files that are new.

        Raises StoreError, and then the next call reads the same files.
        """
        for _ in range(LISTS):
            listed = self._listed()
            new = [segment for segment in listed if segment not in self._rows]
            contents = zip(new, read_all(self._read, new))
            self._rows |= {segment: rows for segment, rows in contents if rows is not None}
            gone = [segment for segment in listed if segment not in self._rows]
            if not gone:
                break
        for segment in gone:
            self._unreadable.add_file(f"{self._store.url}/{segment.key}")
            self._rows[segment] = {}
        self._rows = {segment: self._rows[segment] for segment in listed}
        different: dict[int, Row] = {}
        for rows in self._rows.values():
            different |= {line: row for line, row in rows.items() if line not in different}
        return [*different.values()]

    def _listed(self) -> list[Segment]:
        """Return the files to read, in the order of their rows. Counts each wrong name once."""
        entries = self._store.list(self._folder)
        found = segments(entries, self._folder)
        names = {entry.key for entry in entries}
        wrong = {name for name in names if name.endswith(".jsonl")} - {s.key for s in found}
        for name in sorted(wrong - self._names):
            self._unreadable.add_file(f"{self._store.url}/{name}")
        self._names = names
        return without_parts(found)

    def _read(self, segment: Segment) -> Mapping[int, Row] | None:
        """Return the rows of a file; None if the file is gone."""
        where = f"{self._store.url}/{segment.key}"
        try:
            lines = self._store.read(segment.key, LARGEST_SEGMENT).splitlines()
        except Missing:
            return None
        except BadInput:
            self._unreadable.add_file(where)
            return {}
        rows = rows_in(lines, self._row_of)
        for _ in range(len({*lines}) - len(rows)):
            self._unreadable.add(where)
        return rows
