"""What the hits of a search mean for each evaluation set."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from pion.errors import BadInput
from pion.evaluation.overlap.found import Found
from pion.evaluation.overlap.index import Index
from pion.evaluation.overlap.items import Item
from pion.evaluation.shares import Share, share_of


@dataclass(frozen=True)
class Overlap:
    """The overlap of one evaluation set with the rows that were searched.

    Attributes:
        name: the set's.
        digest: the sha256 of its texts.
        items: how many it has.
        unjudged: how many of these have too few words, or only words of a template.
        overlapped: the share of the judged items of which one row holds enough n-grams.
        with_answer: the share of those whose answer is in such a row, too.
        control: the share of overlapped excerpts of held-out rows.
        verdict: what this means, in words.

    A share is None if there is nothing to judge.
    """

    name: str
    digest: str
    items: int
    unjudged: int
    overlapped: Share | None
    with_answer: Share | None
    control: Share | None
    verdict: str

    def to_dict(self) -> dict[str, Any]:
        """Return this as plain JSON; a share has its interval."""
        shares = {
            "overlapped": self.overlapped,
            "with_answer": self.with_answer,
            "control": self.control,
        }
        return {
            "name": self.name,
            "digest": self.digest,
            "items": self.items,
            "unjudged": self.unjudged,
            **{name: None if of is None else _interval(of) for name, of in shares.items()},
            "verdict": self.verdict,
        }


def _interval(share: Share) -> dict[str, float]:
    return {"share": share.value, "low": share.low, "high": share.high}


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
    if overlapped.value < control.value + 2 * error:
        return "no sign"
    return (
        f"{100 * overlapped.value:.1f} % of the items overlap; "
        f"of held-out text {100 * control.value:.1f} % ± {100 * control.sem:.1f} does"
    )


def _items_of(index: Index, number: int) -> slice:
    return slice(index.firsts[2 * number], index.firsts[2 * number + 1])
