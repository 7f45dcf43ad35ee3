"""Pairs of answers about the standard library, whose better answer no rule of lengths tells."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache

import pytest

from pion.data.documents.python_preferences import LENGTHS, RAMBLING, Better, DocsPair, docs_pairs
from tests.support.python_library import read_only_a_part

PairsOf = Callable[[Better], list[DocsPair]]
EVERY = 5  # so many-th file of the library is read by default


@pytest.fixture(
    scope="module", params=["a part", pytest.param("the whole", marks=pytest.mark.soak)]
)
def part(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[float]:
    """The share of the library's files that is read. Compiled modules are read in any case."""
    if request.param == "the whole":
        yield 1.0
        return
    with pytest.MonkeyPatch.context() as patch:
        read_only_a_part(patch, tmp_path_factory.mktemp("library"), EVERY)
        yield 1 / EVERY


@pytest.fixture(scope="module")
def pairs(part: float) -> PairsOf:
    return cache(lambda better: list(docs_pairs(better)))


def answers(made: DocsPair) -> tuple[str, str]:
    chosen, rejected = (said.messages[-1]["content"] for said in made.pair.conversations)
    assert isinstance(chosen, str)
    assert isinstance(rejected, str)
    return chosen, rejected


@pytest.mark.parametrize(("better", "most"), [("short", 2000), ("right", 4000)])
def test_the_two_answers_of_a_pair_are_to_the_same_question(
    better: Better, most: int, part: float, pairs: PairsOf
) -> None:
    assert len(pairs(better)) > most * part
    for made in pairs(better):
        chosen, rejected = made.pair.conversations
        assert chosen.messages[:-1] == rejected.messages[:-1]
        assert [message["role"] for message in chosen.messages] == ["user", "assistant"]
        assert len(set(answers(made))) == 2


def test_a_short_answer_is_chosen_over_one_that_says_more(pairs: PairsOf) -> None:
    for made in pairs("short"):
        chosen, rejected = answers(made)
        assert len(rejected) >= RAMBLING * len(chosen)


def test_no_rule_of_lengths_tells_which_answer_is_right(pairs: PairsOf) -> None:
    for chosen, rejected in map(answers, pairs("right")):
        assert abs(len(chosen) - len(rejected)) <= LENGTHS * len(chosen)
    longer = [len(chosen) > len(rejected) for chosen, rejected in map(answers, pairs("right"))]
    assert 0.45 < sum(longer) / len(longer) < 0.55


@pytest.mark.parametrize("better", ["short", "right"])
def test_pairs_are_the_same_each_time(better: Better, pairs: PairsOf) -> None:
    assert list(docs_pairs(better)) == pairs(better)
