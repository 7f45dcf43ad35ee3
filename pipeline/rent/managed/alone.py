"""One process of this machine at a time: to keep a rental going, to submit one."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Callable, Iterator

from pion.errors import BadInput
from pipeline.state.workspace import default_root


@contextlib.contextmanager
def alone(name: str, to: str = "watch") -> Iterator[Callable[[], bool]]:
    """What tells whether no other process of this machine does that with the rental `name`.

    Once it has said so none will, until the block ends.
    """
    path = default_root().parent / f"{to}-{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:

        def nobody_else() -> bool:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

        yield nobody_else


@contextlib.contextmanager
def submitting_alone(name: str) -> Iterator[None]:
    """Raises BadInput if `name` is being submitted by another process of this machine: both would
    find no job yet, and each rent a machine."""
    with alone(name, "submit") as nobody_else:
        if not nobody_else():
            raise BadInput(
                f"{name} is being submitted by another process here, so nothing was rented. See "
                "in a minute: pion rentals"
            )
        yield
