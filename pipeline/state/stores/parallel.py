"""Many small reads of a store at once: each is a round trip to a remote store."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

READERS = 16


def read_all(read: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """Return what `read` returns for each item, in their order, `READERS` at a time.

    Raises what `read` raised first. Reads that have not begun by then are left out: while a store
    is down, each would wait for its retries.
    """
    if min(READERS, len(items)) <= 1:
        return [read(item) for item in items]
    with ThreadPoolExecutor(min(READERS, len(items)), "read") as pool:
        try:
            return list(pool.map(read, items))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
