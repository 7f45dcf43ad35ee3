"""The numbers of a reference that are computed so far, in the run's folder of the store.

Each chunk has the numbers of consecutive rows and is written as soon as it is computed, so a
process that dies loses less than one chunk. When all rows are done, the whole is shared
(share.py), and the chunks are deleted.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from pion.errors import BadInput
from pion.train.reference import ReferenceSums, check_sums
from pion.untrusted import parse_object
from pipeline.machine.kill_points import mark
from pipeline.state.run_state import RunState

# 1 had the numbers as bytes, and was never released.
FORMAT = 2
# The most bytes of a chunk that is read.
LARGEST = 1 << 30


@dataclass
class Rows:
    """The numbers of each of some consecutive rows, from `first` on."""

    first: int = 0
    numbers: list[list[float]] = field(default_factory=list)

    @property
    def stop(self) -> int:
        """The row after the last one."""
        return self.first + len(self.numbers)

    def whole(self) -> ReferenceSums:
        """Return the numbers of all rows from 0 on."""
        starts = np.cumsum([0, *map(len, self.numbers)], dtype=np.int64)
        return ReferenceSums(flat(self.numbers), starts)


def flat(numbers: list[list[float]]) -> np.ndarray:
    """Return the numbers of all rows, one after the other."""
    return np.array(list(itertools.chain(*numbers)), dtype=np.float64)


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
                found.numbers += chunk.numbers
        return found

    def write(self, split: str, rows: Rows) -> None:
        """Make a chunk durable. Raises StoreError; then it may be called again."""
        about = {"format": FORMAT, "key": self._key, "split": split}
        chunk = json.dumps(about | {"first": rows.first, "rows": rows.numbers}).encode()
        mark("reference")
        name = f"{self._folder}{split}-{rows.first:010d}.json"
        self._run.store.write(name, hashlib.sha256(chunk).hexdigest().encode() + b"\n" + chunk)
        self._run.store.flush()
        mark("reference")

    def delete_all(self) -> None:
        """Delete the run's chunks of every reference: HEAD names the whole. Raises StoreError."""
        for entry in self._run.store.list(self._run.key("reference/")):
            self._run.store.delete(entry.key)

    def _parsed(self, split: str, data: bytes, where: str) -> Rows:
        try:
            sha256, _, payload = data.partition(b"\n")
            chunk = parse_object(payload, "its second line")
            found = chunk | {"sha256": sha256.decode()}
            wanted = {"format": FORMAT, "key": self._key, "split": split}
            wanted["sha256"] = hashlib.sha256(payload).hexdigest()
            wrong = [name for name, value in wanted.items() if found[name] != value]
            if wrong:
                raise ValueError(f"its {wrong[0]} is {found[wrong[0]]!r:.80}")
            rows = Rows(int(chunk["first"]), chunk["rows"])
            check_sums(flat(rows.numbers), where)
            return rows
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
