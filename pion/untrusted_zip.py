"""Open zip archives that others made: their directory is measured before it is read."""

from __future__ import annotations

import os
import struct
import zipfile
from pathlib import Path
from typing import BinaryIO

from pion.errors import BadInput
from pion.untrusted import LARGEST_RECORD

# What an archive raises that is damaged, or none.
DAMAGED = (zipfile.BadZipFile, struct.error, ValueError, EOFError, NotImplementedError)

# What follows the files of a zip archive: the directory, then these records. The last two are in
# large archives and in those of torch.
_END = struct.Struct("<4s4H2LH")
_LARGE_END = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_END_MARK, _LARGE_END_MARK, _LOCATOR_MARK = b"PK\5\6", b"PK\6\6", b"PK\6\7"


def open_archive(path: Path, file: BinaryIO, most_files: int) -> zipfile.ZipFile:
    """Return the archive in an open file; errors call it `path`.

    The archive has no comment, and nothing is between its directory and its end.

    Raises BadInput for a directory that is too large, and DAMAGED for anything else.
    """
    start, length, stop = _find_directory(file, os.fstat(file.fileno()).st_size)
    if start + length != stop:
        raise zipfile.BadZipFile
    if length > LARGEST_RECORD:
        raise BadInput(f"{path} has a directory of {length:,} bytes: too many files")
    archive = zipfile.ZipFile(file)
    count = len(archive.infolist())
    if count > most_files:
        raise BadInput(f"{path} has {count:,} files; at most {most_files:,} are read")
    return archive


def _find_directory(file: BinaryIO, size: int) -> tuple[int, int, int]:
    """Return where the archive's directory starts, how long it is, and where it must stop.

    `size` is the archive's, in bytes. The archive has no comment and nothing else after its
    directory. So all zip readers find the same directory. Raises BadZipFile or struct.error.
    """
    stop = size - _END.size
    mark, *_, length, start, comment = _END.unpack(_read(file, stop, _END.size))
    if mark != _END_MARK or comment:
        raise zipfile.BadZipFile
    where = stop - _LOCATOR.size
    if where >= 0:
        mark, _, large, _ = _LOCATOR.unpack(_read(file, where, _LOCATOR.size))
        if mark == _LOCATOR_MARK:
            if large != where - _LARGE_END.size:
                raise zipfile.BadZipFile
            mark, *_, length, start = _LARGE_END.unpack(_read(file, large, _LARGE_END.size))
            if mark != _LARGE_END_MARK:
                raise zipfile.BadZipFile
            stop = large
    return start, length, stop


def _read(file: BinaryIO, start: int, length: int) -> bytes:
    file.seek(max(start, 0))
    return file.read(length)
