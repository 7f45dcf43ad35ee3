"""Prompts are nanochat's to the byte, and the draw of examples never changes."""

import hashlib

import pytest

from pion.evaluation.core.bundle import Task
from pion.evaluation.core.rows import draw_examples, prompts_of
from tests.support.core_bundle import choice_lines, item_of

# sha256 of the drawn numbers of 200 items, by (items, shots): another Python must draw the same.
GOLDEN = {
    (12, 3): "a02029d1331e43b3321bda11f2ea3c9531ef39582d933235894feb80b31ed4b3",
    (32, 10): "f8b51ebb113daca5f7106705bcf170f82fd2bb7c91d9e832c21e589c51b9abae",
    (1172, 10): "3427fb7c8cf0f79cc6970e15cecd6ddde6e73a221c3048559452d20889de8db1",
    (20321, 10): "a716c19ce0a39de495100f99ea2bcc6c6a7bf334cd9452ba4a81e930607d2d1c",
}


@pytest.mark.parametrize(("size", "expected"), GOLDEN.items(), ids=str)
def test_the_draw_of_examples_is_the_one_of_the_published_numbers(size, expected):
    items, shots = size
    drawn = [
        draw_examples(items, number, shots) for number in range(0, items, max(1, items // 200))
    ]
    assert hashlib.sha256(repr(drawn).encode()).hexdigest() == expected


def test_an_item_is_never_its_own_example_and_each_other_item_can_be():
    drawn = [draw_examples(5, number, 4) for number in range(5)]
    assert [sorted(own) for own in drawn] == [
        [other for other in range(5) if other != number] for number in range(5)
    ]
    assert draw_examples(5, 2, 0) == []


def test_the_order_of_the_items_is_the_one_of_the_published_numbers(made_up):
    """It decides which items a smaller measurement asks."""
    in_file = [line["query"] for line in choice_lines()]
    numbers = [in_file.index(item.options[0][0]) for item in made_up.tasks[0].items]
    assert numbers == [6, 0, 1, 4, 10, 7, 3, 11, 2, 5, 8, 9]


def task_of(task_type, shots, delimiter, *items):
    return Task("some", task_type, shots, delimiter, 0.0, items, "digest")


def test_a_query_is_not_stripped_and_its_choices_follow_the_delimiter():
    asked = item_of((" How?\n",), ("so", " thus "), 1)
    example = item_of(("Why? ",), ("because", "so what"), 0)
    whole, shown = prompts_of(task_of("multiple_choice", 1, "\nAnswer: ", asked, example), 0)
    before = "Why? \nAnswer: because\n\n How?\n\nAnswer: "
    assert whole == (f"{before}so", f"{before} thus ")
    assert shown == before


def test_a_schema_shows_the_right_context_of_an_example():
    asked = item_of(("The cat saw it. It", "The dog saw it. It"), ("ran.",), 0)
    whole, _ = prompts_of(
        task_of("schema", 1, " ", asked, item_of(("A ", "B "), ("slept.",), 1)), 0
    )
    assert whole == ("B  slept.\n\nThe cat saw it. It ran.", "B  slept.\n\nThe dog saw it. It ran.")


def test_contexts_to_continue_are_stripped_and_their_continuations_are_not():
    asked = item_of(("  one two \n",), ("three ",), 0)
    example = item_of(("\tfour ",), (" five",), 0)
    whole, shown = prompts_of(task_of("language_modeling", 1, " ", asked, example), 0)
    assert whole == ("four  five\n\none two three ",)
    assert shown == "four  five\n\none two"


def test_without_examples_nothing_comes_first():
    asked = item_of(("one",), ("two",), 0)
    assert prompts_of(task_of("language_modeling", 0, " ", asked), 0)[0] == ("one two",)
