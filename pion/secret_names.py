"""Which variables of the environment hold secrets, by their names."""

from __future__ import annotations

import os
from collections.abc import Mapping

_SECRET_WORDS = {"SECRET", "PASSWORD", "PASSWD", "PASSPHRASE", "APIKEY"}
_SECRET_ENDINGS = {"TOKEN", "KEY", "PAT"}


def names_secret(name: str) -> bool:
    """Return whether a variable of this name holds a secret: HF_TOKEN, but not HF_TOKEN_PATH."""
    words = name.upper().split("_")
    return words[-1] in _SECRET_ENDINGS or (
        not _SECRET_WORDS.isdisjoint(words) and words[-1] not in ("FILE", "PATH", "ID", "NAME")
    )


def without_secret_names(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment for a child process that needs no secret."""
    return {name: value for name, value in environment.items() if not names_secret(name)}
