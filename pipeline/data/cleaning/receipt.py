"""What was left out and why, and what the hits of the search mean for each evaluation set."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from pion.clean.rules import Verdict
from pion.data.overlap.found import Found
from pion.data.overlap.index import Index
from pion.data.overlap.items import Item
from pion.evaluation.shares import Share, share_of
from pipeline.console.formats import beginning
from pipeline.data.sources import Input

# So many documents are shown of each rule.
EXAMPLES = 3
# So many characters are shown of a text.
SHOWN_CHARS = 200

# The number of a document, that of the document which it is like (or -1), and the item of an
# evaluation set that it holds (or "").
Example = tuple[int, int, str]


def chosen_examples(
    verdicts: np.ndarray, originals: np.ndarray, items: np.ndarray, index: Index
) -> list[tuple[int, list[Example]]]:
    """Return, for each verdict that left something out, documents: first, middle and last."""
    chosen = []
    for verdict in Verdict:
        dropped = np.flatnonzero(verdicts == verdict)
        if verdict == Verdict.KEPT or not len(dropped):
            continue
        places = np.unique(np.linspace(0, len(dropped) - 1, EXAMPLES).round().astype(int))
        examples = [
            (int(n), int(originals[n]), _item_in_words(index, int(items[n])))
            for n in dropped[places]
        ]
        chosen.append((int(verdict), examples))
    return chosen


def _item_in_words(index: Index, item: int) -> str:
    """Return the set and the text of an item, cut short; "" for -1."""
    if item < 0:
        return ""
    group = int(np.searchsorted(index.firsts, item, side="right")) - 1
    of_set = index.sets[group // 2]
    item_texts = of_set.items[item - index.firsts[group]]
    return f"{of_set.name}: {cut_short(f'{item_texts.question} {item_texts.answer}')}"


def judge(index: Index, found: Found) -> list[dict[str, Any]]:
    """Return the record of the overlap of each set of the index with the text that was searched.

    Of its `items`, so many are `unjudged`: they have too few words, or only words of a template.
    Shares are None if there is nothing to judge: `overlapped` of the judged items (one row holds
    enough n-grams), `with_answer` of those whose answer is in such a row, too, and `control` of the
    excerpts of held-out rows.
    """
    return [_judge_set(index, found, number) for number in range(len(index.sets))]


def _judge_set(index: Index, found: Found, number: int) -> dict[str, Any]:
    first, of_control, end = index.firsts[2 * number : 2 * number + 3]
    items, controls, evaluation_set = (
        slice(first, of_control),
        slice(of_control, end),
        index.sets[number],
    )
    judged, enough = index.sizes > 0, found.overlapped(index)

    def share(which: slice, texts: list[Item], agrees: np.ndarray) -> Share | None:
        passages = [item.passage for item, is_judged in zip(texts, judged[which]) if is_judged]
        return share_of(agrees[which][judged[which]], passages)

    overlapped = share(items, list(evaluation_set.items), enough)
    control = share(controls, list(evaluation_set.control), enough)
    shares = {
        "overlapped": overlapped,
        "with_answer": share(items, list(evaluation_set.items), found.with_answer),
        "control": control,
    }
    return {
        "name": evaluation_set.name,
        "digest": evaluation_set.digest,
        "items": len(evaluation_set.items),
        "unjudged": int(np.count_nonzero(~judged[items])),
        **{name: None if of is None else of._asdict() for name, of in shares.items()},
        "verdict": verdict(overlapped, control, found.rows),
    }


def verdict(overlapped: Share | None, control: Share | None, rows: int) -> str:
    """Return what the shares of overlapped items and of overlapped held-out excerpts mean."""
    if rows == 0:
        return "not searched"
    if overlapped is None:
        return "can't be judged: no item has enough words besides templates"
    if control is None:
        return "no verdict: there is no held-out text to compare with"
    if overlapped.share < control.share + 2 * math.hypot(overlapped.sem, control.sem):
        return "no sign"
    return (
        f"{100 * overlapped.share:.1f} % of the items overlap; "
        f"of held-out text {100 * control.share:.1f} % ± {100 * control.sem:.1f} does"
    )


def place_of(found: Input, origin: str) -> str:
    """Return where a document is in its source, without the folders of this machine."""
    if not found.files:
        return origin
    folder = os.path.commonpath([file.parent for file in found.files])
    return origin.removeprefix(folder.rstrip(os.sep) + os.sep)


def cut_short(text: str) -> str:
    """Return the beginning of a text in one line."""
    return beginning(" ".join(text[: 4 * SHOWN_CHARS].split()), SHOWN_CHARS)


def left_out_in_words(dropped: Mapping[str, int]) -> str:
    """Return `too short: 12, near-copy: 3`."""
    return ", ".join(f"{rule}: {count:,}" for rule, count in dropped.items())
