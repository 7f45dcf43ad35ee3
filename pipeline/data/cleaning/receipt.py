"""What was left out and why, as data for the report: counts, examples, and evaluation sets."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from pion.clean.rules import Verdict
from pion.evaluation.overlap.found import Found
from pion.evaluation.overlap.index import Index
from pion.evaluation.overlap.verdict import judge
from pion.evaluation.results import record_of
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
    found = of_set.items[item - index.firsts[group]]
    return f"{of_set.name}: {cut_short(f'{found.question} {found.answer}')}"


def sets_of(index: Index, found: Found) -> list[dict[str, Any]]:
    """Return what the search for each evaluation set has found, next to its control."""
    return [record_of(one) for one in (judge(index, found) if index.sets else [])]


def place_of(found: Input, origin: str) -> str:
    """Return where a document is in its source, without the folders of this machine."""
    if not found.files:
        return origin
    folder = os.path.commonpath([file.parent for file in found.files])
    return origin.removeprefix(folder.rstrip(os.sep) + os.sep)


def cut_short(text: str) -> str:
    """Return the beginning of a text in one line."""
    line = " ".join(text[: 4 * SHOWN_CHARS].split())
    return line if len(line) <= SHOWN_CHARS else f"{line[:SHOWN_CHARS]}…"


def left_out_in_words(dropped: Mapping[str, int]) -> str:
    """Return `too short: 12, near-copy: 3`."""
    return ", ".join(f"{rule}: {count:,}" for rule, count in dropped.items())
