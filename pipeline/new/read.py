"""Read records of any kind of file, all of them or a sample, and go on after what can't be read.

A run stops at the first record that it can't read. This lists them, with file and line.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
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
    decoded_part,
    numbered_lines,
    object_of_line,
    parquet_rows,
)
from pion.data.documents.unpack import opened, unpacked
from pion.data.records.fields import EVERY
from pion.errors import BadInput
from pion.untrusted import open_file, parse_json
from pipeline.new.files import FileKind, Group

Record = dict[str, Any]
# Where a record is, what returns it or raises BadInput, and the bytes that were read for it.
Value = tuple[str, Callable[[], Record], int]
# What may stand between the columns of a table.
DELIMITERS = ",;\t|"
# A JSON list of more bytes is not read.
LARGEST_LIST = 2 << 30
# What stands before an item of a JSON list.
_BEFORE_ITEM = re.compile(r"\s*(.?)\s*")
# A sample has so many bytes, of all files of a kind together.
SAMPLE_BYTES = 8 << 20
# Of so many files at most, if there are more bytes; and else, too, because each takes time.
MOST_FILES, MOST_SMALL_FILES = 64, 2_000
# So many records are in a sample, of all files together.
MOST_RECORDS = 8_000


@dataclass(frozen=True)
class ReadItem:
    """A record and its `file:line`; or, without a record, the problem.

    Attributes:
        bytes: what was read for it, unpacked.
        stored: how many bytes of the file on this disk were read so far.
    """

    where: str
    record: Record | None
    bytes: int = 0
    stored: int = 0
    problem: str = ""


@dataclass
class Sample:
    """A part of a group of files, or all of it.

    Attributes:
        files: the records of each file that was read, and what can't be read.
        stored: bytes on the disk of what was read.
        whole: whether all was read.
    """

    group: Group
    files: dict[Path, list[ReadItem]] = field(default_factory=dict)
    stored: int = 0
    whole: bool = True

    @property
    def items(self) -> list[ReadItem]:
        """The records of all files, and what can't be read."""
        return [item for items in self.files.values() for item in items]

    @property
    def factor(self) -> float:
        """How many times more there is than was read."""
        return 1.0 if self.whole else self.group.bytes / max(1, self.stored)


def sample_of(group: Group, limit: int | None = None) -> Sample:
    """Return about `limit` bytes of a group of files, at even distances; None: SAMPLE_BYTES."""
    limit, total = limit or SAMPLE_BYTES, group.bytes
    small = total <= limit
    every = len(group.files)
    count = min(every, MOST_SMALL_FILES if small else MOST_FILES)
    sample = Sample(group, whole=small and count == every)
    for file in (group.files[i * every // count] for i in range(count)):
        size, read = file.stat().st_size, 0
        # A small file is read whole, but once it is unpacked, it may have any size.
        most = limit * size / max(1, total) if small else limit / count
        reader, items = read_file(group.kind, file, most), list[ReadItem]()
        for item in islice(reader, MOST_RECORDS // count):
            items.append(item)
            read += item.bytes
            if read >= most:
                break
        ended = next(reader, None) is None
        sample.files[file] = items
        sample.stored += size if ended or not items else items[-1].stored
        sample.whole = sample.whole and ended
    return sample


def read_file(kind: FileKind, file: Path, most: float = float("inf")) -> Iterator[ReadItem]:
    """Yield the records of a file; of text, in parts of at most about `most` bytes.

    A text file is one record, or some if it is long, with its text under `text`. What can't be
    read becomes an item with a problem. Where nothing after it can be read, the file ends there.
    """
    where = ""
    try:
        with open_file(file) as stored, ExitStack() as stack:
            stream: BinaryIO = stored
            if kind != "parquet":
                stream = stack.enter_context(unpacked(stored, file))
            for where, value, size in READERS[kind](stream, file, most):
                try:
                    yield ReadItem(where, value(), size, stored.tell())
                except NotJsonLines:
                    raise
                except BadInput as error:
                    yield ReadItem(where, None, size, stored.tell(), str(error))
    except (BadInput, OSError) as error:
        problem = str(error) if str(file) in str(error) else f"{file}: {error}"
        named = f"{file}:" in problem and problem.partition(f"{file}:")[2][:1].isdigit()
        after = f" (after {where})" if where and not named else ""
        yield ReadItem(str(file), None, problem=f"{problem}{after}")


def _text(stream: BinaryIO, file: Path, most: float) -> Iterator[Value]:
    """Yield the text of a file, in parts of whole lines if it is long, as a run reads it."""
    start = 0
    while part := stream.read(int(min(PART_BYTES, most))):
        part += stream.readline(LONGEST_LINE + 1)
        check_line(file, part, start, LONGEST_LINE)
        yield str(file), partial(dict, text=decoded_part(file, part, start)), len(part)
        start += len(part)


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
    text, at, line, mark = decoded_part(file, content), 0, 1, "["
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
        yield where, partial(_item, text[start:end], where), end - at
        line, at, mark = line + text.count("\n", at, end), end, ","


def _item(text: str, where: str) -> Record:
    value = parse_json(text, where, strict=False)
    if not isinstance(value, dict):
        raise BadInput(f"{where}: found a {type(value).__name__} instead of a JSON object")
    return value


def _csv(stream: BinaryIO, file: Path, most: float) -> Iterator[Value]:
    text = io.TextIOWrapper(stream, "utf-8-sig", newline="")
    lines = iter(partial(text.readline, LONGEST_LINE), "")
    # The limit is one for the whole process.
    limit = csv.field_size_limit(LONGEST_LINE)
    try:
        yield from _rows(lines, file)
    except UnicodeDecodeError:
        with opened(file) as again:
            for number, line in enumerate(again, 1):
                decoded(line, f"{file}:{number}")
    finally:
        csv.field_size_limit(limit)


def _rows(lines: Iterator[str], file: Path) -> Iterator[Value]:
    header = next(lines, "")
    # Excel may say above the header what is between the columns.
    if excel := re.fullmatch(r"sep=(.)\s*", header):
        header = next(lines, "")
    delimiter = "\t" if file.suffix == ".tsv" else max(DELIMITERS, key=header.count)
    delimiter = excel[1] if excel else delimiter
    table = csv.reader(chain([header], lines), delimiter=delimiter, strict=True)
    line, names, blank = 1 + bool(excel), list[str](), 0
    try:
        for row in table:
            where, size = f"{file}:{line}", sum(map(len, row)) + len(row)
            blank = 0 if row else blank + 1
            if blank > MOST_BLANK:
                raise BadInput(f"{where}: more than {MOST_BLANK:,} lines are blank. Remove them")
            if names and row:
                yield where, partial(_row, names, row, where), size
            names = names or _names(row, file)
            line = table.line_num + 1 + bool(excel)
    except csv.Error as error:
        raise BadInput(f"{file}:{line}: not a row of a table ({error})") from None
    _names(names, file)


def _names(header: list[str], file: Path) -> list[str]:
    """Return the names of the columns. One without a name is called as pandas calls it: it has
    numbers of rows, or nothing."""
    names = [name.strip() or f"Unnamed: {number}" for number, name in enumerate(header)]
    if not names or len(set(names)) < len(names):
        listed = ", ".join(map(repr, names[:8])) or "nothing"
        raise BadInput(
            f"{file}:1: the first line must name the columns, each once. Found: {listed}"
        )
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
