"""What became of preferences: counts that can be added, and kept in JSON between two starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from pion.data.chat.packing import BUCKET
from pion.data.preference.layouts import Pair, Preference
from pion.data.preference.packing import item_length
from pion.data.preference.rendering import (
    LONGER_THAN_ROW,
    REASONS,
    Dropped,
    Outcome,
    Refused,
    Usable,
)

Counts = dict[str, int]


@dataclass(frozen=True)
class Tally:
    """Counts of preferences.

    Attributes:
        read: all of them.
        refused: malformed ones, and those that the chat template refuses.
        early: usable pairs whose sides differ from an earlier answer on.
        tokens: of the usable ones.
        scored: pairs with scores.
        swapped: pairs whose chosen answer has the lower score.
        first_swapped: file and line of the first of these, or "".
        seen: of usable ones, what `Examples` counts, by the names in COUNTS.
        dropped: by reason, how many are left out.
        dropped_encoded: how many of these have a known length.
        dropped_tokens: the sum of these lengths.
        too_long: lengths of those longer than a row, by the next multiple of BUCKET.
    """

    read: int = 0
    refused: int = 0
    early: int = 0
    tokens: int = 0
    scored: int = 0
    swapped: int = 0
    first_swapped: str = ""
    seen: Counts = field(default_factory=dict)
    dropped: Counts = field(default_factory=dict)
    dropped_encoded: Counts = field(default_factory=dict)
    dropped_tokens: Counts = field(default_factory=dict)
    too_long: Counts = field(default_factory=dict)

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Tally:
        """Return what `dataclasses.asdict` made a record of.

        Raises:
            KeyError, TypeError, ValueError: it is no such record.
        """
        read: dict[str, Any] = {}
        for one in fields(Tally):
            # `seen` came later than records of prepared data.
            value = record.get(one.name, {}) if one.name == "seen" else record[one.name]
            default = getattr(Tally(), one.name)
            if isinstance(default, dict):
                read[one.name] = {str(name): _count(n) for name, n in dict(value).items()}
            else:
                read[one.name] = str(value) if isinstance(default, str) else _count(value)
        if not set(read["dropped"]) <= set(REASONS):
            raise ValueError(f"unknown reasons: {read['dropped']}")
        return cls(**read)


def tally_of(preferences: Sequence[Preference], outcomes: Sequence[Outcome]) -> Tally:
    """Return the counts of preferences with what became of each."""
    return total(map(_tally, preferences, outcomes))


def total(tallies: Iterable[Tally]) -> Tally:
    """Return the sum of all."""
    sums: dict[str, Any] = {}
    tallies = list(tallies)
    for one in fields(Tally):
        values = [getattr(tally, one.name) for tally in tallies]
        if isinstance(getattr(Tally(), one.name), dict):
            together: Counter[str] = Counter()
            for value in filter(None, values):
                together.update(value)
            sums[one.name] = dict(together)
        elif one.name == "first_swapped":
            sums[one.name] = next(filter(None, values), "")
        else:
            sums[one.name] = sum(values)
    return Tally(**sums)


def _tally(preference: Preference, outcome: Outcome) -> Tally:
    scores = preference.scores if isinstance(preference, Pair) else None
    swapped = isinstance(preference, Pair) and preference.swapped
    counts: dict[str, Any] = {
        "read": 1,
        "scored": int(scores is not None),
        "swapped": int(swapped),
        "first_swapped": preference.conversations[0].where if swapped else "",
    }
    if isinstance(outcome, Refused):
        counts["refused"] = 1
    elif isinstance(outcome, Usable):
        counts["early"], counts["tokens"] = int(outcome.early), item_length(outcome.item)
        counts["seen"] = dict(outcome.seen)
    else:
        counts |= _dropped(outcome)
    return Tally(**counts)


def _dropped(outcome: Dropped) -> dict[str, Counts]:
    reason, tokens = outcome.reason, outcome.tokens
    counts = {"dropped": {reason: 1}}
    if tokens is not None:
        counts |= {"dropped_encoded": {reason: 1}, "dropped_tokens": {reason: tokens}}
        if reason == LONGER_THAN_ROW:
            counts["too_long"] = {str(-(-tokens // BUCKET) * BUCKET): 1}
    return counts


def _count(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{value!r:.80} is no count")
    return value
