"""What keeps the Ray of one `pion run` to itself: loopback, a random token, a private folder."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Mapping
from pathlib import Path

from pion.errors import BadInput

LOOPBACK = "127.0.0.1"
# Ray gives everybody all rights to its own folder. So this folder is in one that stays private. The
# name is short because of LONGEST_SOCKET.
RAY_FOLDER = "r"

# The most bytes in the path of a Unix socket.
LONGEST_SOCKET = 107
# What Ray's longest path of a socket has after the temporary folder.
_SOCKET_BELOW = (
    f"/pion-ray-12345678/{RAY_FOLDER}"
    "/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
)


def session_folder() -> Path:
    """Make a folder that only this user can enter, with a path short enough for Ray's sockets.

    Raises BadInput if there is no place for this folder.
    """
    parent = tempfile.gettempdir()
    if len(os.fsencode(parent + _SOCKET_BELOW)) > LONGEST_SOCKET:
        parent = "/tmp"
    try:
        return Path(tempfile.mkdtemp(prefix="pion-ray-", dir=parent))
    except OSError as error:
        longest = LONGEST_SOCKET - len(_SOCKET_BELOW)
        raise BadInput(
            f"Ray needs a temporary folder for its sockets, and {parent} can't be written ({error})"
            f". Nothing was trained. Set TMPDIR to a folder that you can write to, with a path of "
            f"at most {longest} bytes, or train without Ray: hardware.workers=0"
        ) from None


def private_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return `environment` for a new Ray that listens on loopback, and asks for a new random token.

    Overrides what `environment` says about tokens, such as RAY_AUTH_MODE=disabled.
    """
    kept = {name: value for name, value in environment.items() if name != "RAY_AUTH_TOKEN_PATH"}
    return kept | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        # Without this, Ray on Linux replaces 127.0.0.1 by the machine's address on its network.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        # Ray's monitor would publish numbers to everybody. It continues if it can't open the port.
        "AUTOSCALER_METRIC_PORT": "-1",
    }
