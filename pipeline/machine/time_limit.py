"""Wait a limited time for work that may take forever: a store that is down, a catalog download."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import TypeVar, cast

Result = TypeVar("Result")

_THREAD = "work that may take forever"


def within(seconds: float, work: Callable[[], Result]) -> Result:
    """Return what `work` returns. Raises TimeoutError if it takes longer; `work` then keeps
    running."""
    return begin(work)(seconds)


def left_behind() -> bool:
    """Return whether any such work is still running."""
    return any(thread.name == _THREAD for thread in threading.enumerate())


def begin(work: Callable[[], Result]) -> Callable[[float], Result]:
    """Start `work` in another thread. Return a function that waits that many seconds for its
    result, and raises its exception, or TimeoutError."""
    outcome: queue.SimpleQueue[tuple[Result | None, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            outcome.put((work(), None))
        except BaseException as error:  # raised again in the thread that waits
            outcome.put((None, error))

    def wait(seconds: float) -> Result:
        try:
            result, error = outcome.get(timeout=max(0.0, seconds))
        except queue.Empty:
            raise TimeoutError(f"no answer within {seconds:.0f} s") from None
        if error is not None:
            raise error
        return cast(Result, result)

    threading.Thread(target=run, name=_THREAD, daemon=True).start()
    return wait
