"""The numbers of a reference that are computed so far, in the run's folder of the store.

Each chunk has the numbers of consecutive rows and is written as soon as it is computed, so a
process that dies loses less than one chunk. When all rows are done, the whole is shared
(share.py), and the chunks are deleted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from pion.errors import BadInput
from pion.train.reference import ReferenceSums, check_sums
from pion.untrusted import parse_object
from pipeline.machine.kill_points import mark
from pipeline.state.run_state import RunState

FORMAT = 1
# The most bytes of a chunk that is read.
LARGEST = 1 << 30


@dataclass
class Rows:
    """The numbers of consecutive rows from `first` on: how many each row has, and all of them."""

    first: int = 0
    counts: list[int] = field(default_factory=list)
    sums: list[float] = field(default_factory=list)

    @property
    def stop(self) -> int:
        """The row after the last one."""
        return self.first + len(self.counts)

    def add(self, row: list[float]) -> None:
        """Add the numbers of the next row."""
        self.counts.append(len(row))
        self.sums += row

    def whole(self) -> ReferenceSums:
        """Return the numbers of all rows from 0 on."""
        starts = np.concatenate([[0], np.cumsum(self.counts)]).astype(np.int64)
        return ReferenceSums(np.array(self.sums, dtype=np.float64), starts)


class Chunks:
    """The chunks of the reference `key` (64 hex digits) in the folder of a run."""

    def __init__(self, run: RunState, key: str) -> None:
        self._run, self._key = run, key
        self._folder = run.key(f"reference/{key[:32]}/")

    def read(self, split: str) -> Rows:
        """Return the rows of a split from 0 on that are there. Raises BadInput for a chunk that has
        changed since it was written, and StoreError."""
        found = Rows()
        for entry in self._run.store.list(f"{self._folder}{split}-"):
            where = f"{self._run.store.url}/{entry.key}"
            chunk = self._parsed(split, self._run.store.read(entry.key, LARGEST), where)
            if chunk.first == found.stop:  # else another owner wrote the same rows in other chunks
                found.counts += chunk.counts
                found.sums += chunk.sums
        return found

    def write(self, split: str, rows: Rows) -> None:
        """Make a chunk durable. Raises StoreError; then it may be called again."""
        counts = np.array(rows.counts, dtype="<i8").tobytes()
        payload = counts + np.array(rows.sums, dtype="<f8").tobytes()
        about = {
            "format": FORMAT,
            "key": self._key,
            "split": split,
            "first": rows.first,
            "rows": len(rows.counts),
            "sequences": len(rows.sums),
            "sha256": hashlib.sha256(payload).hexdigest(),
        }
        mark("reference")
        name = f"{self._folder}{split}-{rows.first:010d}.bin"
        self._run.store.write(name, json.dumps(about).encode() + b"\n" + payload)
        self._run.store.flush()
        mark("reference")

    def delete_all(self) -> None:
        """Delete the run's chunks of every reference: HEAD names the whole. Raises StoreError."""
        for entry in self._run.store.list(self._run.key("reference/")):
            self._run.store.delete(entry.key)

    def _parsed(self, split: str, data: bytes, where: str) -> Rows:
        try:
            head, _, payload = data.partition(b"\n")
            about = parse_object(head, "its first line")
            count = int(about["rows"])
            wanted = {"format": FORMAT, "key": self._key, "split": split}
            wanted["sha256"] = hashlib.sha256(payload).hexdigest()
            wrong = [name for name, value in wanted.items() if about[name] != value]
            if wrong:
                raise ValueError(f"its {wrong[0]} is {about[wrong[0]]!r:.80}")
            counts = np.frombuffer(payload[: 8 * count], dtype="<i8")
            sums = np.frombuffer(payload[8 * count :], dtype="<f8")
            held = about["sequences"], int(counts.sum())
            if len(counts) != count or held != (len(sums), len(sums)):
                raise ValueError("it is shorter or longer than it says")
            check_sums(sums, where)
            return Rows(int(about["first"]), counts.tolist(), sums.tolist())
        except (ValueError, KeyError, TypeError, BadInput) as error:
            raise BadInput(
                f"{where}: this part of the reference can't be used: {error}. Nothing was trained "
                "with it. Delete this file, and run the same command again: its rows are computed "
                "again"
            ) from None


def batches(first: int, stop: int, size: int, ranks: int) -> Iterator[list[range]]:
    """Yield, round after round, the rows of each rank.

    The rows of a batch depend on `first` and on the `size` of batches alone, and not on how many
    ranks there are. So the numbers don't, either.
    """
    for start in range(first, stop, size * ranks):
        begins = range(start, start + size * ranks, size)
        yield [range(min(begin, stop), min(begin + size, stop)) for begin in begins]
