"""Pieces of a source to shards: the ids of the pieces are joined in order, and cut into rows.

A piece is a part of a text, or a buffer of records; many processes may encode pieces. What was
counted in a piece is kept in a file, `pieces/<number>.npz`, with its held-out ids: few of them come
from a piece, so their shards take long to fill. So an interrupted call, on any machine, encodes
only pieces again whose ids to train on are not all in finished shards.
"""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from pion.errors import BadInput, PionError
from pion.files import make_folder, write_atomically
from pion.untrusted import open_file, parse_object
from pipeline.console.messages import Note, Say
from pipeline.data.splits import RowFormat, Splits
from pipeline.machine.time_limit import attended_items
from pipeline.state.record_json import build
from pipeline.state.shared.unfinished import PIECES

# The largest share of records that may be skipped because they can't be used.
MOST_REFUSED = 0.01
# How many of them are named.
NAMED = 3
# What reading a damaged file raises.
_DAMAGED = (
    *(PionError, OSError, ValueError, KeyError, TypeError, EOFError, MemoryError, RuntimeError),
    *(AttributeError, zipfile.BadZipFile, zlib.error),
)
Piece = TypeVar("Piece")


@dataclass(frozen=True)
class EncodedPiece:
    """A piece as ids.

    Attributes:
        ids: of each split, the ids, and the flags of packed rows `(n, seq_len)`; None: the ids are
            of text, of any number.
        counts: what was counted: JSON, or a dataclass.
        refusals: why records can't be used.
    """

    ids: Mapping[str, tuple[np.ndarray, np.ndarray | None]]
    counts: Any
    refusals: Sequence[str] = ()


class PieceRows:
    """Writes the rows of the pieces of a source, below its `folder`.

    `counted` is the type of their counts, for `build`. With `flags`, the pieces are packed rows.

    Attributes:
        counts: what was counted in each piece that is finished.
        refusals: why the first of the records that can't be used can't.
        splits: the shards.
    """

    def __init__(
        self,
        folder: Path,
        rows: RowFormat,
        vocab_size: int,
        counted: type[Any],
        say: Say,
        *,
        flags: bool,
    ) -> None:
        self.counts: list[Any] = []
        self.refusals: list[str] = []
        # The writers of shards count pieces, as if each were one document.
        self._rows = replace(rows, key=f"pieces of {rows.key}")
        self._folder, self._counted = folder / PIECES, counted
        self.splits = Splits(folder, self._rows, vocab_size, flags=flags)
        # How many pieces are in finished shards.
        self._written = {split: writer.appended for split, writer in self.splits.writers.items()}
        if any(folder.glob("train/shard_*.json")) and not self.splits.writers["train"].shards:
            say(Note(f"{folder}: these shards can't be continued, and are written again"))
        while len(self.counts) < self._written["train"]:
            piece = self._read_kept()
            if piece is None:
                break
            self._append(piece)

    def write(
        self,
        pieces: Iterable[Piece],
        encode: Callable[[Iterator[Piece]], Iterator[EncodedPiece]],
        look: Callable[[], None],
    ) -> None:
        """Encode and write the pieces that are not finished.

        `encode` yields them in order. Meanwhile, `look` is called; it may raise. Raises BadInput if
        a shard can't be written, and what `encode` raises.
        """
        left = islice(pieces, len(self.counts), None)
        for piece in attended_items(encode(left), look):
            self._keep(piece)
            self._append(piece)
            look()

    def _append(self, piece: EncodedPiece) -> None:
        """Write the ids of the next piece that are in no finished shard."""
        for split, (ids, flags) in piece.ids.items():
            if len(self.counts) >= self._written[split]:
                with self.splits.writing(split) as writer:
                    writer.append_documents(ids.ravel(), np.array([ids.size]), flags)
        self.refusals = list(dict.fromkeys([*self.refusals, *piece.refusals]))[:NAMED]
        self.counts.append(piece.counts)

    @property
    def _next_kept(self) -> Path:
        return self._folder / f"{len(self.counts):06}.npz"

    def _keep(self, piece: EncodedPiece) -> None:
        """Keep the counts and the held-out ids of the next piece."""
        ids, flags = piece.ids["held_out"]
        columns = {"ids": ids} if flags is None else {"ids": ids, "flags": flags}
        record = {
            "key": self._rows.key,
            "counts": piece.counts,
            "refusals": list(piece.refusals[:NAMED]),
        }
        content = io.BytesIO()
        np.savez(content, allow_pickle=False, record=json.dumps(record, default=asdict), **columns)
        make_folder(self._folder)
        write_atomically(self._next_kept, content.getvalue())
        self._rows.finished(self._next_kept)

    def _read_kept(self) -> EncodedPiece | None:
        """Return what was kept of the next piece; None if that can't be read, or is of another
        piece."""
        try:
            with open_file(self._next_kept) as file, np.load(file, allow_pickle=False) as arrays:
                record = parse_object(str(arrays["record"]).encode(), "")
                ids, flags = arrays["ids"], arrays.get("flags")
                if record["key"] != self._rows.key or (
                    flags is not None and flags.size != ids.size
                ):
                    return None
                refusals = [str(refusal) for refusal in record["refusals"]]
                counts = build(self._counted, record["counts"], "")
                return EncodedPiece({"held_out": (ids, flags)}, counts, refusals)
        except _DAMAGED:
            return None


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
