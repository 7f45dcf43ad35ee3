"""Let one process of this machine at a time keep a rental going, or submit one."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Callable, Iterator

from pipeline.machine.folders import open_private, private_cache_folder


@contextlib.contextmanager
def rental_lock(name: str, purpose: str = "watch") -> Iterator[Callable[[], bool]]:
    """Yield a function that tries to lock the rental `name` for `purpose`, until the block ends.

    The function returns False while another process of this machine holds the lock. Call it again
    to try again. Raises BadInput if the lock's folder can't be made for this user alone.
    """
    path = private_cache_folder() / f"{purpose}-{name}.lock"
    with open(path, "ab", opener=open_private) as file:

        def try_lock() -> bool:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

        yield try_lock
