"""Read documents and records from files: plain text, JSON Lines, parquet.

Files come in sorted order and documents in file order, so the same folder always gives the same
documents. Errors name the file and line, or the job's key that named the file.
"""

from __future__ import annotations

import glob
import gzip
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pion.errors import BadInput

TEXT_SUFFIXES = (".txt", ".md")
JSONL_SUFFIXES = (".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz")
PARQUET_SUFFIXES = (".parquet",)
# A text file is read in parts of this many bytes.
PART_BYTES = 4 << 20


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


def list_files(path: Path, suffixes: tuple[str, ...], key: str) -> list[Path]:
    """Return the files that `path` names, sorted.

    `path` is a file, a folder whose files have one of `suffixes`, or a glob. `key` is the job's key
    with the path, for the message. Raises BadInput if no file matches.
    """
    if path.is_file():
        return [path]
    if path.is_dir():
        found = [p for p in path.rglob("*") if p.is_file() and p.name.endswith(suffixes)]
        wanted = " or ".join(f"*{suffix}" for suffix in suffixes)
        problem = f"no {wanted} file in the folder {path}"
    elif glob.has_magic(str(path)):
        found = [Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file()]
        problem = f"no file matches {path}"
    else:
        found, problem = [], f"no such file or folder: {path}"
    if not found:
        raise BadInput(f"{key}: {problem}")
    return sorted(found, key=lambda p: p.as_posix())


def text_documents(path: Path, split: str, key: str) -> Iterator[Document]:
    """Yield a document for each UTF-8 file, or with split="paragraph" for each paragraph.

    A file is read in parts of about 4 MB, cut at line breaks, and each part is a document.
    Paragraphs are separated by blank lines. Raises BadInput for a missing path, text that is not
    UTF-8, and a corpus without any text.
    """
    empty = True
    for file in list_files(path, TEXT_SUFFIXES, key):
        number = 0
        for part in _parts(file):
            for text in re.split(r"\n\s*\n", part) if split == "paragraph" else [part]:
                if text.strip():
                    empty = False
                    number += 1
                    yield Document(text, f"{file}#{number}")
    if empty:
        raise BadInput(f"{key}: the corpus is empty: no text in {path}")


def jsonl_records(path: Path, key: str) -> Iterator[Record]:
    """Yield a record for each line of JSON Lines files, also .gz files. Blank lines are skipped.

    Raises BadInput for a line that is not a JSON object, naming the file and line, for a damaged
    file, and for a corpus without any line.
    """
    empty = True
    for file in list_files(path, JSONL_SUFFIXES, key):
        with _open(file) as lines:
            for number, line in enumerate(_lines(lines, file), 1):
                if line.strip():
                    empty = False
                    yield Record(_parse(line, f"{file}:{number}"), f"{file}:{number}")
    if empty:
        raise BadInput(f"{key}: the corpus is empty: no line in {path}")


def parquet_records(path: Path, key: str) -> Iterator[Record]:
    """Yield a record for each row of parquet files.

    Raises BadInput for a file that is not parquet, and for a corpus without any row.
    """
    import pyarrow
    import pyarrow.parquet

    empty = True
    for file in list_files(path, PARQUET_SUFFIXES, key):
        try:
            number = 0
            for batch in pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=256):
                for value in batch.to_pylist():
                    number += 1
                    empty = False
                    yield Record(value, f"{file} row {number}")
        except (pyarrow.ArrowInvalid, OSError) as error:
            raise BadInput(f"{file}: not a readable parquet file: {error}") from None
    if empty:
        raise BadInput(f"{key}: the corpus is empty: no row in {path}")


def record_documents(records: Iterator[Record], field: str, key: str) -> Iterator[Document]:
    """Yield the text under `field` of every record; blank texts are skipped.

    Raises BadInput if `field` is missing or is not text, naming the record and its fields, and if
    every text is blank.
    """
    empty = True
    for record in records:
        text = record.value.get(field)
        if not isinstance(text, str):
            problem = (
                f"no field {field!r}; its fields: {', '.join(map(str, record.value)) or 'none'}"
                if field not in record.value
                else f"field {field!r} is not text but {type(text).__name__}"
            )
            raise BadInput(f"{record.origin}: {problem} (set {key}.field)")
        if text.strip():
            empty = False
            yield Document(text, record.origin)
    if empty:
        raise BadInput(f"{key}: the corpus is empty: every {field!r} is blank")


def _open(file: Path) -> BinaryIO:
    return gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb")  # type: ignore[return-value]


def _lines(lines: BinaryIO, file: Path) -> Iterator[bytes]:
    try:
        yield from lines
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise BadInput(f"{file}: damaged gzip file: {error}") from None


def _parts(file: Path) -> Iterator[str]:
    """Yield the text of a file in parts of PART_BYTES, cut between paragraphs or, if a part has
    none, lines."""
    rest, start = b"", 0
    with file.open("rb") as stream:
        while block := stream.read(PART_BYTES):
            block = rest + block
            cut = block.rfind(b"\n\n") + 2 if b"\n\n" in block else block.rfind(b"\n") + 1
            rest = block[cut:]
            yield _decode(block[:cut], str(file), start)
            start += cut
    yield _decode(rest, str(file), start)


def _decode(content: bytes, where: str, start: int = 0) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadInput(
            f"{where}: not UTF-8 text at byte {start + error.start:,}; "
            "convert it with: iconv -f ENCODING -t UTF-8"
        ) from None


def _parse(line: bytes, where: str) -> dict[str, Any]:
    try:
        value = json.loads(_decode(line, where))
    except json.JSONDecodeError as error:
        raise BadInput(f"{where}: broken JSON: {error.msg} at column {error.colno}") from None
    except RecursionError:
        raise BadInput(f"{where}: JSON nested too deeply") from None
    if not isinstance(value, dict):
        raise BadInput(f"{where}: found a {type(value).__name__} instead of a JSON object")
    return value
