"""Text to training rows: encoded, joined by end-of-text, cut into shards.

Pieces of files are encoded side by side, and joined in order. First, each piece is read once. That
takes a fortieth of the time of encoding, and finds the mistakes in the text before anything is
encoded or uploaded. Documents that are in no pieces are encoded in batches, by this process.

Few held-out ids come from a piece, so their shards take long to fill. Those of each piece are kept
in a file, `pieces/<number>.npz`, with what was counted in the piece. So after an interruption, only
pieces are encoded again whose ids to train on are in no finished shard.
"""

from __future__ import annotations

import hashlib
import io
import json
import time
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pion.data.tokens.tokenizer import Tokenizer
from pion.errors import BadInput
from pion.files import make_folder, write_atomically
from pion.untrusted import open_file, parse_object
from pipeline.console.messages import PrepareProgress, Say
from pipeline.data.encode_piece import (
    Encoded,
    Found,
    Joined,
    Reading,
    batches,
    encode_piece,
    encode_texts,
    numbered,
    read_piece,
)
from pipeline.data.pieces import Piece
from pipeline.data.prepared import SPLITS, counts_of
from pipeline.data.remarks import Remarks
from pipeline.data.splits import RowFormat, Splits
from pipeline.data.tasks import Tasks
from pipeline.machine.time_limit import attended_items
from pipeline.state.record_json import Count, build, closed_record
from pipeline.state.shared.unfinished import PIECES

# What numpy raises for a damaged file.
_DAMAGED = (
    *(BadInput, OSError, ValueError, KeyError, TypeError, EOFError, MemoryError, RuntimeError),
    *(zipfile.BadZipFile, zlib.error),
)


def write_document_rows(
    documents: Iterable[tuple[bool, str]],
    tokenizer: Tokenizer,
    place: Path,
    rows: RowFormat,
    progress: tuple[str, Say],
) -> dict[str, Any]:
    """Write the shards of both splits below `place` and return what was counted.

    `documents` are (held out?, text). Those in shards that an interrupted call finished are read
    but not encoded again. `progress` is what is done, in words, and who hears of it. Raises
    BadInput if a shard can't be written.
    """
    splits = Splits(place, rows, tokenizer.vocab_size)
    left = {split: writer.appended for split, writer in splits.writers.items()}
    number = size = encoded = 0
    seconds = 0.0

    def not_yet_written() -> Iterator[tuple[str, str]]:
        nonlocal number, size
        for held_out, text in documents:
            split = SPLITS[held_out]
            number, size = number + 1, size + len(text.encode())
            left[split] -= 1
            if left[split] < 0:
                yield split, text

    def encode() -> Iterator[Joined]:
        nonlocal encoded, seconds
        for batch in batches(not_yet_written()):
            started = time.monotonic()
            found = encode_texts(tokenizer, batch)
            seconds += time.monotonic() - started
            encoded += sum(len(text.encode()) for _, text in batch)
            yield found

    def look() -> None:
        what, say = progress
        say(PrepareProgress(what, size / 1e6, "MB"))

    for one in attended_items(encode(), look):
        for split, (ids, lengths) in one.items():
            with splits.writing(split) as writer:
                writer.append_documents(ids, lengths)
        look()
    return _report(splits, number, size, encoded / 1e6 / seconds if seconds else 0.0)


def _report(splits: Splits, documents: int, size: int, speed: float) -> dict[str, Any]:
    """Write the last shards and the manifests; return what was counted, and the MB per second."""
    report: dict[str, Any] = {"documents": documents, "bytes": size}
    for split, manifest in splits.finish("tokens").items():
        report |= counts_of(split, manifest)
    return report | ({"mb_per_second": round(speed, 2)} if speed else {})


# ---------------------------------------------------------------- pieces


@closed_record
@dataclass(frozen=True)
class Counted:
    """What was counted in a piece of the rows with a `key`: what was `found` when it was read, and
    what an `Encoded` piece has besides its ids."""

    key: str
    found: Found
    bytes: Count
    replaced: Count
    places: tuple[str, ...]
    noted: dict[str, tuple[int, str]]


class PieceRows:
    """The rows of a source that is cut into `pieces`, below the folder `place`.

    `tasks` does the work. What an interrupted process has finished there is taken over.
    """

    def __init__(
        self, reading: Reading, pieces: Sequence[Piece], place: Path, rows: RowFormat, tasks: Tasks
    ) -> None:
        self._reading, self._pieces, self._place, self._tasks = reading, pieces, place, tasks
        self._rows = replace(rows, key=_key(rows, pieces))
        kept = enumerate(map(self._read_kept, range(len(pieces))))
        self._counted = {number: one[0] for number, one in kept if one is not None}
        self._found = {number: one.found for number, one in self._counted.items()}

    def read(self, say: Say) -> None:
        """Read the pieces that were not read before. Raises BadInput for the first mistake."""
        left = [number for number in range(len(self._pieces)) if number not in self._found]
        what = f"read {self._reading.key} in pieces"

        def look() -> None:
            done = sum(self._pieces[number].bytes for number in self._found)
            say(PrepareProgress(what, done / 1e6, "MB", total=_bytes(self._pieces) / 1e6))

        pieces = [self._pieces[number] for number in left]
        new = self._tasks.map(read_piece, self._reading, pieces)
        try:
            # In this order, all results are taken: the tasks may do no other work before.
            for found, number in zip(attended_items(new, look), left, strict=True):
                self._found[number] = found
                look()
        except BadInput:
            # Only here it is known how many lines come before those of this piece.
            *_, piece = numbered(self._pieces, self._found)
            read_piece(self._reading, piece)
            raise

    def write(
        self, tokenizer: Tokenizer, remarks: Remarks, progress: tuple[str, Say]
    ) -> dict[str, Any] | None:
        """Write the shards of both splits and return what was counted; None if there is no
        document. The pieces were read.

        `progress` is what is done, in words, and who hears of it. Raises BadInput if a shard can't
        be written, and for files that have changed.
        """
        documents = sum(one.documents for one in self._found.values())
        if not documents:
            return None
        splits = Splits(self._place, self._rows, tokenizer.vocab_size)
        taken = {split: writer.appended for split, writer in splits.writers.items()}
        start = number = self._take_over(splits, taken)
        started, encoded = time.monotonic(), 0
        what, say = progress

        def look() -> None:
            say(self._progress(what, start, number, time.monotonic() - started))

        pieces = list(numbered(self._pieces, self._found))[start:]
        new = self._tasks.map(encode_piece, self._reading, pieces)
        for piece, _ in zip(attended_items(new, look), pieces, strict=True):
            self._keep(number, piece)
            for split in SPLITS:
                if number >= taken[split]:
                    _append(splits, split, piece.joined[split][0])
            encoded += piece.bytes
            number += 1
            look()
        counted = [one for _, one in sorted(self._counted.items())]
        for one in counted:
            remarks.replaced.add(one.replaced, one.places)
            for words, (count, where) in one.noted.items():
                remarks.note_text(words, where, count)
        speed = encoded / 1e6 / (time.monotonic() - started) if encoded else 0.0
        return _report(splits, documents, sum(one.bytes for one in counted), speed)

    def _take_over(self, splits: Splits, taken: Mapping[str, int]) -> int:
        """Append what was kept of pieces that are `taken`: their ids to train on are in finished
        shards. Return the first piece to encode."""
        for number in range(taken["train"]):
            kept = self._read_kept(number)
            if kept is None:
                return number
            if number >= taken["held_out"]:
                _append(splits, "held_out", kept[1])
        return taken["train"]

    def _progress(self, what: str, start: int, number: int, seconds: float) -> PrepareProgress:
        """Return how far it is before piece `number`, after so many seconds from piece `start`."""
        done, total = _bytes(self._pieces[:number]), _bytes(self._pieces)
        speed = _bytes(self._pieces[start:number]) / seconds if seconds else 0.0
        detail = f"piece {number:,}/{len(self._pieces):,}"
        return PrepareProgress(
            what,
            done / 1e6,
            "MB",
            total=total / 1e6,
            eta=(total - done) / speed if speed else None,
            detail=detail + (f", {speed / 1e6:.1f} MB/s" if speed else ""),
        )

    def _keep(self, number: int, piece: Encoded) -> None:
        """Keep what was counted in a piece, and its held-out ids: they will be in a shard much
        later. Raises BadInput if the piece has changed since it was read."""
        documents = sum(len(lengths) for _, lengths in piece.joined.values())
        if documents != self._found[number].documents:
            raise BadInput(
                f"{self._reading.key}: the files have changed while they were prepared. Nothing "
                "was trained. Wait until they are complete, then run the same command again."
            )
        counted = Counted(
            self._rows.key,
            self._found[number],
            piece.bytes,
            piece.replaced,
            piece.places,
            dict(piece.noted),
        )
        content = io.BytesIO()
        np.savez(content, ids=piece.joined["held_out"][0], counted=json.dumps(asdict(counted)))
        path = self._path(number)
        make_folder(path.parent)
        write_atomically(path, content.getvalue())
        self._rows.finished(path)
        self._counted[number] = counted

    def _read_kept(self, number: int) -> tuple[Counted, np.ndarray] | None:
        """Return what was counted in a piece, and its held-out ids; None if that can't be read, or
        is of another piece."""
        path = self._path(number)
        try:
            with open_file(path) as file, np.load(file, allow_pickle=False) as kept:
                counted = build(Counted, parse_object(str(kept["counted"]).encode(), ""), "")
                fits = len(counted.found.items) == len(self._pieces[number].spans)
                return (counted, kept["ids"]) if fits and counted.key == self._rows.key else None
        except _DAMAGED:
            return None

    def _path(self, number: int) -> Path:
        return self._place / PIECES / f"{number:06}.npz"


def _key(rows: RowFormat, pieces: Sequence[Piece]) -> str:
    """Return what identifies the rows and the pieces, wherever the files are."""
    cuts = [[[span.start, span.end, span.seen] for span in piece.spans] for piece in pieces]
    return hashlib.sha256(json.dumps([rows.key, cuts]).encode()).hexdigest()


def _bytes(pieces: Iterable[Piece]) -> int:
    return sum(piece.bytes for piece in pieces)


def _append(splits: Splits, split: str, ids: np.ndarray) -> None:
    """Append the ids of a piece. The writer counts pieces, as if each were one document."""
    with splits.writing(split) as writer:
        writer.append_documents(ids, np.array([len(ids)]))
