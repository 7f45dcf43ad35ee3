"""Print to the user at once, even if the output goes to a file or a pipe."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

Say = Callable[[str], None]
say_now: Say = partial(print, flush=True)
