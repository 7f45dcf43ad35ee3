"""Cut the files of a source of text into pieces, which are encoded side by side.

The pieces depend on the files alone, never on the number of processes or machines. Together, and in
their order, they have the documents of the source. A piece is a range of lines, some groups of rows
of a table, some parts of a text, a whole packed file, or several small files.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pion.data.documents import file_to_documents
from pion.data.documents.file_to_documents import Span, cut_of, parquet_file
from pion.data.documents.unpack import is_packed
from pion.errors import BadInput
from pion.untrusted import open_file
from pipeline.job import JsonlFiles, JsonlTexts, ParquetFiles, Source, TextFiles

# About so many bytes of files are a piece.
PIECE_BYTES = 64 << 20
# A piece is in memory as a whole, and a packed file is larger there: larger ones are not encoded.
LARGEST_PIECE, LARGEST_GZ = 4 * PIECE_BYTES, 2 * PIECE_BYTES
# Where a text is cut is looked for in its last bytes first.
_TAIL_BYTES = 1 << 16


@dataclass(frozen=True)
class Piece:
    """Some spans of files, in order, and their bytes in the files."""

    spans: tuple[Span, ...]
    bytes: int


def has_pieces(source: Source) -> bool:
    """Return whether a source is prepared in pieces. Others have no files here, or little text, or
    are tokenized."""
    return isinstance(source, TextFiles | JsonlFiles | ParquetFiles)


def cut_pieces(
    source: Source, files: Sequence[Path], longest: int, piece_bytes: int = PIECE_BYTES
) -> list[Piece]:
    """Return the pieces of a source, each of about `piece_bytes`.

    A mistake in a file is left to whoever reads the piece. Raises OSError, and BadInput for a file
    that is not a regular file.
    """
    pieces: list[Piece] = []
    spans: list[Span] = []
    taken = 0
    for span, size in _spans(source, files, longest, piece_bytes):
        if spans and taken + size > piece_bytes:
            pieces.append(Piece(tuple(spans), taken))
            spans, taken = [], 0
        spans.append(span)
        taken += size
    return [*pieces, Piece(tuple(spans), taken)] if spans else pieces


def too_large(pieces: Sequence[Piece]) -> str | None:
    """Return why a piece is too large for the memory of a process, in words; None if none is.

    Such a piece is a packed file, or has a group of rows of a table, which nothing can cut.
    """
    for piece in pieces:
        if piece.bytes <= min(LARGEST_GZ, LARGEST_PIECE):
            continue
        file = piece.spans[0].file
        packed = is_packed(file)
        most = LARGEST_GZ if packed else LARGEST_PIECE
        if piece.bytes > most:
            reason = "it is compressed" if packed else "a group of its rows is large"
            return f"{file} can't be cut ({reason}: {piece.bytes / 1e6:,.0f} MB)"
    return None


def _spans(
    source: Source, files: Sequence[Path], longest: int, piece_bytes: int
) -> Iterator[tuple[Span, int]]:
    """Yield spans of at most about `piece_bytes`, and the bytes of each."""
    for file in files:
        size = file.stat().st_size
        if size <= piece_bytes or is_packed(file):
            yield Span(file), size
        elif isinstance(source, TextFiles):
            yield from _of_text(file, size, longest, piece_bytes)
        elif isinstance(source, JsonlTexts):
            yield from _of_lines(file, size, longest, piece_bytes)
        else:
            yield from _of_table(file, size, piece_bytes)


def _of_lines(file: Path, size: int, longest: int, piece_bytes: int) -> Iterator[tuple[Span, int]]:
    start = 0
    with open_file(file) as stream:
        while size - start > piece_bytes:
            end = _after_line(stream, start + piece_bytes, longest)
            yield Span(file, start=start, end=end), end - start
            start = end
    if start < size:
        yield Span(file, start=start), size - start


def _after_line(stream: BinaryIO, position: int, longest: int) -> int:
    """Return where the first line that is not blank begins, at or after a position.

    A run of blank lines is never cut, because it may be too long. After a line or a run that is too
    long, any place will do: whoever reads that line raises BadInput.
    """
    stream.seek(position - 1)
    stream.readline(longest + 2)  # up to the end of the line that has the byte before
    blank = 0
    while True:
        begins = stream.tell()
        line = stream.readline(longest + 2)
        blank += len(line)
        if line.strip() or not line or blank > longest:
            return begins


def _of_text(file: Path, size: int, longest: int, piece_bytes: int) -> Iterator[tuple[Span, int]]:
    """Yield spans of whole parts, which are those of `text_documents`."""
    part = file_to_documents.PART_BYTES
    start = cut = 0
    seen, first = part, 0  # `first`: what was seen when the span's first part was cut
    with open_file(file) as stream:
        # Such a part has a line that is too long, and whoever reads it says so.
        while seen < size and seen - cut <= longest + 2 * part:
            cut = _cut_in(stream, cut, seen)
            seen += part
            if cut - start >= piece_bytes:
                yield Span(file, start=start, end=seen, seen=first), cut - start
                start, first = cut, seen
    yield Span(file, start=start, seen=first), size - start


def _cut_in(stream: BinaryIO, start: int, end: int) -> int:
    """Return where the part that begins at `start` ends, if it is read up to `end`."""
    tail = max(start, end - _TAIL_BYTES)
    stream.seek(tail)
    blank = stream.read(end - tail).rfind(b"\n\n", max(0, start + (end - start) // 2 - tail))
    if blank >= 0:
        return tail + blank + 2
    stream.seek(start)
    return start + cut_of(stream.read(end - start))


def _of_table(file: Path, size: int, piece_bytes: int) -> Iterator[tuple[Span, int]]:
    """Yield groups of rows. A file that is no table is one span: whoever reads it says so."""
    import pyarrow

    try:
        with parquet_file(file) as table:
            count = table.metadata.num_row_groups
            sizes = [table.metadata.row_group(n).total_byte_size for n in range(count)]
    except (pyarrow.ArrowException, OSError, ValueError, BadInput):
        sizes = []
    # The sizes are those before compression, which are what takes time.
    start = taken = 0
    for number, group in enumerate(sizes):
        if number > start and taken + group > piece_bytes:
            yield Span(file, start=start, end=number), taken
            start, taken = number, 0
        taken += group
    yield Span(file, start=start), taken or size
