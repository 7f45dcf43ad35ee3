"""The entry point of the `pion` command. While the command is imported, Ctrl-C ends it silently."""

from __future__ import annotations

import signal
from typing import NoReturn


def run_and_exit() -> NoReturn:
    """Import the command line, run it, and exit with its code."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from pipeline.cli import run_and_exit as run

    run()
