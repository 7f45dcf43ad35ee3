import pytest

from pion.data.overlap.items import Item, ItemSet, counted_words
from pipeline.data.cleaning.receipt import judge
from pipeline.data.cleaning.sets import draw_control
from tests.support.overlap_texts import Prose, searched, text_of


def rows_of(prose: Prose, count: int) -> list[bytes]:
    return [prose.text(200).encode() for _ in range(count)]


def test_excerpts_are_as_long_as_the_items_and_from_held_out_rows() -> None:
    prose = Prose(4)
    items = [*(prose.item(8, 8) for _ in range(50)), *(prose.item(20, 20) for _ in range(50))]
    items += [Item("too short", "")]
    rows = rows_of(prose, 30)
    control = draw_control(items, rows, count=300)
    sizes = [len(counted_words(excerpt)[0]) for excerpt in control]
    expected = {len(counted_words(item)[0]) for item in items} - {2}
    assert set(sizes) == expected
    assert len(control) == 300
    for excerpt in control:
        row = rows[int(excerpt.passage.removeprefix("row "))]
        assert counted_words(excerpt)[0] == excerpt.question.encode().split()
        assert excerpt.question.split()[0] in row.decode().lower()


def test_the_same_arguments_give_the_same_excerpts() -> None:
    prose = Prose(5)
    items, rows = [prose.item() for _ in range(20)], rows_of(prose, 20)
    assert draw_control(items, rows, 50) == draw_control(items, rows, 50)
    assert draw_control(items, rows, 50, seed=1) != draw_control(items, rows, 50)


@pytest.mark.parametrize("rows", [[], [b""], [b"only a few words"]])
def test_rows_and_items_that_are_too_short_give_no_excerpt(rows: list[bytes]) -> None:
    assert draw_control([Prose().item(20, 20)], rows) == []
    for items in ([], [Item("too", "short")]):
        assert draw_control(items, rows_of(Prose(), 3)) == []


def test_the_control_measures_how_much_of_the_corpus_is_duplicated() -> None:
    """Of 600 held-out rows, 15 % are in the training rows, too. The items are of other text."""
    prose = Prose(6)
    held_out = [prose.text(120) for _ in range(600)]
    train = [prose.row(text) for text in held_out[:90]] + [prose.row() for _ in range(400)]
    items = [prose.item() for _ in range(300)]
    control = draw_control(items, [row.encode() for row in held_out])
    index, found = searched([ItemSet("set", items, control)], train)
    (overlap,) = judge(index, found)
    assert overlap.control is not None
    assert len(control) == 1000
    assert overlap.control.low < 0.15 < overlap.control.high
    assert overlap.overlapped is not None
    assert overlap.overlapped.share == 0
    assert overlap.verdict == "no sign"


def test_items_of_the_same_duplicated_text_are_no_sign_but_a_leak_is() -> None:
    prose = Prose(7)
    held_out = [prose.text(120) for _ in range(600)]
    train = [prose.row(text) for text in held_out[:90]] + [prose.row() for _ in range(400)]
    # An evaluation set made of text like the corpus: as much of it is duplicated.
    items = draw_control([prose.item() for _ in range(300)], [r.encode() for r in held_out], 300, 9)
    control = draw_control(items, [row.encode() for row in held_out])
    sets = [ItemSet("set", items, control)]
    (clean,) = judge(*searched(sets, train))
    assert clean.verdict == "no sign"
    assert clean.overlapped is not None
    assert clean.overlapped.share > 0.1
    leaked = [*train, *(prose.row(text_of(item)) for item in items[:120])]
    (leak,) = judge(*searched(sets, leaked))
    assert "of the items overlap; of held-out text" in leak.verdict
