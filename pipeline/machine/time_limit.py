"""Wait for work that may take forever: a store that is down, a catalog download, endless text."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar, cast

Result = TypeVar("Result")
_Outcome = tuple[Result | None, BaseException | None]

# How often to look whether somebody wants to stop, while a thread works.
LOOK_SECONDS = 0.5
_THREAD = "work that may take forever"


def within(seconds: float, work: Callable[[], Result]) -> Result:
    """Return what `work` returns. Raises TimeoutError if it takes longer; `work` then keeps
    running."""
    return begin(work)(seconds)


def attended(work: Callable[[], Result], look: Callable[[], None]) -> Result:
    """Return what `work` returns, and call `look` every LOOK_SECONDS until then. If `look` raises,
    `work` keeps running."""
    outcome = _started(work)
    while True:
        with contextlib.suppress(queue.Empty):
            return _result(*outcome.get(timeout=LOOK_SECONDS))
        look()


def attended_items(items: Iterator[Result], look: Callable[[], None]) -> Iterator[Result]:
    """Yield the items, none of which is None; `look` as in `attended`."""
    while (item := attended(partial(next, items, None), look)) is not None:
        yield item


def left_behind() -> bool:
    """Return whether any such work is still running."""
    return any(thread.name == _THREAD for thread in threading.enumerate())


def begin(work: Callable[[], Result]) -> Callable[[float], Result]:
    """Start `work` in another thread. Return a function that waits that many seconds for its
    result, and raises its exception, or TimeoutError."""
    outcome = _started(work)

    def wait(seconds: float) -> Result:
        try:
            result, error = outcome.get(timeout=max(0.0, seconds))
        except queue.Empty:
            raise TimeoutError(f"no answer within {seconds:.0f} s") from None
        return _result(result, error)

    return wait


def _started(work: Callable[[], Result]) -> queue.SimpleQueue[_Outcome[Result]]:
    outcome: queue.SimpleQueue[_Outcome[Result]] = queue.SimpleQueue()

    def run() -> None:
        try:
            outcome.put((work(), None))
        except BaseException as error:  # raised again in the thread that waits
            outcome.put((None, error))

    threading.Thread(target=run, name=_THREAD, daemon=True).start()
    return outcome


def _result(result: Result | None, error: BaseException | None) -> Result:
    if error is not None:
        raise error
    return cast(Result, result)
