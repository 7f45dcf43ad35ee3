import pytest

from pion.errors import BadInput
from pion.evaluation.overlap.found import nothing_found
from pion.evaluation.overlap.index import build_index
from pion.evaluation.overlap.items import Item, ItemSet
from pion.evaluation.overlap.verdict import judge, overlapped_items, verdict
from pion.evaluation.shares import Share, share_of, wilson
from tests.support.overlap_texts import Prose, searched, text_of


def share(hits: int, n: int) -> Share:
    return Share(hits, n, *wilson(hits / n, n))


@pytest.mark.parametrize(
    ("hits", "control", "expected"),
    [
        (0, 0, "no sign"),
        (5, 0, "no sign"),  # of 1000, too few to tell from chance
        (10, 0, "1.0 % of the items overlap; of held-out text 0.0 % ± 0.1 does"),
        (50, 40, "no sign"),
        (90, 40, "9.0 % of the items overlap; of held-out text 4.0 % ± 0.6 does"),
        (0, 400, "no sign"),
    ],
)
def test_a_set_is_compared_with_its_control(hits: int, control: int, expected: str) -> None:
    assert verdict(share(hits, 1000), share(control, 1000), rows=1, searched=1) == expected


def test_a_part_of_the_rows_says_at_least() -> None:
    found = verdict(share(90, 1000), share(40, 1000), rows=1, searched=0.19)
    assert found.startswith(
        "at least 9.0 % of the items overlap in the 19 % of the rows that were searched; "
    )
    none = verdict(share(0, 1000), share(0, 1000), rows=1, searched=0.19)
    assert none == "no sign in the 19 % of the rows that were searched"


def test_what_was_not_measured_is_said() -> None:
    assert verdict(share(1, 9), share(1, 9), rows=0, searched=0) == "not searched"
    assert verdict(None, share(1, 9), rows=1, searched=1).startswith("can't be judged")
    assert verdict(share(9, 9), None, rows=1, searched=1).startswith("no verdict")


def test_each_set_has_its_own_result() -> None:
    prose = Prose(8)
    short = [Item("too short", "yes") for _ in range(3)]
    sets = [
        ItemSet("leaked", [*short, *(prose.item() for _ in range(60))], [prose.item()] * 2),
        ItemSet("clean", [prose.item() for _ in range(60)], [prose.item() for _ in range(500)]),
        ItemSet("empty", []),
        ItemSet("short", short, [prose.item()]),
    ]
    rows = [prose.row(text_of(item)) for item in sets[0].items[10:50]]
    index, found = searched(sets, rows)
    leaked, clean, empty, too_short = judge(index, found)
    assert [result.name for result in (leaked, clean, empty, too_short)] == [s.name for s in sets]
    assert (leaked.items, leaked.unjudged) == (63, 3)
    assert leaked.overlapped == share(40, 60)
    assert leaked.with_answer == share(40, 60)
    assert leaked.digest == sets[0].digest
    assert overlapped_items(index, found, 0).tolist() == [10 <= n < 50 for n in range(63)]
    assert clean.overlapped == share(0, 60)
    assert clean.control == share(0, 500)
    assert clean.verdict == "no sign"
    assert clean.examples == ()
    assert (empty.items, empty.overlapped, empty.control) == (0, None, None)
    assert (too_short.unjudged, too_short.overlapped) == (3, None)
    assert too_short.verdict.startswith("can't be judged")


def test_the_three_most_overlapped_items_are_named_with_their_rows() -> None:
    items = [Item(" ".join(f"i{k}w{n}" for n in range(k + 25)), "end") for k in range(6)]
    words = [text_of(item).split() for item in items]
    rows = ["", *(" ".join(own[: len(own) - k]) for k, own in enumerate(words)), ""]
    index, found = searched([ItemSet("set", items)], rows)
    (result,) = judge(index, found)
    assert [(e.item, e.row, e.held, e.ngrams) for e in result.examples] == [
        *((0, 1, 14, 14), (1, 2, 14, 15), (2, 3, 14, 16))
    ]
    assert [e.with_answer for e in result.examples] == [True, False, False]


def test_of_two_rows_that_hold_as_much_the_first_is_named() -> None:
    item = Item(" ".join(f"w{n}" for n in range(30)), "")
    (result,) = judge(*searched([ItemSet("set", [item])], ["", item.question, item.question]))
    assert result.examples[0].row == 1


def test_items_of_one_passage_widen_the_interval() -> None:
    prose = Prose(9)
    items = []
    for passage in range(20):
        items += [
            Item(i.question, i.answer, f"p{passage}") for i in (prose.item() for _ in range(10))
        ]
    rows = [prose.row(text_of(item)) for item in items[:50]]
    (result,) = judge(*searched([ItemSet("set", items)], rows))
    alone = share_of(overlapped_items(*searched([ItemSet("set", items)], rows), 0))
    assert result.overlapped is not None
    assert alone is not None
    assert result.overlapped.value == alone.value == 0.25
    assert result.overlapped.sem > 2 * alone.sem


def test_hits_of_another_index_are_refused() -> None:
    one, other = (build_index([ItemSet(name, [])]) for name in "ab")
    with pytest.raises(BadInput, match="of other items"):
        judge(one, nothing_found(other))


@pytest.mark.parametrize("searched_share", [-0.1, 1.1, float("nan")])
def test_a_searched_share_outside_its_bounds_is_refused(searched_share: float) -> None:
    index = build_index([])
    with pytest.raises(BadInput, match="from 0 to 1"):
        judge(index, nothing_found(index), searched_share)
