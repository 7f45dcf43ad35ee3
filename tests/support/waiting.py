"""Wait until something is so, and say what was waited for if it never is."""

from __future__ import annotations

import time
from collections.abc import Callable

# Far above what anything takes on a busy machine of two cores.
PATIENCE_SECONDS = 60.0


def wait_until(
    condition: Callable[[], object],
    what: str | Callable[[], str],
    *,
    seconds: float = PATIENCE_SECONDS,
    every: float = 0.02,
) -> None:
    """Ask `condition` until it holds; fail after `seconds`, saying `what` was waited for.

    `what` may be a function, asked when it is too late, such as one that reads a log.
    """
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() >= end:
            words = what() if callable(what) else what
            raise AssertionError(f"waited {seconds:g} s for this, and it never came: {words}")
        time.sleep(every)
