"""Open a file of data by what it is, which its first bytes say and its name may not."""

from __future__ import annotations

import gzip
import io
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from pion.errors import BadInput
from pion.untrusted import open_file

# So many bytes say what a file is.
_PEEKED = 512
GZIP = b"\x1f\x8b"
# A frame, or one that is skipped: those of pzstd begin so.
_ZSTD = re.compile(rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18")
UNPACK, TO_TEXT = "Unpack it first", "Convert it to text first"
# What begins so, what it is, and what to do with it.
_OTHERS = tuple(
    (re.compile(pattern, re.DOTALL), what, advice)
    for pattern, what, advice in (
        (rb"\x1f\x8b|\x28\xb5\x2f\xfd", "packed twice", UNPACK),
        (rb"BZh[1-9]1AY&SY", "packed with bzip2", "Unpack it first: bunzip2 FILE"),
        (rb"\xfd7zXZ\0", "packed with xz", "Unpack it first: unxz FILE"),
        (rb"\x04\x22\x4d\x18", "packed with lz4", "Unpack it first: unlz4 FILE"),
        (rb"PK\x03\x04", "a zip archive, or a document of Office",
         f"{UNPACK}, or save it as text, CSV or parquet"),
        (rb"7z\xbc\xaf\x27\x1c|Rar!\x1a\x07|.{257}ustar", "an archive", UNPACK),
        (rb"PAR1[\x15\x19]", "parquet", "Use kind: parquet, and a name that ends in .parquet"),
        (rb"%PDF-", "a PDF", TO_TEXT),
        (rb"\{\\rtf|\xd0\xcf\x11\xe0", "a document of a text processor", TO_TEXT),
        (rb"SQLite format 3\0", "a database of SQLite", "Export its table as JSON Lines"),
        (rb"ARROW1|Obj\x01|\x93NUMPY|\x89HDF", "an array or a table", "Convert it to parquet"),
        (rb"\x89PNG|\xff\xd8\xff|GIF8[79]a", "a picture", "Remove it"),
        (rb"version https://git-lfs", "a pointer of Git LFS, and not the file itself",
         "Bring the file: git lfs pull"),
        (rb"\xff\xfe|\xfe\xff", "text in UTF-16", "Convert it with: iconv -f UTF-16 -t UTF-8"),
    )
)  # fmt: skip


def is_packed(file: Path) -> bool:
    """Return whether a file is packed with gzip or zstd. Raises as `open_file` does."""
    with open_file(file) as stream:
        return stream.peek(4).startswith(GZIP) or bool(_ZSTD.match(stream.peek(4)))


@contextmanager
def opened(file: Path) -> Iterator[BinaryIO]:
    """Open a regular file of text for reading bytes; gzip and zstd are unpacked.

    Raises BadInput for a file that is no text, naming what it is, for a damaged file, also while it
    is read, and as `open_file` does.
    """
    with open_file(file) as stream, unpacked(stream, file) as content:
        yield content


@contextmanager
def unpacked(stream: io.BufferedReader, file: Path) -> Iterator[BinaryIO]:
    """Yield the content of an open file, as `opened` does."""
    beginning = stream.peek(_PEEKED)
    how = "gzip" if beginning.startswith(GZIP) else "zstd" if _ZSTD.match(beginning) else ""
    try:
        if how == "gzip":
            stream = io.BufferedReader(gzip.GzipFile(fileobj=stream))
        elif how == "zstd":
            import pyarrow

            stream = io.BufferedReader(pyarrow.CompressedInputStream(stream, how))
        problem = other_than_text(stream.peek(_PEEKED))
        if problem is not None:
            raise BadInput(f"{file} is {problem}")
        yield cast("BinaryIO", stream)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise BadInput(f"{file}: damaged gzip file: {error}") from None
    except OSError as error:
        if how != "zstd" or error.errno is not None:
            raise
        raise BadInput(f"{file}: damaged zstd file: {error}") from None


def other_than_text(beginning: bytes) -> str | None:
    """Return what a file is that begins so, and what to do, in words; None if it may be text."""
    for pattern, kind, advice in _OTHERS:
        if pattern.match(beginning):
            return f"{kind}, not UTF-8 text. {advice}"
    # Of Latin letters in UTF-16, each second byte is zero.
    zeros = sorted(beginning[at:_PEEKED:2].count(b"\0") for at in (0, 1))
    if len(beginning) >= 16 and 8 * zeros[0] < zeros[1] > len(beginning[:_PEEKED]) // 4:
        return (
            "text in UTF-16, or no text: each second byte is zero. Convert text with: "
            "iconv -f UTF-16LE -t UTF-8"
        )
    return None
