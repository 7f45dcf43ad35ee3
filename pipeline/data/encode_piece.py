"""What is done with one piece of text, in any process: look for mistakes in it, or encode it.

Pieces of a source are done side by side, and their results are taken in the order of the pieces.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    rows_in,
    separate,
    texts_in,
    texts_under,
    unnoted,
)
from pion.data.tokens.tokenizer import Tokenizer
from pion.errors import BadInput
from pion.untrusted import open_file
from pipeline.data.pieces import Piece
from pipeline.data.prepared import SPLITS
from pipeline.data.remarks import Remarks
from pipeline.data.sources import split_text
from pipeline.job import JsonlTexts, Source, TextFiles
from pipeline.state.record_json import Count, closed_record

# Documents are encoded in batches of about so many characters.
BATCH_CHARS = 4 << 20
Split = TypeVar("Split")
# By split: the ids of its documents, (n,) uint16 or uint32, each with its end-of-text; and how many
# ids each document has, (documents,) int64.
Joined = Mapping[str, tuple[np.ndarray, np.ndarray]]


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


@closed_record
@dataclass(frozen=True)
class Found:
    """What a piece has: documents; and the lines, rows or texts of each span after which the file
    goes on."""

    documents: Count
    items: tuple[Count, ...]


@dataclass(frozen=True)
class Encoded:
    """A piece as ids.

    Attributes:
        joined: its documents.
        bytes: the bytes of their texts.
        replaced: how many characters the vocabulary lacks.
        places: where the first of them are.
        noted: what else its texts have, as `Remarks` notes it.
    """

    joined: Joined
    bytes: int
    replaced: int
    places: tuple[str, ...]
    noted: Mapping[str, tuple[int, str]]


def read_piece(reading: Reading, piece: Piece) -> Found:
    """Read a piece and return what it has. Raises BadInput for the first mistake in it."""
    documents, items = 0, []
    for span in piece.spans:
        last = None
        for last in documents_in(span, reading):
            documents += len(list(split_text(last, reading.held_out)))
        items.append(_items(span, reading.source, last))
    return Found(documents, tuple(items))


def encode_piece(reading: Reading, piece: Piece) -> Encoded:
    """Return a piece as ids. Raises BadInput if it can't be read (any more)."""
    tokenizer = _tokenizer(reading.tokenizer)
    remarks, size = Remarks(tokenizer.replaced()), 0

    def texts() -> Iterator[tuple[str, str]]:
        nonlocal size
        for span in piece.spans:
            for document in documents_in(span, reading, remarks.note_text):
                remarks.replaced.look(document.text, document.origin)
                for held_out, text in split_text(document, reading.held_out):
                    size += len(text.encode())
                    yield SPLITS[held_out], text

    joined = encode_texts(tokenizer, texts())
    places = tuple(remarks.replaced.places)
    return Encoded(joined, size, remarks.replaced.count, places, remarks.noted)


def encode_texts(tokenizer: Tokenizer, texts: Iterable[tuple[str, str]]) -> Joined:
    """Return the ids of documents, of which each has its split and its text."""
    dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
    found: dict[str, list[np.ndarray]] = {split: [np.empty(0, dtype)] for split in SPLITS}
    for batch in batches(texts):
        encoded = tokenizer.encode_batch([text for _, text in batch])
        for (split, _), ids in zip(batch, encoded, strict=True):
            document = [*tokenizer.start_document(ids), tokenizer.end_of_text] if ids else []
            found[split].append(np.array(document, dtype))
    return {
        split: (np.concatenate(some), np.array([len(one) for one in some[1:]], np.int64))
        for split, some in found.items()
    }


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


def numbered(pieces: Sequence[Piece], found: Mapping[int, Found]) -> Iterator[Piece]:
    """Yield the pieces with the numbers of their first lines, rows or texts: errors and remarks
    name them.

    `found` has pieces that were read, by their number. The first piece that is not there is the
    last one.
    """
    after: dict[Path, int] = {}
    for number, piece in enumerate(pieces):
        spans = tuple(replace(span, first=after.get(span.file, 0)) for span in piece.spans)
        yield replace(piece, spans=spans)
        if number not in found:
            return
        for span, count in zip(spans, found[number].items, strict=True):
            after[span.file] = span.first + count


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
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(span.file) as table:
        groups = range(span.start, span.end)
        return sum(table.metadata.row_group(group).num_rows for group in groups)


@lru_cache(1)
def _tokenizer(files: tuple[tuple[str, bytes], ...]) -> Tokenizer:
    """Return the tokenizer of these files. A process encodes many pieces with the same one."""
    with TemporaryDirectory() as folder:
        for name, content in files:
            Path(folder, name).write_bytes(content)
        return Tokenizer.from_file(Path(folder, "tokenizer.json"), "tokenizer.json")
