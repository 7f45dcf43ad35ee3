"""Lists this machine's fonts for matplotlib, in a process that gets no secrets."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

from pipeline.machine.child_environment import without_secrets

SECONDS = 60.0


def list_fonts() -> None:
    """Fill matplotlib's list of fonts, unless there is one.

    Call this before anything is drawn: otherwise matplotlib runs `fc-list` from this process, with
    every key of the environment.
    """
    import matplotlib

    if any(Path(matplotlib.get_cachedir()).glob("fontlist-*.json")):
        return
    with contextlib.suppress(OSError, subprocess.SubprocessError):  # then matplotlib lists them
        subprocess.run(
            [sys.executable, "-P", "-c", "import matplotlib.font_manager"],
            env=without_secrets(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=SECONDS,
        )
