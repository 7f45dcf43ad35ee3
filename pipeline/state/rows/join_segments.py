"""Join the segments of a log of rows, so that a long run has few files. Only the owner does it.

A run of weeks flushes some ten thousand times a day. Every hundred segments become one object, and
every hundred of these another. The parts of an object are deleted once a list shows the whole
object. A reader that listed the parts before, and finds them gone, lists again: see `ThinReader`.
If the owner dies in between, the next owner continues from what is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

from pipeline.state.record_json import Damaged
from pipeline.state.rows.row_types import LARGEST_SEGMENT
from pipeline.state.rows.segments import Segment, joined_key, parse, without_parts
from pipeline.state.rows.thin import thin_key, thin_of
from pipeline.state.stores import Missing, Store
from pipeline.state.stores.base import read_all

# So many files become one, or fewer that have so many bytes together.
PARTS = 100
MOST_BYTES = 64 << 20
LEVELS = (1, 2)
# So many files are deleted together.
DELETES = 200


class Joiner:
    """Joins the files of one log, below `folder`, which ends with a slash.

    `epoch` is the owner's. `check` raises if this process no longer owns the run.
    """

    def __init__(self, store: Store, folder: str, epoch: int, check: Callable[[], None]) -> None:
        self._store, self._folder, self._epoch, self._check = store, folder, epoch, check

    def step(self) -> bool:
        """Delete some parts of joined objects, or join one group of files; return whether there
        may be more to do now.

        Of earlier epochs, everything is complete. Raises Fenced, and StoreError: then another call
        continues.
        """
        files = self._files()
        apart = without_parts(files)
        if parts := {*files} - {*apart}:
            self._delete([*parts][:DELETES])
            return True
        groups = (group for level in LEVELS for group in self._groups(apart, level))
        return any(self._join(group) for group in groups)  # the first that can be joined

    def _files(self) -> list[Segment]:
        """Return all files with numbers of this and earlier epochs."""
        parsed = (parse(entry, self._folder) for entry in self._store.list(self._folder))
        return [s for s in parsed if s is not None and s.first >= 0 and s.epoch <= self._epoch]

    def _groups(self, files: Sequence[Segment], level: int) -> Iterator[list[Segment]]:
        """Yield the groups of neighbours to join into an object of this level."""
        for (epoch, below), of_epoch in groupby(files, key=lambda s: (s.epoch, s.level)):
            if below != level - 1:
                continue
            group: list[Segment] = []
            size = 0
            for segment in of_epoch:
                if group and (len(group) == PARTS or size + segment.bytes > MOST_BYTES):
                    if len(group) > 1:
                        yield group
                    group, size = [], 0
                group.append(segment)
                size += segment.bytes
            over = epoch < self._epoch
            if len(group) == PARTS or (over and len(group) > 1):
                yield group

    def _join(self, parts: Sequence[Segment]) -> bool:
        """Write the object that has the lines of `parts`; False if one of them can't be read."""
        try:
            contents = read_all(lambda s: self._store.read(s.key, LARGEST_SEGMENT), parts)
        except (Missing, Damaged):
            return False
        if any(len(content) != part.bytes for content, part in zip(contents, parts)):
            return False
        lines = b"".join(c if c.endswith(b"\n") or not c else c + b"\n" for c in contents)
        key = joined_key(self._folder, parts, len(lines))
        thin = thin_of(self._store, parts, contents)
        self._check()
        if thin is not None:  # first, so that whoever finds the object finds it
            self._store.write(thin_key(key), thin)
        self._store.write(key, lines)
        return True

    def _delete(self, parts: Sequence[Segment]) -> None:
        self._check()
        thin = [thin_key(part.key) for part in parts if part.level]
        read_all(self._store.delete, [*thin, *(part.key for part in parts)])
