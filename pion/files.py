"""Write files whole or not at all, and hash them."""

import contextlib
import hashlib
import os
import re
from pathlib import Path

from pion.errors import BadInput, no_room
from pion.untrusted import open_file


def sha256_file(path: str | Path) -> str:
    """Return the hex digest of a file's content. Raises as `open_file` does."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_sha256(text: str) -> bool:
    """Return whether `text` is 64 hexadecimal digits."""
    return re.fullmatch(r"[0-9a-f]{64}", text) is not None


def write_atomically(path: Path, *chunks: bytes | memoryview) -> None:
    """Write a file whole or not at all.

    Raises:
        BadInput: the disk is full or the folder can't be written; nothing is left behind.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.writelines(chunks)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # makes the rename durable
        finally:
            os.close(folder)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise unwritable(path, error) from None


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, unless they are there.

    Raises:
        BadInput: the disk is full, or the folder can't be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from None


def unwritable(path: Path, error: OSError) -> BadInput:
    """Return the error for a file that can't be written: what is safe, and what to do."""
    full = no_room(error, path)
    if full is not None:
        return BadInput(
            f"{path}: {full}. Everything finished before it is safe and will be used: "
            f"free some space and run the same command again."
        )
    return BadInput(
        f"{path}: can't be written ({error.strerror}). Everything finished before it is safe: "
        f"make the path writable and run the same command again."
    )
