"""Write files whole or not at all, hash them, and make folders of this user alone."""

import contextlib
import hashlib
import os
import pwd
import re
import stat
from pathlib import Path

from pion.errors import BadInput, no_room
from pion.untrusted import open_file

_PRIVATE = 0o700


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


# ---------------------------------------------------------------- folders of this user


def expand(path: str | Path) -> Path:
    """Return the path with the home folder in place of a leading `~`.

    Raises BadInput if there is no such user, or if this user has no home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError:
        user = Path(path).parts[0]
        raise BadInput(
            f"{path}: this machine knows no home folder for {user}. Write the whole path"
            + (", or set HOME." if user == "~" else ".")
        ) from None


def cache_folder() -> Path:
    """Return the folder for what this machine keeps outside stores. It may not exist yet."""
    return expand(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "pion"


def private_cache_folder(name: str = "") -> Path:
    """Return the folder `name` in `cache_folder()`, made for this user alone.

    Raises BadInput as `private_folder` does.
    """
    cache = private_folder(cache_folder())
    return private_folder(cache / name) if name else cache


def private_folder(path: Path) -> Path:
    """Make the folder `path`, and its missing parents, for this user alone; return `path`.

    An existing folder loses the permissions of group and others. Raises BadInput if another user
    owns the folder, and if the folder can't be made.
    """
    try:
        for missing in reversed([p for p in (path, *path.parents) if not p.exists()]):
            missing.mkdir(_PRIVATE, exist_ok=True)
        status = path.stat()  # of the target, if `path` is a link
        if status.st_uid != os.geteuid():
            raise BadInput(
                f"{path} belongs to {_user(status.st_uid)}, who could read or replace what Pion "
                "keeps there. Nothing was written. Set XDG_CACHE_HOME to a folder of your own."
            )
        if stat.S_IMODE(status.st_mode) != _PRIVATE:
            path.chmod(_PRIVATE)
    except OSError as error:
        raise BadInput(
            f"{path}: this folder can't be made for you alone ({error.strerror or error}). Nothing "
            "was written. Set XDG_CACHE_HOME to a folder that you can write."
        ) from None
    return path


def _user(number: int) -> str:
    try:
        return f"the user {pwd.getpwuid(number).pw_name}"
    except KeyError:
        return f"user {number}"
