"""What is done with one piece of text, in any process: count its documents, or encode them.

Pieces of a source are done side by side, and their results are taken in the order of the pieces.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

import numpy as np

from pion.data.documents.file_to_documents import (
    Document,
    Note,
    Span,
    lines_in,
    parquet_file,
    rows_in,
    separate,
    texts_in,
    texts_under,
    unnoted,
)
from pion.data.tokens.tokenizer import Tokenizer
from pion.errors import BadInput
from pion.untrusted import open_file
from pipeline.data.piece_rows import EncodedPiece
from pipeline.data.pieces import Piece
from pipeline.data.prepared import SPLITS
from pipeline.data.remarks import Remarks
from pipeline.data.sources import split_text
from pipeline.job import JsonlTexts, Source, TextFiles

# Documents are encoded in batches of about so many characters.
BATCH_CHARS = 4 << 20
Split = TypeVar("Split")


@dataclass(frozen=True)
class Reading:
    """How the pieces of a source are read and encoded.

    Attributes:
        source: the source.
        key: its key in the job.
        longest: the most bytes of a line.
        held_out: the share of the documents that is held out.
        held_out_files: the files that are, if names decide.
        tokenizer: the tokenizer.json and what is next to it: another machine has no such folder.
    """

    source: Source
    key: str
    longest: int
    held_out: float
    held_out_files: frozenset[Path] | None
    tokenizer: tuple[tuple[str, bytes], ...]


@dataclass(frozen=True)
class Counted:
    """What a piece has: documents, the bytes of their texts, and the lines, rows or texts of each
    span after which the file goes on."""

    documents: int
    bytes: int
    items: tuple[int, ...]


def count_piece(reading: Reading, piece: Piece) -> Counted:
    """Read a piece and count what it has. Raises BadInput for the first mistake in it."""
    documents, size, items = 0, 0, []
    for span in piece.spans:
        last = None
        for last in documents_in(span, reading):
            for _, text in split_text(last, reading.held_out):
                documents += 1
                size += len(text.encode())
        items.append(_items(span, reading.source, last))
    return Counted(documents, size, tuple(items))


def encode_piece(reading: Reading, piece: Piece) -> EncodedPiece:
    """Return a piece as ids; its counts have what is worth saying of its texts. Raises BadInput if
    it can't be read (any more)."""
    tokenizer = _tokenizer(reading.tokenizer)
    remarks = Remarks(tokenizer.replaced())

    def texts() -> Iterator[tuple[bool, str]]:
        for span in piece.spans:
            for document in documents_in(span, reading, remarks.note_text):
                remarks.replaced.look(document.text, document.origin)
                yield from split_text(document, reading.held_out)

    encoded = encode_texts(tokenizer, texts())
    return replace(encoded, counts=encoded.counts | remarks.of_piece())


def encode_texts(tokenizer: Tokenizer, texts: Iterable[tuple[bool, str]]) -> EncodedPiece:
    """Return the ids of documents, of which each is held out or not, and has its text. Each has its
    end-of-text."""
    dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
    joined: dict[str, list[np.ndarray]] = {split: [np.empty(0, dtype)] for split in SPLITS}
    counts = {"documents": 0, "bytes": 0}
    for batch in batches(texts):
        for (held_out, text), ids in zip(
            batch, tokenizer.encode_batch([text for _, text in batch]), strict=True
        ):
            counts["documents"] += 1
            counts["bytes"] += len(text.encode())
            if ids:
                document = [*tokenizer.start_document(ids), tokenizer.end_of_text]
                joined[SPLITS[held_out]].append(np.array(document, dtype))
    return EncodedPiece(
        {split: (np.concatenate(ids), None) for split, ids in joined.items()}, counts
    )


def batches(
    documents: Iterable[tuple[Split, str]], characters: int | None = None
) -> Iterator[list[tuple[Split, str]]]:
    """Yield the documents in batches of about so many `characters`; None: BATCH_CHARS."""
    batch, size = [], 0
    for split, text in documents:
        batch.append((split, text))
        size += len(text)
        if size >= (characters or BATCH_CHARS):
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def numbered(pieces: Sequence[Piece], counted: Sequence[Counted]) -> list[Piece]:
    """Return the pieces that were counted, and one more, with the numbers of their first lines,
    rows or texts: errors and remarks name them."""
    after: dict[Path, int] = {}
    numbered_pieces = []
    for number, piece in enumerate(pieces[: len(counted) + 1]):
        spans = tuple(replace(span, first=after.get(span.file, 0)) for span in piece.spans)
        numbered_pieces.append(replace(piece, spans=spans))
        if number < len(counted):
            for span, items in zip(spans, counted[number].items, strict=True):
                after[span.file] = span.first + items
    return numbered_pieces


def documents_in(span: Span, reading: Reading, note: Note = unnoted) -> Iterator[Document]:
    """Yield the documents of a span, and `note` what its texts have. Raises BadInput as `texts`
    does."""
    files = reading.held_out_files
    named = replace(span, held_out=None if files is None else span.file in files)
    try:
        for document in _read(named, reading, note):
            yield from separate(document, note)
    except FileNotFoundError:
        raise gone(span.file) from None
    except OSError as error:
        raise BadInput(f"{span.file} can't be read ({error.strerror or error})") from None


def gone(file: Path | str) -> BadInput:
    """Return the error for a file of a source that is not there (any more)."""
    return BadInput(
        f"{file} is gone, or a machine that prepares with others does not have it. Nothing was "
        "trained. With PION_RAY_ADDRESS, each machine needs the files of the job at the same place"
    )


def _read(span: Span, reading: Reading, note: Note) -> Iterator[Document]:
    source, longest = reading.source, reading.longest
    if isinstance(source, TextFiles):
        return texts_in(span, source.split, longest)
    field: str = source.field  # type: ignore[attr-defined]
    if isinstance(source, JsonlTexts):
        return texts_under(field, lines_in(span, longest), reading.key, note)
    return texts_under(field, rows_in(span, (field,), longest), reading.key, note)


def _items(span: Span, source: Source, last: Document | None) -> int:
    """Return how many lines, rows or texts a span has; 0 for the last span of a file."""
    if span.end is None:
        return 0
    if isinstance(source, TextFiles):
        return int(last.origin.rpartition("#")[2]) - span.first if last else 0
    if isinstance(source, JsonlTexts):
        with open_file(span.file) as stream:
            stream.seek(span.start)
            return stream.read(span.end - span.start).count(b"\n")
    with parquet_file(span.file) as table:
        groups = range(span.start, span.end)
        return sum(table.metadata.row_group(group).num_rows for group in groups)


@lru_cache(1)
def _tokenizer(files: tuple[tuple[str, bytes], ...]) -> Tokenizer:
    """Return the tokenizer of these files. A process encodes many pieces with the same one."""
    with TemporaryDirectory() as folder:
        for name, content in files:
            Path(folder, name).write_bytes(content)
        return Tokenizer.from_file(Path(folder, "tokenizer.json"), "tokenizer.json")
