"""Wait for work that may take forever: a store that is down, a catalog download, endless text."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from functools import partial
from typing import TypeVar

from pion.errors import PionError
from pipeline.machine.core_waits import slowness

Result = TypeVar("Result")

# How often to look whether somebody wants to stop, while a thread works.
LOOK_SECONDS = 0.5
# What the name of a thread contains that does such work. The process does not wait for its end.
FOREVER = "work that may take forever"


def within(seconds: float, work: Callable[[], Result]) -> Result:
    """Return what `work` returns. Raises TimeoutError if it takes longer; `work` then keeps
    running. On a busy machine, the seconds are as much longer as this process is slower."""
    began = time.monotonic()
    return begin(work)(lambda: began + seconds * slowness() - time.monotonic())


def within_or(otherwise: Result, seconds: float, work: Callable[[], Result]) -> Result:
    """Return what `work` returns, or `otherwise` if it raises a PionError or takes longer."""
    try:
        return within(seconds, work)
    except (PionError, TimeoutError):
        return otherwise


def attended(work: Callable[[], Result], look: Callable[[], None]) -> Result:
    """Return what `work` returns, and call `look` every LOOK_SECONDS until then. If `look` raises,
    `work` keeps running."""
    future = _started(work)
    while not wait([future], LOOK_SECONDS).done:
        look()
    return future.result()


def attended_items(items: Iterator[Result], look: Callable[[], None]) -> Iterator[Result]:
    """Yield the items, none of which is None; `look` as in `attended`."""
    while (item := attended(partial(next, items, None), look)) is not None:
        yield item


def begin(work: Callable[[], Result]) -> Callable[[Callable[[], float]], Result]:
    """Start `work` in another thread. Return a function that waits for its result while there are
    seconds left by the function that it is given. It raises the exception of the work, or
    TimeoutError."""
    future = _started(work)

    def result(seconds_left: Callable[[], float]) -> Result:
        while not wait([future], max(0.0, seconds_left())).done:
            if seconds_left() <= 0:
                raise TimeoutError("no answer in time")
        return future.result()

    return result


def _started(work: Callable[[], Result]) -> Future[Result]:
    # An executor would wait for its threads when the process ends.
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # raised again in the thread that waits
            future.set_exception(error)

    threading.Thread(target=run, name=FOREVER, daemon=True).start()
    return future
