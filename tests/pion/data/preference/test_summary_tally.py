from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from pion.data.chat.conversation import Tokenized
from pion.data.preference.layouts import parse_preference
from pion.data.preference.rendering import (
    EMPTY,
    LONGER_THAN_ROW,
    TIE,
    Dropped,
    Outcome,
    Refused,
    Sided,
    Usable,
)
from pion.data.preference.summary import Tally, tally_of, total


def pair(where: str = "f:1", **more: Any) -> Any:
    return parse_preference({"prompt": "a", "chosen": "b", "rejected": "c", **more}, where)


def usable(tokens: int, early: bool = False) -> Usable:
    side = Tokenized(np.zeros(tokens, np.int32), np.ones(tokens, np.bool_))
    item = (Sided(side, True), Sided(side, False))
    return Usable(item, np.zeros(1, np.int32), early, {"systems": 2, "lost_systems": 1})


OUTCOMES: list[Outcome] = [
    usable(5),
    usable(7, early=True),
    Refused("f:3: why"),
    Dropped(EMPTY, None),
    Dropped(TIE, 30),
    Dropped(TIE, 10),
    Dropped(LONGER_THAN_ROW, 64),
    Dropped(LONGER_THAN_ROW, 65),
]
COUNTED = Tally(
    read=8,
    refused=1,
    early=1,
    tokens=24,
    seen={"systems": 4, "lost_systems": 2},
    dropped={EMPTY: 1, TIE: 2, LONGER_THAN_ROW: 2},
    dropped_encoded={TIE: 2, LONGER_THAN_ROW: 2},
    dropped_tokens={TIE: 40, LONGER_THAN_ROW: 129},
    too_long={"64": 1, "128": 1},
)


def test_every_outcome_is_counted_by_reason_with_its_length() -> None:
    assert tally_of([pair()] * len(OUTCOMES), OUTCOMES) == COUNTED


def test_pairs_whose_chosen_answer_has_the_lower_score_are_counted_and_the_first_is_named() -> None:
    pairs = [
        pair("f:1"),
        pair("f:2", score_chosen=2, score_rejected=1),
        pair("f:3", score_chosen=1, score_rejected=2),
        pair("f:4", score_chosen=1, score_rejected=3),
        pair("f:5", score_chosen=2, score_rejected=2),
    ]
    found = tally_of(pairs, [usable(3)] * 4 + [Dropped(TIE, 6)])
    assert (found.scored, found.swapped, found.first_swapped) == (4, 2, "f:3")


def test_counts_of_parts_add_up_to_those_of_all() -> None:
    pairs = [pair()] * len(OUTCOMES)
    parts = [tally_of(pairs[a:b], OUTCOMES[a:b]) for a, b in ((0, 3), (3, 3), (3, 8))]
    assert total(parts) == COUNTED
    assert total([]) == Tally()


def test_counts_survive_json() -> None:
    assert Tally.from_record(json.loads(json.dumps(asdict(COUNTED)))) == COUNTED


@pytest.mark.parametrize(
    "change",
    [
        {"read": -1},
        {"read": True},
        {"read": "1"},
        {"dropped": {"a reason of others": 1}},
        {"dropped": {TIE: 1.5}},
        {"dropped": 5},
        {"too_long": [1]},
    ],
)
def test_counts_that_nobody_wrote_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        Tally.from_record(asdict(COUNTED) | change)
    with pytest.raises(KeyError):
        Tally.from_record({})
