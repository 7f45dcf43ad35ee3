"""Read records of any kind of file, up to so many bytes, and go on after what can't be read.

A run stops at the first record that it can't read. This lists them, with file and line.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from pion.data.documents.file_to_documents import (
    LONGEST_LINE,
    PART_BYTES,
    RAISE_IT,
    NotJsonLines,
    check_line,
    decoded,
    not_parquet,
    numbered_lines,
    object_of_line,
    parquet_rows,
)
from pion.data.documents.unpack import unpacked
from pion.errors import BadInput
from pion.untrusted import open_file
from pipeline.new.files import FileKind
from pipeline.new.json_list import json_list

Record = dict[str, Any]
# What may stand between the columns of a table.
DELIMITERS = ",;\t|"
NOT_UTF8 = "not UTF-8 text; convert it with: iconv -f ENCODING -t UTF-8"


@dataclass(frozen=True)
class ReadItem:
    """A record and its `file:line`; or, without a record, the problem. `bytes` were read for it."""

    where: str
    record: Record | None
    bytes: int
    problem: str | None = None


@dataclass
class Progress:
    """How far a file was read: `stored` of its bytes on this disk. `whole`: nothing is left."""

    stored: int = 0
    whole: bool = True


def read_file(kind: FileKind, file: Path, most: float, progress: Progress) -> Iterator[ReadItem]:
    """Yield the records of a file until `most` bytes were read, unpacked, and note the progress.

    A text file is one record, its text under `text`. What can't be read becomes an item with a
    problem. Where nothing after it can be read, the file ends there.
    """
    done = 0
    try:
        for item in READERS[kind](file, progress, most):
            yield item
            done += item.bytes
            if done >= most:
                progress.whole = False
                return
    except BadInput as error:
        yield ReadItem(str(file), None, 0, str(error))
    except OSError as error:
        yield ReadItem(str(file), None, 0, f"{file}: {error.strerror or error}")


def _text(file: Path, progress: Progress, most: float) -> Iterator[ReadItem]:
    """Yield the text of a file, in parts of whole lines if it is long, as a run reads it."""
    read = lines = 0
    with open_file(file) as stored, unpacked(stored, file) as stream:
        while part := stream.read(int(min(PART_BYTES, most))):
            part += stream.readline(LONGEST_LINE + 1)
            check_line(file, part, read, LONGEST_LINE)
            progress.stored = stored.tell()
            try:
                text = part.decode().removeprefix("\ufeff")
            except UnicodeDecodeError as error:
                line = lines + part.count(b"\n", 0, error.start) + 1
                yield ReadItem(str(file), None, len(part), f"{file}:{line}: {NOT_UTF8}")
                return
            yield ReadItem(str(file), {"text": text}, len(part))
            read, lines = read + len(part), lines + part.count(b"\n")


def _jsonl(file: Path, progress: Progress, most: float = math.inf) -> Iterator[ReadItem]:
    where = f"{file}:0"
    try:
        with open_file(file) as stored, unpacked(stored, file) as stream:
            for where, line in numbered_lines(stream, file, LONGEST_LINE, RAISE_IT):
                progress.stored = stored.tell()
                yield _of_line(line, where)
    except NotJsonLines:
        raise
    except BadInput as error:
        text = str(error)
        last = int(where.rpartition(":")[2])
        place = "" if text.startswith(f"{file}:{last + 1}:") else f" (after line {last:,})"
        yield ReadItem(where, None, 0, f"{text}{place}")


def _of_line(line: bytes, where: str) -> ReadItem:
    try:
        return ReadItem(where, object_of_line(line, where), len(line))
    except NotJsonLines:
        raise
    except BadInput as error:
        return ReadItem(where, None, len(line), str(error))


def _of_value(value: Any, where: str, size: int) -> ReadItem:
    if isinstance(value, dict):
        return ReadItem(where, value, size)
    problem = f"{where}: found a {type(value).__name__} instead of a JSON object"
    return ReadItem(where, None, size, problem)


def _json(file: Path, progress: Progress, most: float) -> Iterator[ReadItem]:
    with open_file(file) as stored, unpacked(stored, file) as stream:
        beginning = stored.peek(1).lstrip(b"\xef\xbb\xbf \t\r\n")
        if not beginning.startswith(b"["):
            if beginning.split(b"\n", 1)[0].strip() in (b"", b"{"):  # indented
                yield _of_line(stream.read(LONGEST_LINE), f"{file}:1")
            else:
                yield from _jsonl(file, progress, most)
            return
        for where, value, size in json_list(stream, file, LONGEST_LINE):
            progress.stored = stored.tell()
            yield _of_value(value, where, size)


def _parquet(file: Path, progress: Progress, most: float) -> Iterator[ReadItem]:
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            names, rows = tuple(table.schema_arrow.names), table.metadata.num_rows
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise not_parquet(file, error) from None
    stored = file.stat().st_size
    for number, row in enumerate(parquet_rows(file, names, LONGEST_LINE), 1):
        progress.stored = math.ceil(stored * number / max(1, rows))
        yield ReadItem(f"{file} row {number}", row, _rough_size(row))


def _rough_size(value: Any) -> int:
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, dict):
        return sum(map(_rough_size, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(_rough_size, value))
    return 8


def _csv(file: Path, progress: Progress, most: float) -> Iterator[ReadItem]:
    with open_file(file) as stored, unpacked(stored, file) as stream:
        size = 0

        def lines() -> Iterator[str]:
            nonlocal size
            for number, line in enumerate(iter(partial(stream.readline, LONGEST_LINE), b""), 1):
                size += len(line)
                try:
                    yield decoded(line, f"{file}:{number}")
                except BadInput:
                    raise BadInput(f"{file}:{number}: {NOT_UTF8}") from None

        given = lines()
        header = next(given, "")
        # Excel may say above the header what is between the columns.
        if said := re.fullmatch(r"sep=(.)\s*", header):
            header = next(given, "")
        if "\r" in header.rstrip("\r\n"):
            raise BadInput(
                f"{file}:1: the lines end with CR alone, as on old Macs. Convert them with: "
                "tr '\\r' '\\n' < FILE > NEW.csv"
            )
        delimiter = "\t" if file.suffix == ".tsv" else max(DELIMITERS, key=header.count)
        delimiter = said[1] if said else delimiter
        table = csv.reader(chain([header], given), delimiter=delimiter, strict=True)
        names: list[str] | None = None
        while True:
            before, line = size, table.line_num + (2 if said else 1)
            try:
                row = _next_row(table)
            except csv.Error as error:
                raise BadInput(f"{file}:{line}: not a row of a table ({error})") from None
            if row is None:
                return
            progress.stored = stored.tell()
            if names is None:
                names = _names(row, file)
            elif row:
                yield _of_row(row, names, f"{file}:{line}", size - before)
            elif size >= most:  # a small packed file can have billions of blank lines
                progress.whole = False
                return


def _next_row(table: Iterator[list[str]]) -> list[str] | None:
    """Return the next row, whose fields may be as long as a line; None after the last.

    The limit is one for the whole process, so it is raised for this row alone.
    """
    before = csv.field_size_limit(LONGEST_LINE)
    try:
        return next(table, None)
    finally:
        csv.field_size_limit(before)


def _names(header: list[str], file: Path) -> list[str]:
    """Return the names of the columns. One without a name is called as pandas calls it: it has
    numbers of rows, or nothing."""
    if not header:
        raise BadInput(f"{file}:1: no names of columns: the first line is blank")
    names = [name.strip() or f"Unnamed: {number}" for number, name in enumerate(header)]
    if len(set(names)) < len(names):
        raise BadInput(
            f"{file}:1: the first line must name the columns, each once. Found: "
            f"{', '.join(map(repr, names[:8]))}"
        )
    return names


def _of_row(row: list[str], names: list[str], where: str, size: int) -> ReadItem:
    if len(row) == len(names):
        return ReadItem(where, dict(zip(names, row, strict=True)), size)
    problem = f"{where}: found {len(row)} columns instead of {len(names)} ({', '.join(names[:6])})"
    return ReadItem(where, None, size, problem)


READERS: dict[FileKind, Callable[[Path, Progress, float], Iterator[ReadItem]]] = {
    "text": _text,
    "jsonl": _jsonl,
    "parquet": _parquet,
    "json": _json,
    "csv": _csv,
}
