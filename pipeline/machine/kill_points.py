"""Named points inside saving, committing and preparing, at which `pion prove` can kill a run.

A mark costs a dictionary look-up and does nothing unless PION_HALT_AT is set to `POINT:N:FILE`.
Then, when the process reaches POINT for the N-th time, it creates FILE and waits to be killed.
"""

import os
import time
from collections import Counter
from pathlib import Path

HALT_AT = "PION_HALT_AT"
# `pion prove` begins with the first ones, so that few kills hit training too.
POINTS = ("save", "reference", "rollout", "reward", "upload", "commit", "boundary", "shard")

_seen: Counter[str] = Counter()


def mark(point: str) -> None:
    """Wait here to be killed if PION_HALT_AT names this arrival at `point`."""
    wanted = os.environ.get(HALT_AT)
    if wanted is None:
        return
    name, number, file = wanted.split(":", 2)
    _seen[point] += 1
    if point == name and _seen[point] == int(number):
        Path(file).touch()
        time.sleep(3600)
