"""The file that a bug leaves: the command and the traceback, for its owner alone."""

from __future__ import annotations

import contextlib
import os
import shlex
import tempfile
import traceback
from collections.abc import Sequence

from pipeline.console.formats import printable
from pipeline.console.masking import masked

TRACEBACK_LIMIT = 100
# The longest message that is repeated on the terminal.
_LONGEST = 2000
# How many files a process leaves, so that those who ask a server can't fill the disk.
MOST_FILES = 20
_written: list[str] = []


def report_bug(error: BaseException, arguments: Sequence[str]) -> str:
    """Write a file about an unexpected exception; return what to tell the user.

    The file and the text hold no secret of the environment. If the file can't be written (a full
    disk, a wrong TMPDIR), the text says so.
    """
    words = printable(masked(f"{type(error).__name__}: {error}"))[:_LONGEST]
    return (
        f"error: this is a bug in Pion: {words}\n"
        f"Everything that was committed is safe. {_where(error, arguments)}"
    )


def _where(error: BaseException, arguments: Sequence[str]) -> str:
    if len(_written) >= MOST_FILES:
        return f"No more tracebacks are written after {MOST_FILES}; the last is in {_written[-1]}."
    try:
        path = _write(error, arguments)
    except OSError as problem:
        reason = problem.strerror or str(problem)
        return (
            f"The traceback could not be written to a file ({reason}): PION_DEBUG=1 prints it here."
        )
    return f"The traceback is in {path} (PION_DEBUG=1 prints it here)."


def _write(error: BaseException, arguments: Sequence[str]) -> str:
    # The limit overrides sys.tracebacklimit, which SkyPilot sets to 0.
    stack = "".join(traceback.format_exception(error, limit=TRACEBACK_LIMIT))
    handle, path = tempfile.mkstemp(prefix="pion-bug-", suffix=".txt")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(masked(f"pion {shlex.join(arguments)}\n\n{stack}"))
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(path)
        raise
    _written.append(path)
    return path
