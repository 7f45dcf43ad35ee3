"""Print tables to people and pipes, ask people, and say that a command needs a while."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pion.errors import BadInput
from pipeline.console.display import is_terminal

if TYPE_CHECKING:
    from rich.console import RenderableType

# After so many seconds, a command says what it waits for.
SLOW = 1.0
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


def ask_to_delete(question: str, would: str) -> None:
    """Ask the person at the terminal before anything is deleted.

    Raises BadInput for another answer than yes, and without a terminal: it says what the command
    `would` do.
    """
    if not sys.stdin.isatty():
        raise BadInput(
            f"{would}, and there is no terminal to ask. Nothing was deleted. Add --yes to agree."
        )
    try:
        answer = input(f"{question} [y/N] ")
    except EOFError:
        answer = ""
    if answer.strip().lower() not in ("y", "yes"):
        raise BadInput("Nothing was deleted.")


@contextlib.contextmanager
def saying_if_slow(words: str, seconds: float = SLOW, *, quiet: bool = False) -> Iterator[None]:
    """Say `words` on standard error if the block takes longer than `seconds`, unless `quiet`.

    In a log, this is a line. At a terminal, the line is gone when the block has ended.
    """
    ended, lock = threading.Event(), threading.Lock()
    shown = contextlib.ExitStack()

    def say() -> None:
        with lock:
            if not ended.is_set():
                shown.enter_context(_shown(words))

    timer = threading.Timer(seconds, say)
    timer.daemon = True
    if not quiet:
        timer.start()
    try:
        yield
    finally:
        timer.cancel()
        ended.set()
        with lock:
            shown.close()


@contextlib.contextmanager
def _shown(words: str) -> Iterator[None]:
    """Show a line on standard error: until the block ends if it is a terminal, else for good."""
    if not is_terminal(sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # its reader is gone
            print(words, file=sys.stderr, flush=True)
        yield
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, highlight=False)
    with console.status(Text(words)):
        console.show_cursor()  # Ctrl-Z and SIGKILL would leave a terminal without a cursor
        yield
