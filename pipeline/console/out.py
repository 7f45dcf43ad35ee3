"""Print tables to people and pipes, and say on standard error that a command needs a while."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

# After so many seconds, a command says what it waits for.
SLOW = 3.0
# No line of a table is longer, so no line is cut where nothing is known about a terminal.
_WIDEST = 100_000


def show_table(table: RenderableType, style: str | None = None) -> None:
    """Print a table, as wide as the terminal, or as its contents need if a program reads it."""
    from rich.console import Console

    if sys.stdout.isatty() or "COLUMNS" in os.environ:
        Console(highlight=False).print(table, markup=False, style=style)
        return
    text = io.StringIO()
    Console(file=text, width=_WIDEST, highlight=False).print(table, markup=False, style=style)
    print("\n".join(line.rstrip() for line in text.getvalue().splitlines()))


@contextlib.contextmanager
def saying_if_slow(words: str, seconds: float = SLOW) -> Iterator[None]:
    """Print `words` on standard error if the block takes longer than `seconds`."""
    timer = threading.Timer(seconds, lambda: print(words, file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
