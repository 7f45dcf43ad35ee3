from collections.abc import Iterable
from random import Random
from typing import Any

import pytest

from pion.data.overlap.found import Found, nothing_found, read_found
from pion.data.overlap.index import Index, build_index
from pion.data.overlap.items import ItemSet
from pion.data.overlap.search import search
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
    kept = nothing_found(build_index(sets)).record()
    for shard in shards:
        again = build_index(sets)
        found = read_found(kept, again)
        search(again, shard, found)
        kept = found.record()
    assert kept == whole(build_index(sets), [row for shard in shards for row in shard]).record()


def test_the_order_of_the_rows_does_not_matter(index: Index, shards: list[Shard]) -> None:
    rows = [row for shard in shards for row in shard]
    shuffled = Random(0).sample(rows, len(rows))
    assert whole(index, shuffled).record() == whole(index, rows).record()


def test_rows_read_twice_change_only_the_counts(index: Index, shards: list[Shard]) -> None:
    once, twice = whole(index, shards[0]), whole(index, shards[0] * 2)
    assert twice.rows == 2 * once.rows
    assert twice.held.tolist() == once.held.tolist()


def test_only_items_with_hits_are_kept(index: Index, shards: list[Shard]) -> None:
    assert nothing_found(index).record()["items"] == []
    assert len(whole(index, shards[0]).record()["items"]) == 13


@pytest.mark.parametrize(
    "change",
    [
        {"rows": -1},
        {"rows": True},
        {"rows": 2**63},
        {"items": None},
        {"items": [[0, 1]]},
        {"items": [[0, 0, 0]]},
        {"items": [[0, 1_000, 0]]},
        {"items": [[50, 1, 0]]},
        {"items": [[-1, 1, 0]]},
        {"items": [[0, 1, "yes"]]},
        {"items": [[0.5, 1, 0]]},
    ],
)
def test_damaged_hits_are_refused(index: Index, change: dict[str, Any]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError, IndexError)):
        read_found(nothing_found(index).record() | change, index)
