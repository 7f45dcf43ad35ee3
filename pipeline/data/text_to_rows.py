"""Text to training rows: encoded, joined by end-of-text, cut into shards.

Pieces of files are counted and encoded side by side, and joined in order. First, each piece is read
once to count its documents. That takes a fortieth of the time of encoding, finds the mistakes in
the text before anything is encoded or uploaded, and says with which piece an interrupted call
continues. Documents that are in no pieces are encoded in batches, by this process.

Few held-out ids come from a piece, so their shards take long to fill. Those of each piece are kept
in a file, `pieces/<number>.npz`. So after an interruption, only pieces are encoded again whose ids
to train on are in no finished shard.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import time
import zipfile
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from pion.data.tokens.tokenizer import Tokenizer
from pion.errors import BadInput
from pion.files import make_folder, write_atomically
from pion.untrusted import LARGEST_LISTING, open_file, read_json
from pipeline.console.messages import Note, PrepareProgress, Say
from pipeline.data.encode_piece import (
    Counted,
    Encoded,
    Joined,
    Reading,
    batches,
    count_piece,
    encode_piece,
    encode_texts,
    gone,
    numbered,
)
from pipeline.data.pieces import Piece, cut_pieces, too_large
from pipeline.data.prepared import SPLITS, counts_of
from pipeline.data.remarks import Remarks
from pipeline.data.splits import RowFormat, Splits
from pipeline.data.tasks import Tasks
from pipeline.machine.time_limit import attended_items
from pipeline.state.shared.unfinished import PIECES

_COUNTED = "counted.json"
# The counts so far are written this often, in seconds.
_WRITE_SECONDS = 5.0
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


@dataclass(frozen=True)
class PieceSource:
    """A source that is prepared in pieces.

    Attributes:
        reading: how its pieces are read and encoded.
        files: its files, in order.
        piece_bytes: about so many bytes are a piece.
        tasks: what does the work.
        finished: is told each file that is finished.
        remarks: is told what is worth saying of its texts.
    """

    reading: Reading
    files: tuple[Path, ...]
    piece_bytes: int
    tasks: Tasks
    finished: Callable[[Path], object]
    remarks: Remarks


def write_piece_rows(
    source: PieceSource,
    tokenizer: Tokenizer,
    place: Path,
    rows: RowFormat,
    progress: tuple[str, Say],
) -> dict[str, Any] | None:
    """Write the shards of both splits below `place` and return what was counted.

    `progress` is what is done, in words, and who hears of it. Returns None if there is no document,
    or a piece is too large for the memory. Raises BadInput for the first mistake in the text,
    before any shard is written, and if a shard can't be written.
    """
    what, say = progress
    cut = _cut(source)
    if (large := too_large(cut)) is not None:
        say(Note(f"{source.reading.key}: {large}, so one process tokenizes this source"))
        return None
    key = _key(rows, cut)
    counted = _count(source, cut, place, key, say)
    documents = sum(sum(one.documents.values()) for one in counted)
    if not documents:
        return None
    splits = Splits(place, rows, tokenizer.vocab_size)
    cut = numbered(cut, counted)[: len(cut)]
    speed = _Joining(source, place, key, cut, counted, splits).join(what, say)
    return _report(splits, documents, sum(one.bytes for one in counted), speed)


def check_pieces(source: PieceSource, place: Path, rows: RowFormat, say: Say) -> None:
    """Read a source once, before the rows of any source are written. Its rows go below `place`.

    Raises BadInput for the first mistake in the text. A source whose pieces are too large is left
    to whoever writes its rows.
    """
    cut = _cut(source)
    if too_large(cut) is None:
        _count(source, cut, place, _key(rows, cut), say)


def _cut(source: PieceSource) -> list[Piece]:
    reading = source.reading
    try:
        return cut_pieces(reading.source, source.files, reading.longest, source.piece_bytes)
    except FileNotFoundError as error:
        raise gone(error.filename) from None


def _key(rows: RowFormat, pieces: Sequence[Piece]) -> str:
    """Return what identifies the rows and the pieces, wherever the files are."""
    cuts = [[[span.start, span.end, span.seen] for span in piece.spans] for piece in pieces]
    return hashlib.sha256(json.dumps([rows.key, cuts]).encode()).hexdigest()


# ---------------------------------------------------------------- counting


def _count(
    source: PieceSource, pieces: Sequence[Piece], place: Path, key: str, say: Say
) -> list[Counted]:
    """Return what each piece has, as far as it is not in the file with the counts."""
    path = place / PIECES / _COUNTED
    counted = _read_counted(path, key, pieces)
    if not counted:  # what is kept there may be of other pieces
        shutil.rmtree(path.parent, ignore_errors=True)
    make_folder(path.parent)
    if len(counted) == len(pieces):
        return counted
    total, written = sum(piece.bytes for piece in pieces), time.monotonic()

    def look() -> None:
        done = sum(piece.bytes for piece in pieces[: len(counted)])
        say(PrepareProgress(f"read {source.reading.key} in pieces", done / 1e6, "MB", total / 1e6))

    new = source.tasks.map(count_piece, source.reading, pieces[len(counted) :])
    try:
        for one in attended_items(new, look):
            counted.append(one)
            look()
            if time.monotonic() - written > _WRITE_SECONDS:
                _write_counted(path, key, counted)
                written = time.monotonic()
    except BadInput:
        # Only here it is known how many lines come before those of this piece.
        count_piece(source.reading, numbered(pieces, counted)[-1])
        raise
    _write_counted(path, key, counted)
    source.finished(path)
    return counted


def _write_counted(path: Path, key: str, counted: Sequence[Counted]) -> None:
    pieces = [[one.documents, one.bytes, one.items] for one in counted]
    write_atomically(path, json.dumps({"key": key, "pieces": pieces}).encode())


def _read_counted(path: Path, key: str, pieces: Sequence[Piece]) -> list[Counted]:
    """Return the counts of the first pieces; none if the file is missing, or of other pieces.

    What is kept of pieces was written after all counts.
    """
    try:
        found = read_json(path, LARGEST_LISTING)
        if found["key"] != key:
            return []
        counted = [
            Counted({split: int(d[split]) for split in SPLITS}, int(b), tuple(map(int, items)))
            for d, b, items in found["pieces"]
        ]
    except (OSError, BadInput, KeyError, TypeError, ValueError):
        return []
    fits = all(len(one.items) == len(p.spans) for one, p in zip(counted, pieces))
    return counted if fits and len(counted) <= len(pieces) else []


# ---------------------------------------------------------------- encoding


class _Joining:
    """Encodes pieces and joins them into shards."""

    def __init__(
        self,
        source: PieceSource,
        place: Path,
        key: str,
        pieces: Sequence[Piece],
        counted: Sequence[Counted],
        splits: Splits,
    ) -> None:
        self._source, self._place, self._key = source, place, key
        self._pieces, self._counted, self._splits = pieces, counted, splits
        # Of each split, the documents before each piece, and those in finished shards.
        self._before = {
            split: [0, *accumulate(one.documents[split] for one in counted)] for split in SPLITS
        }
        self._written = {split: splits.writers[split].appended for split in SPLITS}

    def join(self, what: str, say: Say) -> float:
        """Encode and join all pieces that are in no finished shard. Return how many MB of text were
        encoded per second; 0 if none was."""
        start = self._take_over()
        started, encoded = time.monotonic(), 0
        sizes = [0, *accumulate(one.bytes for one in self._counted)]

        def look() -> None:
            seconds = time.monotonic() - started
            speed = encoded / seconds if seconds else 0.0
            left = sizes[-1] - sizes[start] - encoded
            detail = f"piece {done:,}/{len(self._pieces):,}"
            say(
                PrepareProgress(
                    what,
                    (sizes[start] + encoded) / 1e6,
                    "MB",
                    total=sizes[-1] / 1e6,
                    eta=left / speed if speed else None,
                    detail=detail + (f", {speed / 1e6:.1f} MB/s" if speed else ""),
                )
            )

        done = start
        tasks = self._source.tasks.map(encode_piece, self._source.reading, self._pieces[start:])
        for one in attended_items(tasks, look):
            self._keep_held_out(done, one)
            self._append(done, one)
            encoded += self._counted[done].bytes
            done += 1
            look()
        return encoded / 1e6 / (time.monotonic() - started) if encoded else 0.0

    def _take_over(self) -> int:
        """Append what was kept of pieces whose ids to train on are in finished shards. Return the
        first piece to encode."""
        first = {split: bisect_right(self._before[split], self._written[split]) - 1
                 for split in SPLITS}  # fmt: skip
        start = min(first["train"], len(self._pieces))
        for number in range(start):
            kept = self._read_kept(number, ids=number >= first["held_out"])
            if kept is None:
                return number
            self._append(number, kept)
        return start

    def _append(self, number: int, piece: Encoded) -> None:
        """Append a piece, but for the documents in finished shards."""
        for split, (ids, lengths) in piece.joined.items():
            if len(lengths) != self._counted[number].documents[split]:
                raise BadInput(
                    f"{self._source.reading.key}: the files have changed while they were prepared. "
                    "Nothing was trained. Wait until they are complete, then run the same command "
                    "again."
                )
            skipped = max(0, min(self._written[split] - self._before[split][number], len(lengths)))
            with self._splits.writing(split) as writer:
                writer.append_documents(ids[int(lengths[:skipped].sum()) :], lengths[skipped:])
        remarks = self._source.remarks
        remarks.replaced.add(piece.replaced, piece.places)
        for words, (count, where) in piece.noted.items():
            remarks.note_text(words, where, count)

    def _keep_held_out(self, number: int, piece: Encoded) -> None:
        """Keep the held-out ids of a piece: they will be in a shard much later."""
        content = io.BytesIO()
        ids, lengths = piece.joined["held_out"]
        np.savez(
            content,
            key=np.array(self._key, np.str_),
            ids=ids,
            lengths=lengths,
            replaced=piece.replaced,
            places=np.array(piece.places, np.str_),
            noted=json.dumps(piece.noted),
        )
        path = self._path(number)
        write_atomically(path, content.getvalue())
        self._source.finished(path)

    def _read_kept(self, number: int, *, ids: bool) -> Encoded | None:
        """Return what was kept of a piece, without its ids if they are not needed; None if that
        can't be read, or is of another piece."""
        try:
            with open_file(self._path(number)) as file, np.load(file, allow_pickle=False) as kept:
                lengths = kept["lengths"]
                documents = self._counted[number].documents["held_out"]
                if str(kept["key"]) != self._key or len(lengths) != documents:
                    return None
                return Encoded(
                    {"held_out": (kept["ids"], lengths)} if ids else {},
                    int(kept["replaced"]),
                    tuple(map(str, kept["places"])),
                    json.loads(str(kept["noted"])),
                )
        except _DAMAGED:
            return None

    def _path(self, number: int) -> Path:
        return self._place / PIECES / f"{number:06}.npz"
