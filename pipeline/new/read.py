"""Read records of any kind of file, and go on after what can't be read.

A run stops at the first record that it can't read. This lists them, with file and line.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from pion.data.documents.file_to_documents import (
    LONGEST_LINE,
    MOST_BLANK,
    PART_BYTES,
    RAISE_IT,
    NotJsonLines,
    check_line,
    decoded,
    numbered_lines,
    object_of_line,
    parquet_rows,
)
from pion.data.documents.unpack import unpacked
from pion.data.records.fields import EVERY
from pion.errors import BadInput
from pion.untrusted import open_file, parse_json
from pipeline.new.files import FileKind

Record = dict[str, Any]
# Where a value is, what returns it or raises BadInput, and the bytes that were read for it.
Value = tuple[str, Callable[[], Any], int]
# What may stand between the columns of a table.
DELIMITERS = ",;\t|"
# A JSON list of more bytes is not read.
LARGEST_LIST = 2 << 30
# What stands before an item of a JSON list.
_BEFORE_ITEM = re.compile(r"\s*(.?)\s*")


@dataclass(frozen=True)
class ReadItem:
    """A record and its `file:line`; or, without a record, the problem.

    Attributes:
        bytes: what was read for it, unpacked.
        stored: how many bytes of the file on this disk were read so far.
    """

    where: str
    record: Record | None
    bytes: int
    stored: int = 0
    problem: str = ""


def read_file(kind: FileKind, file: Path, most: float = float("inf")) -> Iterator[ReadItem]:
    """Yield the records of a file; of text, in parts of at most about `most` bytes.

    A text file is one record, or some if it is long, with its text under `text`. What can't be
    read becomes an item with a problem. Where nothing after it can be read, the file ends there.
    """
    where = ""
    try:
        with open_file(file) as stored, _opened(kind, stored, file) as stream:
            for where, value, size in READERS[kind](stream, file, most):
                try:
                    yield ReadItem(where, _object(value(), where), size, stored.tell())
                except NotJsonLines:
                    raise
                except BadInput as error:
                    yield ReadItem(where, None, size, stored.tell(), str(error))
    except (BadInput, OSError, UnicodeDecodeError) as error:
        problem = str(error) if str(file) in str(error) else f"{file}: {error}"
        if isinstance(error, UnicodeDecodeError):
            problem = f"{file}: not UTF-8 text; convert it with: iconv -f ENCODING -t UTF-8"
        named = re.search(rf"{re.escape(str(file))}:\d", problem)
        after = f" (after {where})" if where and not named else ""
        yield ReadItem(str(file), None, 0, problem=f"{problem}{after}")


def _opened(kind: FileKind, stored: io.BufferedReader, file: Path) -> Any:
    return nullcontext(stored) if kind == "parquet" else unpacked(stored, file)


def _object(value: Any, where: str) -> Record:
    if not isinstance(value, dict):
        raise BadInput(f"{where}: found a {type(value).__name__} instead of a JSON object")
    return value


def _text(stream: BinaryIO, file: Path, most: float) -> Iterator[Value]:
    """Yield the text of a file, in parts of whole lines if it is long, as a run reads it."""
    read = 0
    while part := stream.read(int(min(PART_BYTES, most))):
        part += stream.readline(LONGEST_LINE + 1)
        check_line(file, part, read, LONGEST_LINE)
        record = {"text": decoded(part, str(file), read)}
        yield str(file), partial(dict, record), len(part)
        read += len(part)


def _jsonl(stream: BinaryIO, file: Path, most: float) -> Iterator[Value]:
    for where, line in numbered_lines(stream, file, LONGEST_LINE, RAISE_IT):
        yield where, partial(object_of_line, line, where), len(line)


def _json(stream: BinaryIO, file: Path, most: float) -> Iterator[Value]:
    """Yield the items of a JSON list, as Alpaca and ShareGPT are published, or what lines have, or
    one object on many lines."""
    begin = stream.peek(LONGEST_LINE).lstrip(b"\xef\xbb\xbf \t\r\n")  # type: ignore[attr-defined]
    if begin.startswith(b"["):
        yield from _json_list(stream, file)
    elif begin.split(b"\n", 1)[0].strip() in (b"", b"{"):
        record, where = stream.read(LONGEST_LINE), f"{file}:1"
        yield where, partial(object_of_line, record, where), len(record)
    else:
        yield from _jsonl(stream, file, most)


def _json_list(stream: BinaryIO, file: Path) -> Iterator[Value]:
    content = stream.read(LARGEST_LIST)
    if stream.read(1):
        raise BadInput(
            f"{file} is one JSON list of more than {LARGEST_LIST:,} bytes. Write a line for each "
            "item: jq -c '.[]' FILE > NEW.jsonl"
        )
    text, at, line, mark = decoded(content, str(file)), 0, 1, "["
    while (before := _BEFORE_ITEM.match(text, at)) is not None:
        start = before.end()
        where = f"{file}:{line + text.count(chr(10), at, start)}"
        if before[1] == "]" or (mark == "[" and text.startswith("]", start)):
            return
        if before[1] != mark:
            raise BadInput(f"{where}: expected {mark!r} of a list: was the file cut off?")
        try:
            _, end = json.JSONDecoder().raw_decode(text, start)
        except (RecursionError, ValueError) as error:
            why = f"{error}; was the file cut off?"
            raise BadInput(f"{where}: the item that begins here is not valid JSON: {why}") from None
        yield where, partial(parse_json, text[start:end], where, strict=False), end - at
        line, at, mark = line + text.count("\n", at, end), end, ","


def _csv(stream: BinaryIO, file: Path, most: float) -> Iterator[Value]:
    text = io.TextIOWrapper(stream, "utf-8-sig", newline="")
    lines = iter(partial(text.readline, LONGEST_LINE), "")
    header = next(lines, "")
    # Excel may say above the header what is between the columns.
    if said := re.fullmatch(r"sep=(.)\s*", header):
        header = next(lines, "")
    delimiter = "\t" if file.suffix == ".tsv" else max(DELIMITERS, key=header.count)
    delimiter = said[1] if said else delimiter
    table = csv.reader(chain([header], lines), delimiter=delimiter, strict=True)
    # The limit is one for the whole process.
    before, line, names = csv.field_size_limit(LONGEST_LINE), 1 + bool(said), list[str]()
    blank = 0
    try:
        for row in table:
            where, size = f"{file}:{line}", sum(map(len, row)) + len(row)
            blank = 0 if row else blank + 1
            if blank > MOST_BLANK:
                raise BadInput(f"{where}: more than {MOST_BLANK:,} lines are blank. Remove them")
            if names and row:
                yield where, partial(_row, names, row, where), size
            names = names or _names(row, file)
            line = table.line_num + 1 + bool(said)
    except csv.Error as error:
        raise BadInput(f"{file}:{line}: not a row of a table ({error})") from None
    finally:
        csv.field_size_limit(before)
    _names(names, file)


def _names(header: list[str], file: Path) -> list[str]:
    """Return the names of the columns. One without a name is called as pandas calls it: it has
    numbers of rows, or nothing."""
    names = [name.strip() or f"Unnamed: {number}" for number, name in enumerate(header)]
    if not names or len(set(names)) < len(names):
        found = ", ".join(map(repr, names[:8])) or "nothing"
        raise BadInput(f"{file}:1: the first line must name the columns, each once. Found: {found}")
    return names


def _row(names: list[str], row: list[str], where: str) -> Record:
    if len(row) != len(names):
        listed = ", ".join(names[:6])
        raise BadInput(f"{where}: found {len(row)} columns instead of {len(names)} ({listed})")
    return dict(zip(names, row))


def _parquet(stream: BinaryIO, file: Path, most: float) -> Iterator[Value]:
    import pyarrow.parquet

    rows, size = 0, file.stat().st_size
    for number, row in enumerate(parquet_rows(file, EVERY, LONGEST_LINE), 1):
        rows = rows or pyarrow.parquet.read_metadata(file).num_rows
        stream.seek(size * number // rows)  # the rows up to here take about so many bytes
        yield f"{file} row {number}", partial(dict, row), len(str(row))


READERS: dict[FileKind, Callable[[BinaryIO, Path, float], Iterator[Value]]] = {
    "text": _text,
    "jsonl": _jsonl,
    "parquet": _parquet,
    "json": _json,
    "csv": _csv,
}
