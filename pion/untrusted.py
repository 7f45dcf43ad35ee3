"""Read files that others may have written: a bounded number of bytes, and JSON without surprises.

Stores, Hub repositories, folders with models and data can hold anything. What is read here fails
as BadInput with the file named, and never hangs, fills the memory or ends in a traceback.
"""

from __future__ import annotations

import json
import math
import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Sequence
from io import BufferedReader
from pathlib import Path, PosixPath
from typing import Any

from pion.errors import BadInput

# The most bytes of a HEAD, manifest, config or other record; of a tokenizer; of a job file.
LARGEST_RECORD = 16 << 20
LARGEST_TOKENIZER = 128 << 20
LARGEST_JOB = 1 << 20
# Of the list of a data set's shards: enough for a million.
LARGEST_LISTING = 512 << 20
# How deep objects and lists may be nested.
DEEPEST = 64
# How many digits a whole number may have, so that it can also become a float.
_MOST_DIGITS = 300
# How much of a file is read at once.
_PART_BYTES = 1 << 20


class FarFile(PosixPath, ABC):
    """A file or a folder that is on no disk: where it is, and how it is found and read."""

    @abstractmethod
    def open_bytes(self) -> BufferedReader:
        """Return the file, open for reading bytes."""

    @abstractmethod
    def named(self, suffixes: tuple[str, ...]) -> tuple[Sequence[Path], str]:
        """Return the files that this file, folder or glob names, those of a folder by their
        `suffixes`, and why there are none, in words."""


def open_file(path: str | Path) -> BufferedReader:
    """Return a regular file, open for reading bytes.

    Raises BadInput for anything else that is there (a folder, a pipe, a device), and OSError,
    FileNotFoundError among them, where the file can't be opened.
    """
    if isinstance(path, FarFile):
        return path.open_bytes()
    # Without O_NONBLOCK, opening a pipe that nobody writes to would wait forever.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BadInput(f"{path} is not a regular file, so it was not read")
    return open(descriptor, "rb")


def read_file(path: str | Path, limit: int = LARGEST_RECORD) -> bytes:
    """Return the content of a regular file with at most `limit` bytes.

    Raises BadInput for a larger file and as `open_file` does, and OSError where the file can't be
    read.
    """
    parts, left = [], limit + 1
    with open_file(path) as file:
        # In parts: a read allocates what it is asked for, however small the file is.
        while part := file.read(min(left, _PART_BYTES)):
            parts.append(part)
            left -= len(part)
    if not left:
        raise too_large(str(path), limit)
    return b"".join(parts)


def read_json(path: str | Path, limit: int = LARGEST_RECORD) -> Any:
    """Return the JSON in a file. Raises as `read_file` and `parse_json` do."""
    return parse_json(read_file(path, limit), str(path))


def parse_json(data: bytes | str, where: str, *, strict: bool = True) -> Any:
    """Return the JSON value in `data`: UTF-8, finite numbers, at most 64 levels, whole characters,
    and one value for each key of an object.

    With `strict=False`, for data sets, numbers may be NaN or infinite, and texts may have half
    characters. Raises BadInput that names `where`.
    """
    try:
        text = data if isinstance(data, str) else data.decode()
        if text.startswith("\ufeff"):
            raise ValueError("it starts with a byte order mark: save it as UTF-8 without the mark")
        value = _STRICT.decode(text) if strict else _LINES.decode(text)
        surrogates = strict and ("\\ud" in text or "\\uD" in text)
        # With so few brackets, nothing can be too deep.
        if surrogates or text.count("[") + text.count("{") > DEEPEST:
            _check(value, surrogates)
    except RecursionError:
        raise BadInput(f"{where} is not valid JSON ({_TOO_DEEP})") from None
    except ValueError as error:  # also: not UTF-8, and a whole number of more than 4,300 digits
        raise BadInput(f"{where} is not valid JSON ({_reason(error)})") from None
    return value


def parse_object(data: bytes | str, where: str) -> dict[str, Any]:
    """Return the JSON object in `data`. Raises BadInput that names `where`; see `parse_json`."""
    value = parse_json(data, where)
    if not isinstance(value, dict):
        raise BadInput(f"{where} should be a JSON object, but is a {type(value).__name__}")
    return value


def too_large(where: str, limit: int) -> BadInput:
    """Return the error for a file of more than `limit` bytes."""
    return BadInput(f"{where} has more than {limit:,} bytes, so it was not read")


_TOO_DEEP = f"nested deeper than {DEEPEST} levels"


def _reason(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError) and error.lineno == 1:  # perhaps a line of a file
        return f"{error.msg.removesuffix(' at')} at column {error.colno}"
    return str(error).partition(";")[0]  # the rest is advice for programmers


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object. Raises ValueError for two values of a key; the same value twice is read."""
    found = dict(pairs)
    if len(found) < len(pairs):
        for name, value in pairs:
            if value != found[name]:
                raise ValueError(f"the key {name[:80]!r} is given twice, with different values")
    return found


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text[:40]} is too large for a number")
    return number


def _whole(text: str) -> int:
    if len(text) > _MOST_DIGITS:  # more than any float has
        raise ValueError(f"{text[:40]}… is too large for a number")
    return int(text)


# Made once: to make a decoder takes as long as to read a short line.
_LINES = json.JSONDecoder(object_pairs_hook=_unique)
_STRICT = json.JSONDecoder(
    object_pairs_hook=_unique,
    parse_float=_finite,
    parse_int=_whole,
    parse_constant=_refuse_constant,
)


def _check(value: Any, surrogates: bool) -> None:
    """Raise ValueError for values below DEEPEST levels and, if asked, for half characters."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > DEEPEST:
            raise ValueError(_TOO_DEEP)
        if surrogates:
            texts = [item for item in level if isinstance(item, str)]
            texts += [key for item in level if isinstance(item, dict) for key in item]
            for text in texts:
                if not text.isascii():
                    text.encode()  # UnicodeEncodeError is a ValueError
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
