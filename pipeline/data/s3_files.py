"""Files of data in a bucket: listed with their versions, and read in ranges.

Nothing of them is kept on the disk. An object that is not the listed one any more is not read.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import hashlib
import io
import itertools
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from pion.errors import BadInput, Interrupted
from pion.untrusted import FarFile
from pipeline.state.stores import Conflict, Missing, StoreError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer
    from types_boto3_s3 import S3Client

    from pipeline.state.stores.s3.bucket import Bucket

SCHEME = "s3://"
# What the first request brings, how many times more each further one, and the most.
FIRST_BYTES, MORE, MOST_BYTES = 1 << 18, 4, 1 << 22


class S3File(FarFile):
    """An object of a bucket, by the address `s3://bucket/key`; or a folder of objects, or a glob.

    `size` is in bytes, and -1 of a folder or a glob. `etag` is the version.
    """

    size: int = -1
    etag: str = ""

    @classmethod
    def of(cls, address: str, size: int = -1, etag: str = "") -> S3File:
        """Return the file at an address. Raises BadInput for an address that is no path."""
        file = cls("s3:", address.removeprefix(SCHEME))
        if str(file) != address:
            raise BadInput(f"{address}: a part of this name is empty or `.`, so it was not read")
        file.size, file.etag = size, etag
        return file

    def __reduce__(self) -> tuple[Any, ...]:
        return S3File.of, (str(self), self.size, self.etag)

    def __str__(self) -> str:
        is_whole = self.parts[:1] == ("s3:",)
        return SCHEME + "/".join(self.parts[1:]) if is_whole else "/".join(self.parts)

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """Return the size, and the version as the time of the last change."""
        changed = int(hashlib.sha256(self.etag.encode()).hexdigest()[:15], 16)
        return os.stat_result((0,) * 6 + (self.size, 0, 0, 0), {"st_mtime_ns": changed})

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        return self.size >= 0

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        return self.size < 0 and not glob.has_magic(str(self))

    def resolve(self, strict: bool = False) -> S3File:
        return self

    def open_bytes(self) -> io.BufferedReader:
        return io.BufferedReader(_Ranges(self), MOST_BYTES)

    def named(self, suffixes: tuple[str, ...]) -> tuple[Sequence[S3File], str]:
        """See `FarFile`. Raises BadInput if the bucket can't be listed, and Interrupted if its
        service is down."""
        here = str(self)
        bucket, prefix = _bucket_and_key(re.split(r"[*?[]", here, maxsplit=1)[0])

        def read(page: Mapping[str, Any]) -> list[tuple[str, int, str]]:
            listed = page.get("Contents", [])
            return [
                (f"{bucket.url}/{listing['Key']}", listing["Size"], listing["ETag"])
                for listing in listed
            ]

        with _explained():
            every = itertools.chain.from_iterable(bucket.pages(prefix, read))
            # Consoles mark folders with empty objects.
            objects = {each[0]: each for each in every if not each[0].endswith("/")}
        if here in objects:
            names = [here]
        elif self.is_dir():
            below = [name for name in objects if name.startswith(f"{here}/")]
            names = [name for name in below if name.endswith(suffixes)]
        else:
            pattern = here.split("/")
            names = [name for name in objects if _matches(name.split("/"), pattern)]
        problem = f"no object with data of this kind is {here} or below it, "
        problem += (
            f"but {len(objects):,} others begin so, such as {min(objects)}"
            if objects
            else "and no other begins so"
        )
        return [S3File.of(*objects[name]) for name in names], problem

    def read_range(self, start: int, stop: int) -> bytes:
        """Return the bytes from `start` up to `stop`.

        Raises BadInput if the object is not the listed one any more, or can't be read, and
        Interrupted if its service is down.
        """
        bucket, key = _bucket_and_key(str(self))

        def get(client: S3Client) -> bytes:
            *_, body = bucket.open_range(client, key, start, stop, IfMatch=self.etag)
            with contextlib.closing(body):
                content: bytes = body.read()
            return content

        try:
            with _explained():
                return bucket.request("read", key, get)
        except (Conflict, Missing):
            raise BadInput(
                f"{self} was changed or deleted while it was read. Nothing was trained. Wait until "
                "the objects are complete, then run the same command again"
            ) from None


class _Ranges(io.RawIOBase):
    """An object as a file that is read by requests, which bring more and more while they follow
    each other: often, only the beginning is wanted."""

    def __init__(self, file: S3File) -> None:
        self._file, self._at, self._most = file, 0, FIRST_BYTES

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at}.get(whence, self._file.size)
        if at != self._at:
            self._at, self._most = at, FIRST_BYTES
        return at

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        stop = min(self._at + min(len(view), self._most), self._file.size)
        if stop <= self._at:
            return 0
        content = self._file.read_range(self._at, stop)
        view[: len(content)] = content
        self._at, self._most = stop, self._most * MORE
        return len(content)


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """Raise BadInput for what a person must fix, and Interrupted for what passes."""
    try:
        yield
    except StoreError as error:
        if not error.outage:
            raise BadInput(f"{error} Nothing was trained.") from None
        raise Interrupted(
            f"{error} What is prepared is kept. When the bucket can be reached again, run the same "
            "command again."
        ) from None


def _bucket_and_key(address: str) -> tuple[Bucket, str]:
    name, _, key = address.removeprefix(SCHEME).partition("/")
    return _bucket(name), key


@functools.cache
def _bucket(name: str) -> Bucket:
    """Return what talks to a bucket. Raises BadInput if no bucket can have that name."""
    from pipeline.state.stores.s3.bucket import Bucket, check_bucket
    from pipeline.state.stores.s3.errors import READING

    check_bucket(name, f"{SCHEME}{name}")
    return Bucket(name, "", time.sleep, READING)


def _matches(names: Sequence[str], pattern: Sequence[str]) -> bool:
    """Return whether the parts of a path match a glob, in which ** is any number of folders."""
    if not pattern or not names:
        return not names and all(part == "**" for part in pattern)
    if pattern[0] == "**":
        return _matches(names, pattern[1:]) or _matches(names[1:], pattern)
    return fnmatchcase(names[0], pattern[0]) and _matches(names[1:], pattern[1:])
