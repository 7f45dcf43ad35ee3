"""Print to the user at once, even if the output goes to a file or a pipe."""

from __future__ import annotations

from collections.abc import Callable

from pipeline.console.formats import show

Say = Callable[[str], None]
say_now: Say = show
