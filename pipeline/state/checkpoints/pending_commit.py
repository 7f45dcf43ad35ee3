"""Track a save until HEAD lists it: was it uploaded, and did its commit land?"""

from __future__ import annotations

from pipeline.state.checkpoints.restore import Found
from pipeline.state.records import CheckpointEntry, Head


class PendingCommit:
    """The saves of one attempt at a stage: each is begun, then uploaded, then listed by HEAD.

    A save is begun when files may exist under its key. It is uploaded when the store has all of it,
    verified. It is listed when HEAD names it. A commit may land although the store never
    acknowledged it, so HEAD may already list an uploaded save. Such a save is never uploaded again
    under the same key.

    Attributes:
        last: the newest checkpoint that HEAD is known to list.
        ancestor: the key of the listed checkpoint that the next save descends from.
        newest_key: the key of the save that was begun last, listed or not. This machine may have a
            copy of that save.
    """

    def __init__(self, resumed: Found | None = None) -> None:
        entry = resumed.entry if resumed is not None else None
        listed = resumed is not None and resumed.listed
        self.last: CheckpointEntry | None = entry if listed else None
        self.ancestor: str | None = resumed.listed_key if resumed is not None else None
        self.newest_key: str | None = entry.key if entry is not None and not listed else None
        self._uploaded: CheckpointEntry | None = None  # not known to be listed
        self._unlisted: set[str] = set()  # keys begun since a commit was last acknowledged

    def begin(self, key: str) -> None:
        """Note that files may appear under `key` from now on."""
        self.newest_key = key
        self._unlisted.add(key)

    def uploaded(self, entry: CheckpointEntry) -> None:
        """Note that the store has all of `entry`, and that only its commit is missing."""
        self._uploaded = entry

    def uploaded_as(self, key: str) -> CheckpointEntry | None:
        """Return the uploaded save under `key` that is not known to be listed."""
        uploaded = self._uploaded
        return uploaded if uploaded is not None and uploaded.key == key else None

    @property
    def in_doubt(self) -> bool:
        """Whether a commit may have landed without an acknowledgement."""
        return self._uploaded is not None

    def look_for_landed(self, head: Head) -> CheckpointEntry | None:
        """Return the newest save of this attempt that `head`, just read, lists.

        That save counts as listed from now on, and the next save descends from it.
        """
        assert self._uploaded is not None
        attempt = (self._uploaded.stage, self._uploaded.epoch)
        for entry in head.checkpoints:
            if (entry.stage, entry.epoch) == attempt:
                self.last, self.ancestor = entry, entry.key
                return entry
        return None

    def given_up(self, key: str) -> list[str]:
        """Return the keys of the saves before `key` that no acknowledged commit lists."""
        return sorted(self._unlisted - {key})

    def acknowledged(self, entry: CheckpointEntry) -> None:
        """Note that the commit that lists `entry` has succeeded."""
        self.last, self.ancestor = entry, entry.key
        self._uploaded = None
        self._unlisted.clear()
