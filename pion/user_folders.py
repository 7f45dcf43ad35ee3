"""Folders of this user: the home folder, and private folders in the cache."""

from __future__ import annotations

import os
import pwd
import stat
from pathlib import Path

from pion.errors import BadInput

_FOLDER = 0o700


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
            missing.mkdir(_FOLDER, exist_ok=True)
        status = path.stat()  # of the target, if `path` is a link
        if status.st_uid != os.geteuid():
            raise BadInput(
                f"{path} belongs to {_user(status.st_uid)}, who could read or replace what Pion "
                "keeps there. Nothing was written. Set XDG_CACHE_HOME to a folder of your own."
            )
        if stat.S_IMODE(status.st_mode) != _FOLDER:
            path.chmod(_FOLDER)
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
