import pytest

from pion.data.overlap.items import Item, ItemSet
from pion.evaluation.results import Share
from pion.evaluation.shares import wilson
from pipeline.data.cleaning.receipt import judge, verdict
from tests.support.overlap_texts import Prose, searched, text_of


def share(hits: int, n: int) -> Share:
    return Share(hits / n, *wilson(hits / n, n))


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
    assert verdict(share(hits, 1000), share(control, 1000), rows=1) == expected


def test_what_was_not_measured_is_said() -> None:
    assert verdict(share(1, 9), share(1, 9), rows=0) == "not searched"
    assert verdict(None, share(1, 9), rows=1).startswith("can't be judged")
    assert verdict(share(9, 9), None, rows=1).startswith("no verdict")


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
    assert clean.overlapped == share(0, 60)
    assert clean.control == share(0, 500)
    assert clean.verdict == "no sign"
    assert (empty.items, empty.overlapped, empty.control) == (0, None, None)
    assert (too_short.unjudged, too_short.overlapped) == (3, None)
    assert too_short.verdict.startswith("can't be judged")


def test_items_of_one_passage_widen_the_interval() -> None:
    prose = Prose(9)
    items = []
    for passage in range(20):
        items += [
            Item(i.question, i.answer, f"p{passage}") for i in (prose.item() for _ in range(10))
        ]
    rows = [prose.row(text_of(item)) for item in items[:50]]
    (result,) = judge(*searched([ItemSet("set", items)], rows))
    alone = share(50, 200)
    assert result.overlapped is not None
    assert result.overlapped.share == alone.share == 0.25
    assert result.overlapped.sem > 2 * alone.sem
