"""Who wrote a record: a user and a process on a machine."""

from __future__ import annotations

import contextlib
import getpass
import os
import socket
from dataclasses import dataclass

from pipeline.console.formats import printable
from pipeline.state.record_json import Count


@dataclass(frozen=True)
class Author:
    """A process of `user` on `host`."""

    host: str
    pid: Count
    user: str

    @classmethod
    def me(cls) -> Author:
        """Return this process."""
        return cls(socket.gethostname(), os.getpid(), user_name())

    def describe(self) -> str:
        """Return `ann on host-a`."""
        return printable(f"{self.user} on {self.host}")


def user_name() -> str:
    """Return the name of this user. In a container, the user may be a number without a name."""
    with contextlib.suppress(KeyError, OSError, ImportError):
        return getpass.getuser()
    return f"user {os.getuid()}"
