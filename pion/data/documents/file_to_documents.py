"""Read documents and records from files: plain text, JSON Lines, parquet.

Files come in sorted order and documents in file order, so the same folder always gives the same
documents. Errors name the file and line, or the job's key that named the file. Of parquet files,
only the columns asked for are read, and one row is in Python at a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from pion.data.documents.unpack import opened, other_than_text
from pion.data.records.fields import NOT_READ, is_null
from pion.data.records.layouts import TURNS
from pion.data.records.whole_table import table_in
from pion.errors import BadInput
from pion.untrusted import FarFile, open_file, parse_json

if TYPE_CHECKING:
    import pyarrow
    from pyarrow.parquet import ParquetFile

# A text file is read in parts of this many bytes.
PART_BYTES = 4 << 20
# Bytes of the longest line of a text or of JSON Lines, unless the caller says otherwise.
LONGEST_LINE = 16_000_000
# So many blank lines may come one after another: a small packed file can have billions of them.
MOST_BLANK = 1_000_000
RAISE_IT = ". If the line is meant to be so long, raise data.max_line_mb"
# Few, because a small file can say that all of its rows have the same long text.
ROWS_AT_ONCE = 16
# So much of a column of a far table is read at once.
_BLOCK_BYTES = 1 << 18
# Between documents of a text, and around a document: with the line break and a mark that begins the
# next one. In quotes, it is spoken of. `<s>` may be HTML.
_BETWEEN = re.compile(
    r"<(?:(?<![`\"'(].)(?:\|(?:endoftext|end_of_text|eos)\||eos"
    r"|/s(?:(?=>(?:<s>|\s*\Z))|(?<=\n</s)(?=>[ \t]*\n)))"
    r">[ \t]*\n?(?:\s*(?:<s>|<bos>|<\|begin_of_text\|>))?"
    r"|(?<=\A.)(?:bos|\|begin_of_text\||s(?=>.*</s>\s*\Z))>)",
    re.DOTALL,
)
# Of chat templates; Pion's own are plain text.
_MARK = re.compile(r"<(?<![`\"'(].)(?:\|(?!user|assistant|system)\w+\||start_of_turn)>")
# What a text has that is not learned as it is there, in words.
SPELLED = (
    "texts spell special tokens, such as marks of a chat template, and these are learned as "
    "letters. Conversations are for the stage sft: name the file under sft.sources, which reads "
    "the marks back into turns"
)
ZEROS = "texts have zero bytes, which are left out: was the file cut, or the disk full?"
_ODD = (
    ("\r\n", "\n", "texts have the line ends of Windows, which are read as \\n"),
    ("\ufeff", "", "texts have marks of the byte order inside, which are left out"),
    ("\0", "", ZEROS),
)
_AS_TEXT = (
    "conversations are for the stage sft: name the file under sft.sources. To read them in "
    "pretraining, write them as text first: jq -c '{text: (.TURNS | "
    r"""map("<|\(.role)|>\n\(.content)\n") | add)}' FILE > NEW.jsonl"""
)
# Is told what a text has, in words, and where the text is.
Note = Callable[[str, str], object]
T = TypeVar("T")


@dataclass(frozen=True)
class Document:
    """A text and its origin: a file, a file:line or a name in a data set.

    `held_out` is whether the name of its file says that it is held out; None: names say nothing.
    """

    text: str
    origin: str
    held_out: bool | None = None


@dataclass(frozen=True)
class Record:
    """One JSON object or table row, and its origin; `held_out` as of a document."""

    value: dict[str, Any]
    origin: str
    held_out: bool | None = None


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
        held_out: as of its documents.
    """

    file: Path
    first: int = 0
    start: int = 0
    end: int | None = None
    seen: int = 0
    held_out: bool | None = None


def text_documents(
    spans: Sequence[Span], split: str, key: str, longest: int = LONGEST_LINE
) -> Iterator[Document]:
    """Yield a document for each UTF-8 file, or with split="paragraph" for each paragraph.

    A file of more than 4 MB is read in parts, cut at line breaks, and each part is a document.
    Paragraphs are separated by blank lines. Raises BadInput for text that is not UTF-8, a line of
    more than `longest` bytes, and a corpus without any text.
    """
    documents = (document for span in spans for document in texts_in(span, split, longest))
    yield from at_least_one(documents, f"{key}: the corpus is empty: no text in {_such(spans)}")


def texts_in(span: Span, split: str, longest: int = LONGEST_LINE) -> Iterator[Document]:
    """Yield the documents of a span of a text file. Raises BadInput as `text_documents` does."""
    number = span.first
    for part in _parts(span, longest):
        for text in re.split(r"\n\s*\n", part) if split == "paragraph" else [part]:
            if text.strip():
                number += 1
                yield Document(text, f"{span.file}#{number}", span.held_out)


def jsonl_records(spans: Sequence[Span], key: str, longest: int = LONGEST_LINE) -> Iterator[Record]:
    """Yield a record for each line of JSON Lines files. Blank lines are skipped.

    Raises BadInput for a line that is not a JSON object or has more than `longest` bytes, naming
    the file and line, for a damaged file, and for a corpus without any line.
    """
    records = (record for span in spans for record in lines_in(span, longest))
    yield from at_least_one(records, f"{key}: the corpus is empty: no line in {_such(spans)}")


def lines_in(span: Span, longest: int = LONGEST_LINE) -> Iterator[Record]:
    """Yield the records of a span of a JSON Lines file. Raises BadInput as `jsonl_records` does."""
    with opened(span.file) as stream:
        if span.start:
            stream.seek(span.start)
        size = None if span.end is None else span.end - span.start
        numbered = numbered_lines(stream, span.file, longest, RAISE_IT, span.first, size)
        for where, line in numbered:
            yield Record(object_of_line(line, where), where, span.held_out)


class NotJsonLines(BadInput):
    """A file is one JSON document, so none of its lines is a record."""


def object_of_line(line: bytes, where: str) -> dict[str, Any]:
    """Return the JSON object of a line. Raises BadInput if it has none.

    Raises NotJsonLines for the first line of a document, and for a whole table in one object.
    """
    file, _, number = where.rpartition(":")
    if number == "1" and (line.lstrip(b"\xef\xbb\xbf \t")[:1] == b"[" or line.strip() == b"{"):
        kind, how = ("a list", ".[]") if b"[" in line else ("an object", ".")
        raise NotJsonLines(
            f"{file} is one JSON document ({kind}), not JSON Lines, which have an object on each "
            f"line. Convert it with: jq -c '{how}' FILE > NEW.jsonl"
        )
    value = json_of_line(line, where)
    if not isinstance(value, dict):
        raise BadInput(f"{where}: found a {type(value).__name__} instead of a JSON object")
    if number == "1" and (table := table_in(value)) is not None:
        raise NotJsonLines(f"{file} is one JSON object, not one on each line: {table}")
    return value


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
    read = blank = blanks = 0
    while (size is None or read < size) and (line := stream.readline(longest + 2)):
        number += 1
        read += len(line)
        where = f"{file}:{number}"
        if len(line) - line.endswith(b"\n") > longest:
            raise BadInput(f"{where}: the line has more than {longest:,} bytes{advice}")
        if not line.strip():
            blank, blanks = blank + len(line), blanks + 1
            if blank > longest or blanks > MOST_BLANK:
                raise BadInput(
                    f"{where}: more than {longest:,} bytes or {MOST_BLANK:,} lines are blank. "
                    "Remove them"
                )
        else:
            blank = blanks = 0
            yield where, line


def json_of_line(line: bytes, where: str) -> Any:
    """Return the JSON value of a line. Raises BadInput if it has none, or is not UTF-8."""
    return parse_json(decoded(line, where), where, strict=False)


def parquet_records(
    spans: Sequence[Span], key: str, columns: Container[str], longest: int = LONGEST_LINE
) -> Iterator[Record]:
    """Yield a record for each row of parquet files. Only `columns` are read.

    Without any of `columns`, the record has the names of the others. Raises BadInput for a file
    that is not parquet, for a text of more than `longest` bytes, naming the file and row, and for a
    corpus without any row.
    """
    records = (record for span in spans for record in rows_in(span, columns, longest))
    yield from at_least_one(records, f"{key}: the corpus is empty: no row in {_such(spans)}")


def rows_in(span: Span, columns: Container[str], longest: int = LONGEST_LINE) -> Iterator[Record]:
    """Yield the records of a span of a parquet file. Raises BadInput as `parquet_records` does."""
    for number, value in enumerate(parquet_rows(span.file, columns, longest, span), span.first + 1):
        yield Record(value, f"{span.file} row {number}", span.held_out)


def unnoted(words: str, where: str) -> None:
    """Do nothing: nobody is told."""


def record_documents(
    records: Iterator[Record], field: str, key: str, note: Note = unnoted
) -> Iterator[Document]:
    """Yield the text under `field` of every record, and `note` null or blank texts, which are
    skipped.

    Raises BadInput if `field` is missing or is not text, naming the record and its fields, and if
    every text is blank.
    """
    texts = texts_under(field, records, key, note)
    yield from at_least_one(texts, f"{key}: the corpus is empty: every {field!r} is blank")


def texts_under(field: str, records: Iterable[Record], key: str, note: Note) -> Iterator[Document]:
    """Yield the text under `field` of every record, as `record_documents` does."""
    for record in records:
        text = record.value.get(field)
        if is_null(text) and field in record.value:
            text = ""
        if not isinstance(text, str):
            problem = (
                f"no field {field!r}; its fields: {', '.join(map(str, record.value)) or 'none'}"
                if field not in record.value
                else f"field {field!r} is not text but {type(text).__name__}"
            )
            turns = next((name for name in TURNS if name in record.value), None)
            how = f"set {key}.field" if turns is None else _AS_TEXT.replace("TURNS", turns)
            raise BadInput(f"{record.origin}: {problem} ({how})")
        if text.strip():
            yield Document(text, record.origin, record.held_out)
        else:
            note("records without text are left out", record.origin)


def _such(spans: Sequence[Span]) -> str:
    return f"{spans[0].file}{f' and {len(spans) - 1:,} more' if spans[1:] else ''}"


def at_least_one(items: Iterable[T], otherwise: str) -> Iterator[T]:
    """Yield the items. Raises BadInput with the message `otherwise` if there are none."""
    empty = True
    for item in items:
        empty = False
        yield item
    if empty:
        raise BadInput(otherwise)


def plain(text: str, where: str, note: Note) -> str:
    """Return a text of `whole_characters`, without zero bytes, and with plain ends of lines."""
    text = whole_characters(text)
    for odd, instead, remark in _ODD:
        if odd in text:
            note(remark, where)
            text = text.replace(odd, instead)
    return text


def separate(document: Document, note: Note) -> Iterator[Document]:
    """Yield the documents of a text, which it may cut by the marks of other programs, as `plain`
    text."""
    texts = _BETWEEN.split(plain(document.text, document.origin, note))
    if texts[1:]:
        note("texts are cut where they spell a mark between documents", document.origin)
    for text in filter(str.strip, texts):
        if mark := _MARK.search(text):
            note(SPELLED, f"{document.origin}: {mark[0]}")
        yield replace(document, text=text)


def whole_characters(text: str) -> str:
    """Return the text with `?` for halves of surrogate pairs (from broken JSON writers)."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _parts(span: Span, longest: int) -> Iterator[str]:
    """Yield the text of a span: whole, or in parts of about PART_BYTES if there is more."""
    start, seen = span.start, span.seen or PART_BYTES
    with opened(span.file) as stream:
        if start:
            stream.seek(start)
        held = stream.read(seen - start)
        if span.seen:
            check_line(span.file, held, start, longest)
        while block := stream.read(PART_BYTES):
            cut = cut_of(held)
            yield decoded_part(span.file, held[:cut], start)
            start, seen, held = start + cut, seen + PART_BYTES, held[cut:] + block
            if seen == span.end:
                return
            check_line(span.file, held, start, longest)
    yield decoded_part(span.file, held, start)


def check_line(file: Path, held: bytes, start: int, longest: int) -> None:
    """Raise BadInput if the last line of what is held, from the byte `start` on, is too long."""
    if len(held) - held.rfind(b"\n") - 1 > longest:
        line = _line_at(file, start + len(held))
        raise BadInput(f"{file}:{line}: the line has more than {longest:,} bytes{RAISE_IT}")


def _line_at(file: Path, byte: int) -> int:
    """Return the number of the line that has a byte of a file, counted once it is unpacked."""
    line = 1
    with opened(file) as stream:
        while byte > 0 and (before := stream.read(min(byte, PART_BYTES))):
            line, byte = line + before.count(b"\n"), byte - len(before)
    return line


def cut_of(held: bytes) -> int:
    """Return where the next part begins: after a blank line, or else after a line break.

    Only the second half is searched for a blank line: the first may have a title and no other.
    """
    blank = held.rfind(b"\n\n", len(held) // 2)
    return blank + 2 if blank >= 0 else held.rfind(b"\n") + 1


def decoded(content: bytes, where: str) -> str:
    """Return bytes as text. Raises BadInput that names `where`, if they are not UTF-8."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _not_utf8(where, error.start) from None


def decoded_part(file: Path, part: bytes, start: int = 0) -> str:
    """Return a part of a file, which begins at byte `start`, as text. Raises BadInput that names
    the line, if it is not UTF-8."""
    try:
        return part.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        byte = start + error.start
        raise _not_utf8(f"{file}:{_line_at(file, byte)}", byte) from None


def _not_utf8(where: str, byte: int) -> BadInput:
    return BadInput(
        f"{where}: not UTF-8 text at byte {byte:,}; convert it with: iconv -f ENCODING -t UTF-8"
    )


def parquet_rows(
    file: Path, columns: Container[str], longest: int, span: Span | None = None
) -> Iterator[dict[str, Any]]:
    """Yield each row with those of `columns` that are there, and NOT_READ under the others, or else
    one row of all names; of a `span` of the file, or of all.

    Raises BadInput for a file that is not parquet, and for a row of more than `longest` bytes.
    """
    import pyarrow

    row = 0
    try:
        with parquet_file(file) as table:
            columns_in_file = table.schema_arrow.names
            wanted = [name for name in columns_in_file if name in columns]
            if not wanted:
                yield dict.fromkeys(columns_in_file, NOT_READ)
                return
            others = {name: NOT_READ for name in columns_in_file if name not in columns}
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
        raise not_parquet(file, error) from None


def parquet_file(file: Path) -> ParquetFile:
    """Return a table, open for reading, one block after the other if the file is far. Raises errors
    of pyarrow and OSError for a file that is not parquet."""
    from pyarrow.parquet import ParquetFile

    if isinstance(file, FarFile):
        return ParquetFile(file.open_bytes(), buffer_size=_BLOCK_BYTES, pre_buffer=False)
    return ParquetFile(file)


def not_parquet(file: Path, error: Exception) -> BadInput:
    """Return the error for a file that can't be read as parquet; it says what else the file is."""
    with open_file(file) as stream:
        other = other_than_text(stream.peek(1))
    why = error if other is None or other.startswith("parquet") else f"it is {other}"
    return BadInput(f"{file}: not a readable parquet file: {why}")


def _size(arrays: dict[str, pyarrow.Array], row: int | None = None) -> int:
    """Return the bytes of one row, or of all rows."""
    parts = arrays.values() if row is None else (a.slice(row, 1) for a in arrays.values())
    return sum(array.nbytes for array in parts)
