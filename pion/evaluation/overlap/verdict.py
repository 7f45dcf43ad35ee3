"""What the hits of a search mean for each evaluation set."""

from __future__ import annotations

import math

import numpy as np

from pion.errors import BadInput
from pion.evaluation.overlap.found import Found
from pion.evaluation.overlap.index import Index
from pion.evaluation.overlap.items import Item
from pion.evaluation.results import Overlap, Share
from pion.evaluation.shares import share_of


def judge(index: Index, found: Found) -> list[Overlap]:
    """Return the overlap of each set with the text that was searched.

    Raises:
        BadInput: `found` is of another index.
    """
    if found.digest != index.digest:
        raise BadInput("these hits are of other items: search again")
    return [_judge_set(index, found, number) for number in range(len(index.sets))]


def _judge_set(index: Index, found: Found, number: int) -> Overlap:
    items, own = _items_of(index, number), index.sets[number]
    controls = slice(index.firsts[2 * number + 1], index.firsts[2 * number + 2])
    judged, enough = index.sizes > 0, found.overlapped(index)

    def share(which: slice, texts: list[Item], agrees: np.ndarray) -> Share | None:
        passages = [item.passage for item, kept in zip(texts, judged[which]) if kept]
        return share_of(agrees[which][judged[which]], passages)

    overlapped = share(items, list(own.items), enough)
    control = share(controls, list(own.control), enough)
    return Overlap(
        name=own.name,
        digest=own.digest,
        items=len(own.items),
        unjudged=int(np.count_nonzero(~judged[items])),
        overlapped=overlapped,
        with_answer=share(items, list(own.items), found.with_answer),
        control=control,
        verdict=verdict(overlapped, control, found.rows),
    )


def verdict(overlapped: Share | None, control: Share | None, rows: int) -> str:
    """Return what the shares of overlapped items and of overlapped held-out excerpts mean."""
    if rows == 0:
        return "not searched"
    if overlapped is None:
        return "can't be judged: no item has enough words besides templates"
    if control is None:
        return "no verdict: there is no held-out text to compare with"
    error = math.hypot(overlapped.sem, control.sem)
    if overlapped.share < control.share + 2 * error:
        return "no sign"
    return (
        f"{100 * overlapped.share:.1f} % of the items overlap; "
        f"of held-out text {100 * control.share:.1f} % ± {100 * control.sem:.1f} does"
    )


def _items_of(index: Index, number: int) -> slice:
    return slice(index.firsts[2 * number], index.firsts[2 * number + 1])
