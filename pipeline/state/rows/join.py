"""Join the segments of a log of rows, so that a long run has few files. Only the owner does it.

A run of weeks flushes some ten thousand times a day. Every hundred segments become one object, and
every hundred of these another. A joined object is written before anything is deleted, and its parts
are deleted an hour later: a reader that listed them before has read them by then. If the owner dies
in between, the next owner continues from what is there.

Many owners live for less than an hour. So each notes since when there are joined objects next to
their parts, by the store's clock, and the next owner deletes parts by this note. A store without a
clock, such as a folder of several machines, gets no note: the clock of another owner's machine may
be wrong. There only an owner that lives for an hour deletes parts.

    <folder>/joined.json    {"format": 1, "since": {"2/000000-000099-1-345678.jsonl": 1790000000}}
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from pion.errors import BadInput
from pipeline.state.head import TRASH_SECONDS
from pipeline.state.record_json import FORMAT, Damaged, Time, build, closed_record, parse, to_json
from pipeline.state.rows.row_types import LARGEST_SEGMENT
from pipeline.state.rows.segments import Segment, around_parts, joined_key, without_parts
from pipeline.state.rows.segments import parse as parse_name
from pipeline.state.rows.thin import thin_key, thin_of
from pipeline.state.stores import Missing, Store
from pipeline.state.stores.clock import Clock
from pipeline.state.stores.parallel import read_all

# So many files become one, or fewer that have so many bytes together.
PARTS = 100
MOST_BYTES = 64 << 20
LEVELS = (1, 2)
# So many files are deleted together.
DELETES = 200
NOTE = "joined.json"
# A note of ten thousand objects has half a megabyte.
LARGEST_NOTE = 4 << 20


@closed_record
@dataclass(frozen=True)
class _Note:
    """Since when joined objects are there, in Unix seconds by the store's clock, by their names."""

    since: dict[str, Time]


class Joiner:
    """Joins the files of one log, below `folder`, which ends with a slash.

    `epoch` is the owner's. `check` raises if this process no longer owns the run. `service_now`
    is the time by the clock of the store's service, None if that is not known.
    """

    def __init__(
        self,
        store: Store,
        folder: str,
        epoch: int,
        clock: Clock,
        check: Callable[[], None],
        service_now: Callable[[], float | None] = lambda: None,
    ) -> None:
        self._store, self._folder, self._epoch = store, folder, epoch
        self._clock, self._check = clock, check
        # When this process first saw each joined object, by the clock that never jumps.
        self._seen: dict[str, float] = {}
        self._service_now = service_now
        # What earlier owners have noted, and what the note says now. None: nobody has read it yet.
        self._before: Mapping[str, float] | None = None
        self._noted: Mapping[str, float] = {}

    def step(self) -> bool:
        """Join one group of files, and delete some parts of what was joined an hour ago, by this
        owner or an earlier one; return whether there may be more to do now.

        Of earlier epochs, everything is complete. Raises Fenced, and StoreError: then another call
        continues.
        """
        files = self._files()
        apart = without_parts(files)
        groups = (group for level in LEVELS for group in self._groups(apart, level))
        joined = any(self._join(group) for group in groups)  # the first that can be joined
        return self._delete_parts(files) or joined

    def _files(self) -> list[Segment]:
        """Return all files with numbers of this and earlier epochs."""
        found = (parse_name(entry, self._folder) for entry in self._store.list(self._folder))
        return [s for s in found if s is not None and s.first >= 0 and s.epoch <= self._epoch]

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

    def _delete_parts(self, files: Sequence[Segment]) -> bool:
        """Delete some of the parts that are due; return whether there were any."""
        inside = around_parts(files)
        old = self._old({around.key for _, joined in inside for around in joined})
        due = [part for part, joined in inside if any(around.key in old for around in joined)]
        self._check()
        keys = [part.key for part in due[:DELETES]]
        thin = [thin_key(part.key) for part in due[:DELETES] if part.level]
        read_all(self._store.delete, [*thin, *keys])
        return bool(due)

    def _old(self, keys: set[str]) -> set[str]:
        """Return which joined objects have been there for an hour, of those that have parts; note
        since when the others are there."""
        if not keys:
            self._note({})
            return set()
        now = self._clock.monotonic()
        # This machine's own clock may be set while this process lives.
        old = {k for k in keys if now - self._seen.setdefault(k, now) >= TRASH_SECONDS}
        there = self._service_now()
        if there is None:
            return old
        if self._before is None:
            self._before = self._noted = self._read_note()
        old |= {k for k in keys if there - self._before.get(k, there) >= TRASH_SECONDS}
        self._note({k: min(self._noted.get(k, there), there) for k in keys})
        return old

    def _read_note(self) -> dict[str, float]:
        """Return since when joined objects are there, by their keys, as an earlier owner noted it;
        empty if nobody has, or the note can't be read: then this owner starts its own."""
        key = self._folder + NOTE
        try:
            raw = parse(self._store.read(key, LARGEST_NOTE), key)
            note = build(_Note, {k: v for k, v in raw.items() if k != "format"}, key)
        except (Missing, BadInput):
            return {}
        return {self._folder + name: at for name, at in note.since.items()}

    def _note(self, since: Mapping[str, float]) -> None:
        if since == self._noted:
            return
        self._check()
        if since:
            names = {key.removeprefix(self._folder): at for key, at in since.items()}
            self._store.write(
                self._folder + NOTE, to_json({"format": FORMAT, "since": names}).encode()
            )
        else:
            self._store.delete(self._folder + NOTE)
        self._noted = since
