"""Read documents and records from files: plain text, JSON Lines, parquet.

Files come in sorted order and documents in file order, so the same folder always gives the same
documents. Errors name the file and line, or the job's key that named the file. Of parquet files,
only the columns asked for are read, and one row is in Python at a time.
"""

from __future__ import annotations

import glob
import gzip
import re
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from pion.data.records.fields import NOT_READ
from pion.errors import BadInput
from pion.untrusted import open_file, parse_json

if TYPE_CHECKING:
    import pyarrow

TEXT_SUFFIXES = (".txt", ".md")
JSONL_SUFFIXES = (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz")
PARQUET_SUFFIXES = (".parquet",)
# A text file is read in parts of this many bytes.
PART_BYTES = 4 << 20
# Bytes of the longest line of a text or of JSON Lines, unless the caller says otherwise.
LONGEST_LINE = 16_000_000
RAISE_IT = ". If the line is meant to be so long, raise data.max_line_mb"
# Few, because a small file can say that all of its rows have the same long text.
ROWS_AT_ONCE = 16
T = TypeVar("T")


@dataclass(frozen=True)
class Document:
    """A text and its origin: a file, a file:line or a name in a data set."""

    text: str
    origin: str


@dataclass(frozen=True)
class Record:
    """One JSON object or table row, and its origin."""

    value: dict[str, Any]
    origin: str


@dataclass(frozen=True)
class Span:
    """A part of a file, by default all of it. Spans that join have the documents of the file.

    Attributes:
        file: the file.
        first: how many lines, rows or texts of the file come before the span.
        start: the byte, or the table's group of rows, at which it begins.
        end: where it ends, by the same measure; None: where the file ends. A line that begins
            before the end belongs to the span.
        seen: of a text, the bytes that were read when the part at `start` was cut; `end` is then
            the bytes that were read when the first part of the next span was cut.
    """

    file: Path
    first: int = 0
    start: int = 0
    end: int | None = None
    seen: int = 0


def list_files(path: Path, suffixes: tuple[str, ...], key: str) -> list[Path]:
    """Return the files that `path` names, sorted; see `find_files`."""
    return find_files(path, suffixes, key)[0]


def find_files(path: Path, suffixes: tuple[str, ...], key: str) -> tuple[list[Path], list[str]]:
    """Return the files that `path` names, sorted, and a sentence for each reason to leave some out.

    `path` is a file, a folder whose files have one of `suffixes`, or a glob. A file that several
    links lead to counts once. `key` is the job's key with the path, for the message. Raises
    BadInput if no file matches.
    """
    if path.is_file():
        return [path], []
    if path.exists() and not path.is_dir():
        raise BadInput(f"{key}: {path} is not a regular file, so it was not read")
    if path.is_dir():
        named = [p for p in path.rglob("*") if p.name.endswith(suffixes)]
        wanted = " or ".join(f"*{suffix}" for suffix in suffixes)
        problem = f"no {wanted} file in the folder {path}"
    elif glob.has_magic(str(path)):
        named = [Path(p) for p in glob.glob(str(path), recursive=True)]
        problem = f"no file matches {path}"
    else:
        named, problem = [], f"no such file or folder: {path}"
    files: dict[Path, Path] = {}
    again, odd = [], []
    for each in sorted((p for p in named if not p.is_dir()), key=lambda p: p.as_posix()):
        if not each.is_file():
            odd.append(each)
        elif files.setdefault(each.resolve(), each) != each:
            again.append(each)
    if not files:
        raise BadInput(f"{key}: {problem}")
    words = [
        f"left out, {why}: {len(them)}, such as {them[0]}"
        for them, why in (
            (again, "read already by another name"),
            (odd, "neither a file nor a folder"),
        )
        if them
    ]
    return list(files.values()), words


def text_documents(
    path: Path, split: str, key: str, longest: int = LONGEST_LINE
) -> Iterator[Document]:
    """Yield a document for each UTF-8 file, or with split="paragraph" for each paragraph.

    A file of more than 4 MB is read in parts, cut at line breaks, and each part is a document.
    Paragraphs are separated by blank lines. Raises BadInput for a missing path, text that is not
    UTF-8, a line of more than `longest` bytes, and a corpus without any text.
    """
    found = (
        document
        for file in list_files(path, TEXT_SUFFIXES, key)
        for document in texts_in(Span(file), split, longest)
    )
    yield from at_least_one(found, f"{key}: the corpus is empty: no text in {path}")


def texts_in(span: Span, split: str, longest: int = LONGEST_LINE) -> Iterator[Document]:
    """Yield the documents of a span of a text file. Raises BadInput as `text_documents` does."""
    number = span.first
    for part in _parts(span, longest):
        for text in re.split(r"\n\s*\n", part) if split == "paragraph" else [part]:
            if text.strip():
                number += 1
                yield Document(text, f"{span.file}#{number}")


def jsonl_records(path: Path, key: str, longest: int = LONGEST_LINE) -> Iterator[Record]:
    """Yield a record for each line of JSON Lines files, also .gz files. Blank lines are skipped.

    Raises BadInput for a line that is not a JSON object or has more than `longest` bytes, naming
    the file and line, for a damaged file, and for a corpus without any line.
    """
    found = (
        record
        for file in list_files(path, JSONL_SUFFIXES, key)
        for record in lines_in(Span(file), longest)
    )
    yield from at_least_one(found, f"{key}: the corpus is empty: no line in {path}")


def lines_in(span: Span, longest: int = LONGEST_LINE) -> Iterator[Record]:
    """Yield the records of a span of a JSON Lines file. Raises BadInput as `jsonl_records` does."""
    with opened(span.file) as stream:
        if span.start:
            stream.seek(span.start)
        size = None if span.end is None else span.end - span.start
        numbered = numbered_lines(stream, span.file, longest, RAISE_IT, span.first, size)
        for where, line in numbered:
            yield _record(json_of_line(line, where), where)


def _record(value: Any, where: str) -> Record:
    if not isinstance(value, dict):
        raise BadInput(f"{where}: found a {type(value).__name__} instead of a JSON object")
    return Record(value, where)


def json_lines(
    file: Path, longest: int = LONGEST_LINE, advice: str = ""
) -> Iterator[tuple[str, Any]]:
    """Yield `file:line` and the JSON value of each line that is not blank; the file may be .gz.

    Numbers may be NaN and texts may have half characters, as in many data sets. Raises BadInput for
    a line that is not JSON or has more than `longest` bytes (`advice` ends this message), for as
    many bytes of blank lines (a small .gz can have gigabytes), and for a damaged file, and OSError
    where the file can't be opened or read.
    """
    with opened(file) as stream:
        for where, line in numbered_lines(stream, file, longest, advice):
            yield where, json_of_line(line, where)


def numbered_lines(
    stream: BinaryIO,
    file: Path,
    longest: int = LONGEST_LINE,
    advice: str = "",
    number: int = 0,
    size: int | None = None,
) -> Iterator[tuple[str, bytes]]:
    """Yield `file:line` and the bytes of each line that is not blank of an `opened` file.

    There are `number` lines before. No line begins after `size` bytes. Raises BadInput as
    `json_lines` does, except for what is in the lines.
    """
    read = blank = 0
    while (size is None or read < size) and (line := _line(stream, file, longest)):
        number += 1
        read += len(line)
        where = f"{file}:{number}"
        if len(line) - line.endswith(b"\n") > longest:
            raise BadInput(f"{where}: the line has more than {longest:,} bytes{advice}")
        if not line.strip():
            blank += len(line)
            if blank > longest:
                raise BadInput(f"{where}: more than {longest:,} bytes of blank lines. Remove them")
        else:
            blank = 0
            yield where, line


def json_of_line(line: bytes, where: str) -> Any:
    """Return the JSON value of a line. Raises BadInput if it has none, or is not UTF-8."""
    return parse_json(decoded(line, where), where, strict=False)


def parquet_records(
    path: Path, key: str, columns: tuple[str, ...], longest: int = LONGEST_LINE
) -> Iterator[Record]:
    """Yield a record for each row of parquet files. Only `columns` are read.

    Without any of `columns`, the record has the names of the others. Raises BadInput for a file
    that is not parquet, for a text of more than `longest` bytes, naming the file and row, and for a
    corpus without any row.
    """
    found = (
        record
        for file in list_files(path, PARQUET_SUFFIXES, key)
        for record in rows_in(Span(file), columns, longest)
    )
    yield from at_least_one(found, f"{key}: the corpus is empty: no row in {path}")


def rows_in(span: Span, columns: tuple[str, ...], longest: int = LONGEST_LINE) -> Iterator[Record]:
    """Yield the records of a span of a parquet file. Raises BadInput as `parquet_records` does."""
    rows = parquet_rows(span.file, columns, longest, span)
    for number, value in enumerate(rows, span.first + 1):
        yield Record(value, f"{span.file} row {number}")


def record_documents(records: Iterator[Record], field: str, key: str) -> Iterator[Document]:
    """Yield the text under `field` of every record; blank texts are skipped.

    Raises BadInput if `field` is missing or is not text, naming the record and its fields, and if
    every text is blank.
    """
    texts = texts_under(field, records, key)
    yield from at_least_one(texts, f"{key}: the corpus is empty: every {field!r} is blank")


def texts_under(field: str, records: Iterable[Record], key: str) -> Iterator[Document]:
    """Yield the text under `field` of every record, as `record_documents` does."""
    found = (_document(record, field, key) for record in records)
    return (document for document in found if document.text.strip())


def _document(record: Record, field: str, key: str) -> Document:
    text = record.value.get(field)
    if not isinstance(text, str):
        problem = (
            f"no field {field!r}; its fields: {', '.join(map(str, record.value)) or 'none'}"
            if field not in record.value
            else f"field {field!r} is not text but {type(text).__name__}"
        )
        raise BadInput(f"{record.origin}: {problem} (set {key}.field)")
    return Document(text, record.origin)


def at_least_one(items: Iterable[T], otherwise: str) -> Iterator[T]:
    """Yield the items. Raises BadInput with the message `otherwise` if there are none."""
    empty = True
    for item in items:
        empty = False
        yield item
    if empty:
        raise BadInput(otherwise)


def whole_characters(text: str) -> str:
    """Return the text with `?` for halves of surrogate pairs (from broken JSON writers)."""
    return text.encode("utf-8", "replace").decode("utf-8")


@contextmanager
def opened(file: Path) -> Iterator[BinaryIO]:
    """Open a regular file for reading bytes; a .gz is unpacked. Raises as `open_file` does."""
    with open_file(file) as stream:
        if file.suffix == ".gz":
            with gzip.GzipFile(fileobj=stream) as unpacked:
                yield unpacked  # type: ignore[misc]
        else:
            yield stream


def _line(stream: BinaryIO, file: Path, longest: int) -> bytes:
    """Return the next line, or the beginning of a line of more than `longest` bytes."""
    try:
        return stream.readline(longest + 2)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise BadInput(f"{file}: damaged gzip file: {error}") from None


def _parts(span: Span, longest: int) -> Iterator[str]:
    """Yield the text of a span: whole, or in parts of about PART_BYTES if there is more."""
    start, seen = span.start, span.seen or PART_BYTES
    with open_file(span.file) as stream:
        stream.seek(start)
        held = stream.read(seen - start)
        if span.seen:
            _check_line(span.file, held, start, longest)
        while block := stream.read(PART_BYTES):
            cut = cut_of(held)
            yield decoded(held[:cut], str(span.file), start)
            start, seen, held = start + cut, seen + PART_BYTES, held[cut:] + block
            if seen == span.end:
                return
            _check_line(span.file, held, start, longest)
    yield decoded(held, str(span.file), start)


def _check_line(file: Path, held: bytes, start: int, longest: int) -> None:
    """Raise BadInput if the last line of what is held, from the byte `start` on, is too long."""
    if len(held) - held.rfind(b"\n") - 1 > longest:
        lines = held.count(b"\n") + 1
        with open_file(file) as stream:
            while start > 0 and (before := stream.read(min(start, PART_BYTES))):
                lines, start = lines + before.count(b"\n"), start - len(before)
        raise BadInput(f"{file}:{lines}: the line has more than {longest:,} bytes{RAISE_IT}")


def cut_of(held: bytes) -> int:
    """Return where the next part begins: after a blank line, or else after a line break.

    Only the second half is searched for a blank line: the first may have a title and no other.
    """
    blank = held.rfind(b"\n\n", len(held) // 2)
    return blank + 2 if blank >= 0 else held.rfind(b"\n") + 1


def decoded(content: bytes, where: str, start: int = 0) -> str:
    """Return bytes as text; they begin at byte `start` of `where`. Raises BadInput if not UTF-8."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{where}: not UTF-8 text at byte {start + error.start:,}; "
            "convert it with: iconv -f ENCODING -t UTF-8"
        ) from None


def parquet_rows(
    file: Path, columns: tuple[str, ...], longest: int, span: Span | None = None
) -> Iterator[dict[str, Any]]:
    """Yield each row with those of `columns` that are there, and NOT_READ under the others, or else
    one row of all names; of a `span` of the file, or of all.

    Raises BadInput for a file that is not parquet, and for a row of more than `longest` bytes.
    """
    import pyarrow
    import pyarrow.parquet

    row = 0
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            there = table.schema_arrow.names
            wanted = [name for name in there if name in columns]
            if not wanted:
                yield dict.fromkeys(there, NOT_READ)
                return
            others = {name: NOT_READ for name in there if name not in columns}
            groups = range(table.num_row_groups)
            if span is not None:
                groups = groups[span.start : span.end]
            for batch in table.iter_batches(ROWS_AT_ONCE, row_groups=list(groups), columns=wanted):
                arrays = {name: batch.column(name) for name in wanted}
                for name, array in arrays.items():
                    if isinstance(array, pyarrow.DictionaryArray):
                        arrays[name] = array.dictionary_decode()
                large = _size(arrays) > longest
                for n in range(batch.num_rows):
                    row += 1
                    if large and _size(arrays, n) > longest:
                        raise BadInput(
                            f"{file} row {row}: {', '.join(wanted)} has more than {longest:,} "
                            "bytes. If the row is meant to be so long, raise data.max_line_mb"
                        )
                    yield others | {name: array[n].as_py() for name, array in arrays.items()}
    except (pyarrow.ArrowException, OSError, ValueError, KeyError, OverflowError) as error:
        raise BadInput(f"{file}: not a readable parquet file: {error}") from None


def _size(arrays: dict[str, pyarrow.Array], row: int | None = None) -> int:
    """Return the bytes of one row, or of all rows."""
    parts = arrays.values() if row is None else (a.slice(row, 1) for a in arrays.values())
    return sum(array.nbytes for array in parts)
