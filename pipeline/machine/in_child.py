"""Compute in a child process, so that what the work imports is not kept in memory here."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from pion.errors import PionError

T = TypeVar("T")

_lock = threading.Lock()
_child: ProcessPoolExecutor | None = None
_waiting = 0


def in_child(work: Callable[..., T], *values: Any) -> T:
    """Return `work(*values)`, both of which a child process can unpickle.

    All threads share one child, which ends when nobody waits for it. Raises what `work` raises, and
    PionError if the child dies.
    """
    global _child, _waiting
    with _lock:
        if _child is None:
            _child = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        child = _child
        _waiting += 1
    try:
        return child.submit(work, *values).result()
    except BrokenProcessPool as error:
        with _lock:
            _child = None if _child is child else _child
        raise PionError(
            f"a child process of pion ended before it had an answer ({error}). Its memory may have "
            "run out. Nothing was changed, and it is tried again."
        ) from error
    finally:
        with _lock:
            _waiting -= 1
            if _waiting == 0 and _child is not None:
                _child.shutdown(wait=False)
                _child = None
