"""Text to training rows: encoded, joined by end-of-text, cut into shards (`piece_rows`).

Pieces of files are encoded side by side. First, each piece is read once. That takes a fortieth of
the time of encoding, and finds the mistakes in the text before anything is encoded or uploaded.
Documents that are in no files are encoded in pieces of some megabytes, by this process.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

from pion.data.tokens.tokenizer import Tokenizer
from pion.errors import BadInput
from pipeline.console.messages import PrepareProgress, Say
from pipeline.data.encode_piece import (
    Counted,
    Reading,
    batches,
    count_piece,
    encode_piece,
    encode_texts,
    numbered,
)
from pipeline.data.piece_rows import EncodedPiece, PieceRows
from pipeline.data.pieces import Piece
from pipeline.data.prepared import counts_of
from pipeline.data.remarks import Remarks
from pipeline.data.splits import RowFormat
from pipeline.data.tasks import Tasks
from pipeline.machine.time_limit import attended_items
from pipeline.state.record_json import Count, record_type

# Documents that are in no files are encoded in pieces of about so many characters.
PIECE_CHARS = 16 << 20
_COUNTS = record_type(documents=Count, bytes=Count)
_FILE_COUNTS = record_type(
    documents=Count,
    bytes=Count,
    replaced=Count,
    places=list[str],
    noted=dict[str, tuple[Count, str]],
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
    label, say = progress
    size = encoded = 0
    seconds = 0.0

    def read() -> Iterator[tuple[bool, str]]:
        nonlocal size
        for held_out, text in documents:
            size += len(text.encode())
            yield held_out, text

    def encode(pieces: Iterator[list[tuple[bool, str]]]) -> Iterator[EncodedPiece]:
        nonlocal encoded, seconds
        for texts in pieces:
            started = time.monotonic()
            piece = encode_texts(tokenizer, texts)
            seconds += time.monotonic() - started
            encoded += piece.counts["bytes"]
            yield piece

    writer = PieceRows(place, rows, tokenizer.vocab_size, _COUNTS, say, flags=False)
    writer.write(
        batches(read(), PIECE_CHARS), encode, lambda: say(PrepareProgress(label, size / 1e6, "MB"))
    )
    return _report(writer, encoded / 1e6 / seconds if seconds else 0.0)


def _report(writer: PieceRows, speed: float) -> dict[str, Any]:
    """Write the last shards and the manifests; return what was counted, and the MB per second."""
    report: dict[str, Any] = {
        name: sum(counts[name] for counts in writer.counts) for name in ("documents", "bytes")
    }
    for split, manifest in writer.splits.finish("tokens").items():
        report |= counts_of(split, manifest)
    return report | ({"mb_per_second": round(speed, 2)} if speed else {})


# ---------------------------------------------------------------- pieces of files


@dataclass(frozen=True)
class FilePieces:
    """A source whose files are cut into pieces, which were read once.

    Attributes:
        reading: how its pieces are read and encoded.
        pieces: the pieces, in order.
        counted: what each of them has.
        tasks: what does the work.
    """

    reading: Reading
    pieces: Sequence[Piece]
    counted: Sequence[Counted]
    tasks: Tasks


def read_pieces(reading: Reading, pieces: Sequence[Piece], tasks: Tasks, say: Say) -> FilePieces:
    """Read all pieces of a source. Raises BadInput for the first mistake in the text."""
    counted: list[Counted] = []
    total = sum(piece.bytes for piece in pieces)

    def look() -> None:
        done = sum(piece.bytes for piece in pieces[: len(counted)])
        say(PrepareProgress(f"read {reading.key} in pieces", done / 1e6, "MB", total / 1e6))

    try:
        for piece in attended_items(tasks.map(count_piece, reading, pieces), look):
            counted.append(piece)
            look()
    except BadInput:
        # Only here it is known how many lines come before those of this piece.
        count_piece(reading, numbered(pieces, counted)[-1])
        raise
    return FilePieces(reading, numbered(pieces, counted), counted, tasks)


def write_piece_rows(
    source: FilePieces,
    tokenizer: Tokenizer,
    place: Path,
    rows: RowFormat,
    remarks: Remarks,
    progress: tuple[str, Say],
) -> dict[str, Any]:
    """Write the shards of both splits below `place` and return what was counted.

    `remarks` is told what is worth saying of the texts, and `progress` is what is done, in words,
    and who hears of it. Raises BadInput if a shard can't be written, and if the files have changed
    since they were read.
    """
    label, say = progress

    def look() -> None:
        done = len(writer.counts)
        seconds = time.monotonic() - started
        speed = (sizes[done] - sizes[start]) / seconds if seconds else 0.0
        detail = f"piece {done:,}/{len(source.pieces):,}"
        say(
            PrepareProgress(
                label,
                sizes[done] / 1e6,
                "MB",
                total=sizes[-1] / 1e6,
                eta=(sizes[-1] - sizes[done]) / speed if speed else None,
                detail=detail + (f", {speed / 1e6:.1f} MB/s" if speed else ""),
            )
        )

    rows = replace(rows, key=_key(rows, source.pieces))
    writer = PieceRows(place, rows, tokenizer.vocab_size, _FILE_COUNTS, say, flags=False)
    sizes = [0, *accumulate(piece.bytes for piece in source.counted)]
    start, started = len(writer.counts), time.monotonic()
    writer.write(source.pieces, partial(_encoded, source, start), look)
    seconds = time.monotonic() - started
    for counts in writer.counts:
        remarks.add_piece(counts)
    return _report(writer, (sizes[-1] - sizes[start]) / 1e6 / seconds)


def _encoded(source: FilePieces, start: int, pieces: Iterator[Piece]) -> Iterator[EncodedPiece]:
    """Yield the pieces from number `start` on as ids. Raises BadInput if they have changed."""
    encoded = source.tasks.map(encode_piece, source.reading, pieces)
    for piece, counted in zip(encoded, source.counted[start:]):
        if piece.counts["documents"] != counted.documents:
            raise BadInput(
                f"{source.reading.key}: the files have changed while they were prepared. Nothing "
                "was trained. Wait until they are complete, then run the same command again."
            )
        yield piece


def _key(rows: RowFormat, pieces: Sequence[Piece]) -> str:
    """Return what identifies the rows and the pieces, wherever the files are."""
    cuts = [[[span.start, span.end, span.seen] for span in piece.spans] for piece in pieces]
    return hashlib.sha256(json.dumps([rows.key, cuts]).encode()).hexdigest()
