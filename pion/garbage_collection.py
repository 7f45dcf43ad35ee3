"""Python's search for garbage, put off.

A command that imports torch would look through all of torch several times, the last time at its
end. That is a fifth of the seconds of `pion check`.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def without_collection() -> Iterator[None]:
    """Keep garbage until the block ends."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Keep garbage until the block ends, and never look through what the block has made."""
    with without_collection():
        yield
    gc.freeze()
    if "triton" in sys.modules:  # it prints which of its objects are there when Python has ended
        atexit.register(gc.unfreeze)
