"""Which questions of a task a model is asked, if it is not asked all."""

from __future__ import annotations

import random

SAMPLE_SEED = 1234


def drawn(count: int, limit: int | None) -> list[int] | None:
    """Return the places of `limit` of `count` questions, in order; None if all are asked.

    Every run gets the same. A smaller sample is part of a larger one.
    """
    if limit is None or limit >= count:
        return None
    places = list(range(count))
    random.Random(SAMPLE_SEED).shuffle(places)
    return sorted(places[:limit])
