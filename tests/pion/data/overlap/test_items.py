import pytest

from pion.data.overlap.items import Item, ItemSet, counted_words, digest_of_sets


def test_only_the_last_forty_words_count() -> None:
    passage = " ".join(f"p{n}" for n in range(100))
    words, answer = counted_words(Item(f"{passage}. Who was it?", "Ada Lovelace"))
    assert words == [f"p{n}".encode() for n in range(65, 100)] + [
        *(b"who", b"was", b"it", b"ada", b"lovelace")
    ]
    assert answer == 2


def test_an_answer_of_more_than_forty_words_leaves_no_question() -> None:
    words, answer = counted_words(Item("Why?", " ".join(f"w{n}" for n in range(50))))
    assert words == [f"w{n}".encode() for n in range(10, 50)]
    assert answer == 40


def test_question_and_answer_never_make_one_word() -> None:
    assert counted_words(Item("the ans", "wer")) == ([b"the", b"ans", b"wer"], 1)


def test_half_a_character_is_no_word() -> None:
    assert counted_words(Item("one \ud800 two", "")) == ([b"one", b"two"], 0)


@pytest.mark.parametrize(
    "changed",
    [
        ItemSet("other", [Item("q", "a")]),
        ItemSet("set", [Item("q ", "a")]),
        ItemSet("set", [Item("q", "a", "passage")]),
        ItemSet("set", [Item("q", "a"), Item("q", "a")]),
        ItemSet("set", [Item("q", "a")], [Item("control", "")]),
        ItemSet("set", [Item("qa", "")]),
    ],
)
def test_the_digest_covers_all_that_is_looked_for(changed: ItemSet) -> None:
    assert digest_of_sets([changed]) != digest_of_sets([ItemSet("set", [Item("q", "a")])])


def test_the_digest_of_a_set_is_that_of_its_texts_only() -> None:
    items = [Item("q", "a")]
    assert ItemSet("a", items).digest == ItemSet("b", items, [Item("c", "")]).digest
