"""Name the line of our code that runs now."""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from types import FrameType

from tests.paths import REPOSITORY

OUR_FOLDERS = ("pion", "pipeline", "tests")
# The files of the pretence. A finding names the code that they watch, not them.
PRETENCE = ("our_code.py", "watch.py", "pretended_card.py", "live_bytes.py", "two_ranks.py")
OWN_FILES = {str(Path(__file__).with_name(name)) for name in PRETENCE}


def where() -> str:
    """Return the innermost line of our code in the call stack.

    Torch calls the backward pass of most operations without our code, so they have the line that
    started the backward pass.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        inside = _inside(frame.f_code.co_filename)
        if inside is not None:
            return f"{inside}:{frame.f_lineno} in {frame.f_code.co_name}"
        frame = frame.f_back
    return "outside our code"


@cache
def _inside(filename: str) -> Path | None:
    """Return the path inside the repository if a finding may name this file, else None."""
    path = Path(filename)
    if filename in OWN_FILES or not path.is_relative_to(REPOSITORY):
        return None
    inside = path.relative_to(REPOSITORY)
    return inside if inside.parts[0] in OUR_FOLDERS else None
