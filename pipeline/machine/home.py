"""Paths that may begin with `~` or `~NAME`."""

from __future__ import annotations

from pathlib import Path

from pion.errors import BadInput


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
