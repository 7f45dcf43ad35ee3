"""Print to the person at this window at once, also where the output goes to a file or a pipe."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

Say = Callable[[str], None]
say_now: Say = partial(print, flush=True)
