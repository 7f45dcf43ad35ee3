"""One process of this machine at a time: to keep a rental going, to submit one."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Callable, Iterator

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
