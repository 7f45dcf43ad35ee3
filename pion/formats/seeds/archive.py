"""Check a `.pt` file before torch reads it: the archive's sizes, and what its pickle asks for.

torch.save writes a zip archive in which nothing is compressed. A pickle in it refers to the
tensors, which are files of the archive.
"""

from __future__ import annotations

import os
import pickletools
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from pion.errors import BadInput
from pion.later_fields import shown
from pion.untrusted import LARGEST_RECORD, open_file

# The most tensors that an archive may have, and the most bytes of its pickle. A tensor takes 300.
MOST_FILES, LARGEST_PICKLE = 1 << 15, 4 << 20

# What a pickle may ask for, besides the stand-ins for config classes (read.py). torch allows more,
# such as a bytearray of any size, or tensors without any data.
PLAIN = frozenset(
    (
        "collections.OrderedDict",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_parameter",
        "torch.Size",
        "torch.device",
        *(f"torch.{kind}Storage" for kind in ("Double", "Float", "Half", "BFloat16")),
        *(f"torch.{kind}Storage" for kind in ("Long", "Int", "Short", "Char", "Byte", "Bool")),
        *(f"torch.{kind}" for kind in ("float64", "float32", "float16", "bfloat16", "int64")),
    )
)

# What follows the files of a zip archive: the directory, then these records. The last two are in
# large archives and in those of torch.
_END = struct.Struct("<4s4H2LH")
_LARGE_END = struct.Struct("<4sQ2H2L4Q")
_LOCATOR = struct.Struct("<4sLQL")
_END_MARK, _LARGE_END_MARK, _LOCATOR_MARK = b"PK\5\6", b"PK\6\6", b"PK\6\7"
# A pickle begins with this byte, and older versions of PyTorch wrote only pickles.
_PICKLE = b"\x80"


class Forbidden(Exception):
    """A pickle asks for something else than tensors and plain values; the message is its name."""


@dataclass(frozen=True)
class _Directory:
    start: int
    size: int
    stop: int


def check_archive(path: Path, stand_ins: frozenset[str]) -> int:
    """Return the size of a `.pt` file in bytes, once torch can read it safely.

    Nothing in it is compressed, its files take no more bytes than it has, and its pickle asks only
    for tensors, plain values and the classes in `stand_ins`.

    Raises Forbidden for a pickle that asks for more, BadInput for any other file, and OSError.
    """
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if file.read(1) == _PICKLE:
            raise BadInput(
                f"{path} was saved by a PyTorch before 1.6. Pion does not read this format. If you "
                "trust the file, load it in Python and save it again with torch.save"
            )
        try:
            _check_files(path, file, size, stand_ins)
        except (zipfile.BadZipFile, struct.error, ValueError, EOFError, NotImplementedError):
            raise BadInput(f"{path} is not a PyTorch checkpoint, or is damaged") from None
    return size


def _check_files(path: Path, file: BinaryIO, size: int, stand_ins: frozenset[str]) -> None:
    directory = _directory(file, size)
    if directory.start + directory.size != directory.stop:
        raise zipfile.BadZipFile
    if directory.size > LARGEST_RECORD:
        raise BadInput(f"{path} has a directory of {directory.size:,} bytes: too many files")
    with zipfile.ZipFile(file) as archive:
        files = archive.infolist()
        if len(files) > MOST_FILES:
            raise BadInput(f"{path} has {len(files):,} files; at most {MOST_FILES:,} are read")
        packed = next(
            (entry for entry in files if entry.compress_type or entry.flag_bits & 1), None
        )
        if packed is not None:
            raise BadInput(
                f"{path}: {shown(packed.filename)} in it is compressed or encrypted. torch.save "
                "does not do that"
            )
        if sum(max(entry.file_size, entry.compress_size) for entry in files) > size:
            raise BadInput(f"{path}: the files in it claim more bytes than the {size:,} it has")
        for entry in files:
            if entry.filename.endswith("data.pkl"):
                if entry.file_size > LARGEST_PICKLE:
                    raise BadInput(f"{path}: its pickle has more than {LARGEST_PICKLE:,} bytes")
                _check_pickle(archive.read(entry), PLAIN | stand_ins)


def _directory(file: BinaryIO, size: int) -> _Directory:
    """Return where the archive's directory is, without a comment or anything else after it.

    So Python's zip reader and torch's find the same directory. Raises BadZipFile or struct.error.
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
    return _Directory(start, length, stop)


def _read(file: BinaryIO, start: int, length: int) -> bytes:
    file.seek(max(start, 0))
    return file.read(length)


def _check_pickle(data: bytes, allowed: frozenset[str]) -> None:
    """Raise Forbidden for a name that is not allowed, and ValueError for what is no pickle."""
    for code, argument, _ in pickletools.genops(data):
        if code.name == "GLOBAL":
            name = str(argument).replace(" ", ".", 1)
            if name not in allowed:
                raise Forbidden(name)
        elif code.name in ("INST", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4"):
            raise Forbidden(f"a name by {code.name}")
