"""Records to packed rows: a buffer of them after the other, cut into shards.

Buffers are the pieces of this data: many processes may pack them. The counts of each buffer are
written to a file, so that an interrupted call resumes with the buffer in which its last finished
shard ends.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pion.errors import BadInput
from pion.files import make_folder, write_atomically
from pion.untrusted import LARGEST_LISTING, read_json
from pipeline.data.prepared import SPLITS
from pipeline.data.splits import RowFormat, Splits
from pipeline.machine.time_limit import attended_items
from pipeline.state.shared.unfinished import PIECES

PROGRESS = "packed.json"
# The largest share of records that may be skipped because they can't be used.
MOST_REFUSED = 0.01
# How many of them are named.
NAMED = 3
Buffer = TypeVar("Buffer")
Counts = dict[str, Any]


@dataclass(frozen=True)
class PackedBuffer:
    """A buffer as rows.

    Attributes:
        rows: of each split that it has, the ids and the flags of its rows, `(n, seq_len)`.
        counts: what was counted, as JSON.
        refusals: why records can't be used.
    """

    rows: Mapping[str, tuple[np.ndarray, np.ndarray]]
    counts: Counts
    refusals: list[str]


class PackedRows:
    """Writes the rows of the buffers of a source, below its `folder`.

    `parse` returns counts that were written to a file before, or raises BadInput, KeyError,
    TypeError or ValueError.

    Attributes:
        counts: what was counted, by the number of the buffer.
        refusals: why the first of the records that can't be used can't.
        splits: the shards.
    """

    def __init__(
        self, folder: Path, rows: RowFormat, vocab_size: int, parse: Callable[[Any], Counts]
    ) -> None:
        self.counts: dict[int, Counts] = {}
        self.refusals: list[str] = []
        self._progress, self._format = folder / PIECES / PROGRESS, rows
        self.splits = Splits(folder, rows, vocab_size, flags=True)
        # By the number of the buffer, the rows of each split.
        self._rows: dict[int, dict[str, int]] = {}
        self._take_over(parse)
        # Rows in finished shards that belong to the buffer that is packed again first.
        self._written = {
            split: writer.appended - sum(rows[split] for rows in self._rows.values())
            for split, writer in self.splits.writers.items()
        }

    def write(
        self,
        buffers: Iterable[Buffer],
        pack: Callable[[Iterator[Buffer]], Iterator[PackedBuffer]],
        look: Callable[[], None],
    ) -> None:
        """Pack and write the buffers whose rows are not all in finished shards.

        `pack` yields buffers as rows, in order. Meanwhile, `look` is called; it may raise. Raises
        BadInput if a shard can't be written, and what `pack` raises.
        """
        done = frozenset(self.counts)
        left = (buffer for number, buffer in enumerate(buffers) if number not in done)
        numbers = (number for number in itertools.count() if number not in done)
        for packed, number in zip(attended_items(pack(left), look), numbers):
            self._write(number, packed)

    def _write(self, number: int, packed: PackedBuffer) -> None:
        """Write the rows of a buffer that are in no finished shard, and what was counted."""
        for split, (ids, flags) in packed.rows.items():
            skipped = min(self._written[split], len(ids))
            self._written[split] -= skipped
            with self.splits.writing(split) as writer:
                writer.append_rows(ids[skipped:], flags[skipped:])
        # After an interruption, a buffer may be packed again.
        self.refusals = list(dict.fromkeys([*self.refusals, *packed.refusals]))[:NAMED]
        lengths = {split: len(ids) for split, (ids, _) in packed.rows.items()}
        self._rows[number] = dict.fromkeys(SPLITS, 0) | lengths
        self.counts[number] = packed.counts
        buffers = {n: {"rows": self._rows[n], "counts": self.counts[n]} for n in self.counts}
        progress = {"key": self._format.key, "buffers": buffers, "refusals": self.refusals}
        make_folder(self._progress.parent)
        write_atomically(self._progress, json.dumps(progress).encode())
        self._format.finished(self._progress)

    def _take_over(self, parse: Callable[[Any], Counts]) -> None:
        """Note the buffers whose rows are all in finished shards."""
        try:
            progress = read_json(self._progress, LARGEST_LISTING)
            if progress["key"] != self._format.key:
                return
            found = {
                int(number): (_rows_of(buffer), parse(buffer["counts"]))
                for number, buffer in progress["buffers"].items()
            }
            refusals = [str(refusal) for refusal in progress["refusals"]]
        except (OSError, BadInput, KeyError, TypeError, ValueError, AttributeError):
            return  # never packed, or not by this class: pack again
        self.refusals = refusals
        ends = dict.fromkeys(SPLITS, 0)
        for number, (rows, counts) in sorted(found.items()):
            ends = {split: end + rows[split] for split, end in ends.items()}
            writers = self.splits.writers
            if all(ends[split] <= writers[split].appended for split in SPLITS if rows[split]):
                self._rows[number], self.counts[number] = rows, counts


def _rows_of(buffer: Mapping[str, Any]) -> dict[str, int]:
    rows = {split: int(buffer["rows"][split]) for split in SPLITS}
    if min(rows.values()) < 0:
        raise ValueError(f"{rows} are no rows")
    return rows


def require_usable(
    what: str, refused: int, read: int, refusals: Sequence[str], where: str = ""
) -> None:
    """Raise BadInput if more than MOST_REFUSED of the records that were read can't be used.

    `what` they are, in words, and `where`, which begins the message.
    """
    if refused > MOST_REFUSED * read:
        raise BadInput(
            f"{where}{refused:,} of {read:,} {what} can't be used, more than "
            f"{MOST_REFUSED:.0%}. The first: {'; '.join(refusals[:NAMED])}. Nothing was trained. "
            "Correct or remove them, or use another data set"
        )
