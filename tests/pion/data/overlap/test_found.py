import json
from collections.abc import Iterable
from random import Random
from typing import Any

import pytest

from pion.data.overlap.found import Found, nothing_found, read_found
from pion.data.overlap.index import Index, build_index
from pion.data.overlap.items import Item, ItemSet
from pion.data.overlap.search import search
from pion.errors import BadInput
from tests.support.overlap_texts import Prose, text_of

Shard = list[tuple[int, bytes]]


@pytest.fixture(scope="module")
def sets() -> list[ItemSet]:
    prose = Prose(seed=2)
    return [ItemSet("a", [prose.item() for _ in range(40)], [prose.item() for _ in range(10)])]


@pytest.fixture(scope="module")
def index(sets: list[ItemSet]) -> Index:
    return build_index(sets)


@pytest.fixture(scope="module")
def shards(sets: list[ItemSet]) -> list[Shard]:
    """Three shards with whole items and parts of items."""
    prose = Prose(seed=3)
    rows = []
    for item in sets[0].items:
        words = text_of(item).split()
        rows += [prose.row(" ".join(words[:n])) for n in (15, 25, len(words))]
    texts = [(number, row.encode()) for number, row in enumerate(rows)]
    return [texts[:37], texts[37:38], texts[38:]]


def whole(index: Index, rows: Iterable[tuple[int, bytes]]) -> Found:
    found = nothing_found(index)
    search(index, rows, found)
    return found


def test_continued_after_each_shard_is_the_same_as_whole(
    sets: list[ItemSet], shards: list[Shard]
) -> None:
    """Each shard is searched by another process would: with an index that it has built again."""
    kept = nothing_found(build_index(sets)).to_bytes()
    for shard in shards:
        again = build_index(sets)
        found = read_found(kept, again, "hits.json")
        search(again, shard, found)
        kept = found.to_bytes()
    assert kept == whole(build_index(sets), [row for shard in shards for row in shard]).to_bytes()


def test_the_order_of_the_rows_does_not_matter(index: Index, shards: list[Shard]) -> None:
    rows = [row for shard in shards for row in shard]
    shuffled = Random(0).sample(rows, len(rows))
    assert whole(index, shuffled).to_bytes() == whole(index, rows).to_bytes()


def test_rows_read_twice_change_only_the_counts(index: Index, shards: list[Shard]) -> None:
    once, twice = whole(index, shards[0]), whole(index, shards[0] * 2)
    assert twice.rows == 2 * once.rows
    assert twice.held.tolist() == once.held.tolist()
    assert twice.row.tolist() == once.row.tolist()


def test_only_items_with_hits_are_kept(index: Index, shards: list[Shard]) -> None:
    nothing = json.loads(nothing_found(index).to_bytes())
    assert nothing["rule"] == "overlap-1"
    assert nothing["items"] == []
    assert len(json.loads(whole(index, shards[0]).to_bytes())["items"]) == 13


def test_hits_of_other_items_are_not_continued(index: Index) -> None:
    other = build_index([ItemSet("a", [Item("another question", "answer")])])
    with pytest.raises(BadInput, match=r"hits\.json: key digest .* delete this file"):
        read_found(nothing_found(index).to_bytes(), other, "hits.json")


@pytest.mark.parametrize(
    ("kept", "changed", "words"),
    [
        # Which rows have the answer was decided by the threshold.
        (b'"threshold": 0.5', b'"threshold": 0.6', r"key threshold is 0\.6, but .* has 0\.5"),
        (b"overlap-1", b"overlap-2", "key rule is 'overlap-2'"),
    ],
)
def test_hits_of_another_search_are_not_continued(
    index: Index, kept: bytes, changed: bytes, words: str
) -> None:
    data = nothing_found(index).to_bytes().replace(kept, changed)
    with pytest.raises(BadInput, match=words):
        read_found(data, index, "hits.json")


@pytest.mark.parametrize(
    "change",
    [
        {"rows": -1},
        {"rows": True},
        {"bytes": None},
        {"items": None},
        {"items": [[0, 1, 2]]},
        {"items": [[0, 0, 2, 0]]},
        {"items": [[0, 1_000, 2, 0]]},
        {"items": [[50, 1, 2, 0]]},
        {"items": [[-1, 1, 2, 0]]},
        {"items": [[0, 1, -2, 0]]},
        {"items": [[0, 1, 2**63, 0]]},
        {"items": [[0, 1, 2, "yes"]]},
        {"items": [[0.5, 1, 2, 0]]},
    ],
)
def test_damaged_hits_are_refused_with_what_to_do(index: Index, change: dict[str, Any]) -> None:
    record = json.loads(nothing_found(index).to_bytes()) | change
    with pytest.raises(BadInput, match=r"hits\.json: these hits are damaged .* search again"):
        read_found(json.dumps(record).encode(), index, "hits.json")


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b"\xff", b'{"rule": "overlap-1"}'])
def test_what_is_no_state_is_refused(index: Index, data: bytes) -> None:
    with pytest.raises(BadInput, match=r"hits\.json"):
        read_found(data, index, "hits.json")
