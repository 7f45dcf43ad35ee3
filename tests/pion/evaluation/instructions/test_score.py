"""A score says how often a model does what it is asked, and how often that is an accident."""

from __future__ import annotations

import dataclasses

import pytest

from pion.errors import BadInput
from pion.evaluation.instructions.prompts import KINDS, Instruction, instructions
from pion.evaluation.instructions.score import Answer, Item, at_chance, score
from pion.evaluation.instructions.topics import TOPICS
from tests.support.instruction_writers import perfect

ASKED = instructions()
CONSTANTS = (
    "I don't know.",
    "it is old.",
    "IT IS OLD",
    "red",
    "- a\n- b\n- c",
    '{"name": 1, "age": 2}',
    "They are good. They are old.",
    "word " * 60,
    "",
)


def answers(*texts: str, finished: bool = True) -> list[Answer]:
    return [Answer(text, finished) for text in texts]


@pytest.mark.parametrize("count", [24, 60, 240])
def test_a_writer_who_does_what_it_is_asked_has_a_perfect_score(count: int) -> None:
    asked = instructions(count)
    found = score(asked, answers(*(perfect(one.prompt) for one in asked)), 256)
    assert [item.prompt for item in found.items if not item.strict] == []
    assert found.met.strict.share == found.met.loose.share == 1
    assert all(of.strict.share == 1 for of in found.kinds.values())
    assert found.met.accident.share < 0.1
    assert not found.at_chance


@pytest.mark.parametrize("text", CONSTANTS)
@pytest.mark.parametrize("count", [24, 60, 240])
def test_a_writer_who_does_not_read_the_prompt_is_at_chance(text: str, count: int) -> None:
    asked = instructions(count)
    found = score(asked, answers(*[text] * count), 256)
    assert [item.strict for item in found.items] == [item.accident for item in found.items]
    assert found.at_chance


def test_a_writer_who_reads_only_the_topic_is_at_chance() -> None:
    topics = [next(word for word in TOPICS if word in one.prompt) for one in ASKED]
    found = score(ASKED, answers(*(f"We like {topic}. We do." for topic in topics)), 256)
    assert found.met.strict.share > 0.1
    assert found.at_chance


def test_empty_answers_and_unfinished_answers_are_wrong() -> None:
    right = [perfect(one.prompt) for one in ASKED]
    unfinished = score(ASKED, answers(*right, finished=False), 256)
    assert unfinished.met.strict.share == unfinished.met.loose.share == 0
    assert unfinished.met.accident.share == 0
    assert unfinished.met.unfinished == 1
    empty = score(ASKED, answers(*["  \r\n*…"] * len(ASKED)), 256)
    assert empty.met.strict.share == empty.met.loose.share == empty.met.unfinished == 0


def test_the_share_of_unfinished_answers_is_counted_by_kind() -> None:
    kind = ASKED[-1].kind
    written = [Answer(perfect(one.prompt), one.kind != kind) for one in ASKED]
    found = score(ASKED, written, 256)
    assert found.kinds[kind].unfinished == 1
    assert found.met.unfinished == pytest.approx(1 / len(KINDS))
    assert found.met.strict.share == pytest.approx(1 - 1 / len(KINDS))


def test_polite_lines_around_an_answer_cost_only_the_strict_score() -> None:
    asked = [one for one in ASKED if one.kind in ("JSON with given keys", "repeat a text")]
    polite = [f"Sure, here it is:\r\n{perfect(one.prompt)}\r\nAsk me again!" for one in asked]
    found = score(asked, answers(*polite), 256)
    assert found.met.strict.share == 0
    assert found.met.loose.share == 1


def test_every_item_is_kept_with_its_prompt_and_answer() -> None:
    written = answers(*(perfect(one.prompt) for one in ASKED))
    found = score(ASKED, written, 99)
    assert [item.prompt for item in found.items] == [one.prompt for one in ASKED]
    assert [item.answer for item in found.items] == [answer.text for answer in written]
    assert list(found.kinds) == list(KINDS)
    assert found.met.accident.share == sum(item.accident for item in found.items) / len(ASKED)
    assert found.most_tokens == 99


def test_a_better_check_is_not_compared_with_an_older_one() -> None:
    one = ASKED[:2]
    found = score(one, answers("a", "b"), 256)
    assert found.rule == "instructions/pion-1"
    reworded = [dataclasses.replace(ASKED[0], prompt="other"), ASKED[1]]
    assert score(reworded, answers("a", "b"), 256).digest != found.digest


def test_answers_that_are_missing_are_refused() -> None:
    with pytest.raises(BadInput, match="1 answers can't be scored on 240 instructions"):
        score(ASKED, answers("one"), 256)
    nothing: list[Instruction] = []
    with pytest.raises(BadInput, match="0 answers"):
        score(nothing, [], 256)


def item(strict: bool, accident: bool) -> Item:
    return Item("kind", "prompt", "answer", True, strict, strict, accident)


@pytest.mark.parametrize(
    ("right", "expected"), [(0, True), (1, True), (3, True), (5, False), (20, False)]
)
def test_no_claim_is_made_within_two_standard_errors(right: int, expected: bool) -> None:
    # For 3 of 20, the mean difference is 0.15 and two errors are 0.16; for 5, 0.25 and 0.20.
    items = [item(True, False)] * right + [item(True, True)] * (20 - right)
    assert at_chance(items) is expected


def test_a_score_below_the_accident_is_no_claim() -> None:
    assert at_chance([item(False, True)] * 20)
    assert at_chance([item(True, False)])  # one prompt has no error
