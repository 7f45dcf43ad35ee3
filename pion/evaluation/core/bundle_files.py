"""Read the files of a bundle, which is a folder or a zip archive that others made.

Nothing is unpacked to the disk. Links that leave the folder, names that leave the archive, and more
bytes than LARGEST_BUNDLE are refused.
"""

from __future__ import annotations

import hashlib
import os
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from pion.errors import BadInput
from pion.later_fields import shown
from pion.untrusted import open_file, read_file, too_large
from pion.untrusted_zip import DAMAGED, open_archive

# Bytes of a file, and of all files that are read. The files of CORE have far fewer.
LARGEST_BUNDLE = 1 << 30
MOST_FILES = 10_000
# The published archive has its files in a folder of this name.
TOP = "eval_bundle"
CONFIG = "core.yaml"

# Returns the bytes of a file by its name, at most so many.
Fetch = Callable[[str, int], bytes]


class BundleFiles:
    """The files of an open bundle. They are read by name, such as `eval_data/a.jsonl`."""

    def __init__(self, path: Path, fetch: Fetch) -> None:
        self.path = path
        self._fetch = fetch
        self._left = LARGEST_BUNDLE
        self._digests: dict[str, str] = {}

    def where(self, name: str) -> Path:
        """Return what messages call a file of the bundle."""
        return self.path / name

    def read(self, name: str, limit: int = LARGEST_BUNDLE) -> bytes:
        """Return the bytes of a file. Raises BadInput for a file that is missing, has more than
        `limit` bytes, or that the bundle may not contain."""
        if not is_plain(name):
            raise BadInput(f"{self.path}: the file name {shown(name)} leaves the bundle")
        content = self._fetch(name, limit)
        self._left -= len(content)
        if self._left < 0:
            raise too_large(f"the bundle {self.path}", LARGEST_BUNDLE)
        self._digests[name] = hashlib.sha256(content).hexdigest()
        return content

    def digest(self) -> str:
        """Return the sha256 of the names and contents of all files that were read."""
        lines = (f"{name} {digest}\n" for name, digest in sorted(self._digests.items()))
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def is_plain(name: str) -> bool:
    """Return whether a name is relative, and stays below the folder that it is relative to."""
    parts = name.split("/")
    odd = "\\" in name or ":" in parts[0] or not name.isprintable()
    return not odd and not any(part in ("", ".", "..") for part in parts)


@contextmanager
def open_bundle(path: Path) -> Iterator[BundleFiles]:
    """Open a bundle: a folder or zip archive with core.yaml, or with eval_bundle/core.yaml.

    Raises BadInput for anything else, and for an archive with more than MOST_FILES files, with
    links, encrypted files, or names that leave the archive.
    """
    if path.is_dir():
        inner = path / TOP
        yield BundleFiles(path, _from_folder(inner if (inner / CONFIG).is_file() else path))
        return
    try:
        with open_file(path) as file, _opened(path, file) as archive:
            yield BundleFiles(path, _from_archive(path, archive))
    except OSError as error:
        raise BadInput(f"{path}: can't read this bundle of CORE ({error.strerror})") from None


def _from_folder(folder: Path) -> Fetch:
    def fetch(name: str, limit: int) -> bytes:
        path = folder / name
        # Path.resolve() ends in a traceback if links go round in a circle.
        if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
            raise BadInput(f"{path} is a link out of the bundle, so it was not read")
        try:
            return read_file(path, limit)
        except OSError as error:
            raise _missing(folder, name, error.strerror) from None

    return fetch


def _from_archive(path: Path, archive: zipfile.ZipFile) -> Fetch:
    entries = _entries(path, archive)
    top = f"{TOP}/" if f"{TOP}/{CONFIG}" in entries else ""

    def fetch(name: str, limit: int) -> bytes:
        entry = entries.get(top + name)
        if entry is None:
            raise _missing(path, name, "no such file")
        if entry.file_size > limit:
            raise too_large(f"{path}: {name}", limit)
        try:
            with archive.open(entry) as file:
                return file.read(limit)
        except (*DAMAGED, zlib.error) as error:
            raise BadInput(f"{path}: {name} is damaged ({error}). Download it again") from None

    return fetch


def _opened(path: Path, file: BinaryIO) -> zipfile.ZipFile:
    """Return the archive, once its directory is known to be small. Raises BadInput."""
    problem = (
        "is neither a folder nor a zip archive, or is damaged, or has a comment. If it is an "
        "archive, unpack it and name the folder"
    )
    try:
        return open_archive(path, file, MOST_FILES)
    except DAMAGED:
        raise BadInput(f"{path} {problem}") from None


def _entries(path: Path, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Return the archive's files by name. Raises BadInput for what no honest archive contains."""
    found: dict[str, zipfile.ZipInfo] = {}
    for entry in archive.infolist():
        problem = _problem(entry, again=entry.filename in found)
        if problem is not None:
            raise BadInput(f"{path}: {shown(entry.filename)} in it {problem}, so it was not read")
        if not entry.is_dir():
            found[entry.filename] = entry
    return found


def _problem(entry: zipfile.ZipInfo, *, again: bool) -> str | None:
    if not is_plain(entry.filename.removesuffix("/")):
        return "leaves the archive"
    if again:
        return "is there twice"
    if stat.S_ISLNK(entry.external_attr >> 16):
        return "is a link"
    if entry.flag_bits & 1:
        return "is encrypted"
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "is compressed in an unusual way"
    return None


def _missing(bundle: Path, name: str, why: str | None) -> BadInput:
    return BadInput(
        f"{bundle}: can't read {name} of this bundle ({why}). A bundle of CORE has {CONFIG}, "
        "eval_meta_data.csv and the folder eval_data"
    )
