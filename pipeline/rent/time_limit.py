"""Work that may take forever (a store that is down, a catalog to fetch), waited for so long."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import TypeVar, cast

Result = TypeVar("Result")

_THREAD = "work that may take forever"


def within(seconds: float, work: Callable[[], Result]) -> Result:
    """What `work` returns; TimeoutError if it takes longer. It is left behind then, not
    ended."""
    return begin(work)(seconds)


def left_behind() -> bool:
    """Whether such work still goes on."""
    return any(thread.name == _THREAD for thread in threading.enumerate())


def begin(work: Callable[[], Result]) -> Callable[[float], Result]:
    """Start `work` beside this thread. Returns a function that waits some seconds for what it
    returns or raises, and raises TimeoutError after them."""
    outcome: queue.SimpleQueue[tuple[Result | None, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            outcome.put((work(), None))
        except BaseException as error:  # raised again where it was asked for
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
