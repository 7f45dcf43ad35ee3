"""Pairs of answers about the standard library, whose better answer no rule of lengths tells."""

from __future__ import annotations

from functools import lru_cache

import pytest

from pion.data.documents.python_preferences import LENGTHS, RAMBLING, Better, DocsPair, docs_pairs


@lru_cache(maxsize=2)
def pairs(better: Better) -> list[DocsPair]:
    return list(docs_pairs(better))


def answers(made: DocsPair) -> tuple[str, str]:
    chosen, rejected = (said.messages[-1]["content"] for said in made.pair.conversations)
    assert isinstance(chosen, str)
    assert isinstance(rejected, str)
    return chosen, rejected


@pytest.mark.parametrize(("better", "most"), [("short", 2000), ("right", 4000)])
def test_the_two_answers_of_a_pair_are_to_the_same_question(better: Better, most: int) -> None:
    assert len(pairs(better)) > most
    for made in pairs(better):
        chosen, rejected = made.pair.conversations
        assert chosen.messages[:-1] == rejected.messages[:-1]
        assert [message["role"] for message in chosen.messages] == ["user", "assistant"]
        assert len(set(answers(made))) == 2


def test_a_short_answer_is_chosen_over_one_that_says_more() -> None:
    for made in pairs("short"):
        chosen, rejected = answers(made)
        assert len(rejected) >= RAMBLING * len(chosen)


def test_no_rule_of_lengths_tells_which_answer_is_right() -> None:
    for chosen, rejected in map(answers, pairs("right")):
        assert abs(len(chosen) - len(rejected)) <= LENGTHS * len(chosen)
    longer = [len(chosen) > len(rejected) for chosen, rejected in map(answers, pairs("right"))]
    assert 0.45 < sum(longer) / len(longer) < 0.55


@pytest.mark.parametrize("better", [pytest.param("short", marks=pytest.mark.soak), "right"])
def test_pairs_are_the_same_each_time(better: Better) -> None:
    assert list(docs_pairs(better)) == pairs(better)
