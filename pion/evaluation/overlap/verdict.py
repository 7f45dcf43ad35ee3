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

# How many items are shown with their rows.
EXAMPLES = 3


@dataclass(frozen=True)
class Example:
    """An item and the row that holds most of its n-grams."""

    item: int  # its place in the set
    row: int
    held: int  # how many n-grams the row holds
    ngrams: int  # of how many
    with_answer: bool


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
        examples: the most overlapped items, at most EXAMPLES.

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
    examples: tuple[Example, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return all but the examples as plain JSON; a share has its interval."""
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


def judge(index: Index, found: Found, searched: float = 1.0) -> list[Overlap]:
    """Return the overlap of each set. `searched` is the share of the training rows in `found`.

    Raises:
        BadInput: `found` is of another index, or `searched` is not from 0 to 1.
    """
    if found.digest != index.digest:
        raise BadInput("these hits are of other items: search again")
    if not 0 <= searched <= 1:
        raise BadInput(f"the searched share is {searched:g}; it must be from 0 to 1")
    return [_judge_set(index, found, number, searched) for number in range(len(index.sets))]


def overlapped_items(index: Index, found: Found, number: int) -> np.ndarray:
    """Return whether each item of set `number` overlaps, in the set's order."""
    return found.overlapped(index)[_items_of(index, number)]


def _judge_set(index: Index, found: Found, number: int, searched: float) -> Overlap:
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
        verdict=verdict(overlapped, control, found.rows, searched),
        examples=_examples(index, found, items),
    )


def verdict(overlapped: Share | None, control: Share | None, rows: int, searched: float) -> str:
    """Return what the shares of overlapped items and of overlapped held-out excerpts mean."""
    if rows == 0:
        return "not searched"
    if overlapped is None:
        return "can't be judged: no item has enough words besides templates"
    if control is None:
        return "no verdict: there is no held-out text to compare with"
    part = f" in the {100 * searched:.2g} % of the rows that were searched" if searched < 1 else ""
    error = math.hypot(overlapped.sem, control.sem)
    if overlapped.value < control.value + 2 * error:
        return f"no sign{part}"
    return (
        f"{'at least ' if part else ''}{100 * overlapped.value:.1f} % of the items overlap{part}; "
        f"of held-out text {100 * control.value:.1f} % ± {100 * control.sem:.1f} does"
    )


def _examples(index: Index, found: Found, items: slice) -> tuple[Example, ...]:
    """Return the items with the largest held shares; of equal ones those with more n-grams."""
    held, sizes = found.held[items], index.sizes[items]
    shares = held / np.maximum(sizes, 1)
    order = np.lexsort((np.arange(len(held)), -held, -shares))[:EXAMPLES]
    return tuple(
        Example(
            item=int(place),
            row=int(found.row[items][place]),
            held=int(held[place]),
            ngrams=int(sizes[place]),
            with_answer=bool(found.with_answer[items][place]),
        )
        for place in order
        if held[place]
    )


def _items_of(index: Index, number: int) -> slice:
    return slice(index.firsts[2 * number], index.firsts[2 * number + 1])
