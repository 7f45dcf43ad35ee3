"""Questions about the standard library: enough of them, varied, answered in whole sentences."""

import re
from collections import Counter

import pytest

from pion.data.documents.python_docs import documents, is_held_out, letters_of
from pion.data.documents.python_qa import Dialogue, dialogues


@pytest.fixture(scope="module")
def asked() -> list[Dialogue]:
    return list(dialogues())


def first_question(dialogue: Dialogue) -> str:
    return next(turn.text for turn in dialogue.turns if turn.role == "user")


def test_there_are_thousands_and_no_first_question_comes_twice(asked: list[Dialogue]) -> None:
    questions = [first_question(d) for d in asked]
    assert len(questions) > 6000
    assert len(set(questions)) == len(questions)


def test_every_dialogue_alternates_and_ends_with_an_answer(asked: list[Dialogue]) -> None:
    for dialogue in asked:
        roles = [turn.role for turn in dialogue.turns]
        if roles[0] == "system":
            roles = roles[1:]
        assert roles in (["user", "assistant"], ["user", "assistant"] * 2)
        assert all(turn.text.strip() for turn in dialogue.turns)


def test_the_questions_are_phrased_in_many_ways(asked: list[Dialogue]) -> None:
    def shape(question: str) -> str:
        return " ".join(re.findall(r"(?<![\w.`(])[A-Za-z']+(?![\w.(`])", question)[:3])

    shapes = Counter(shape(first_question(d)) for d in asked)
    common = [s for s, count in shapes.items() if count >= 20]
    assert len(common) >= 25
    assert max(shapes.values()) < len(asked) / 5


def test_some_dialogues_have_a_system_turn_and_some_have_follow_ups(asked: list[Dialogue]) -> None:
    system = sum(d.turns[0].role == "system" for d in asked)
    second = sum([t.role for t in d.turns].count("user") == 2 for d in asked)
    assert 0.05 < system / len(asked) < 0.4
    assert 0.05 < second / len(asked) < 0.5


def test_answers_are_short_and_made_of_whole_sentences(asked: list[Dialogue]) -> None:
    answers = [t.text for d in asked for t in d.turns if t.role == "assistant"]
    assert max(map(len, answers)) <= 700
    ends = sum(answer.rstrip("`)\"'").endswith((".", "!", "?")) for answer in answers)
    assert ends / len(answers) > 0.95


def test_an_answer_is_what_the_docstring_says(asked: list[Dialogue]) -> None:
    answers = {
        first_question(d): d.turns[-1].text for d in asked if "textwrap.dedent" in str(d.turns)
    }
    assert any("Remove any common leading whitespace" in a for a in answers.values())


def test_private_names_are_not_asked_about(asked: list[Dialogue]) -> None:
    named = re.compile(r"`[\w.]*\._\w+")
    assert not [d for d in asked if named.search(first_question(d))]


def test_the_files_held_out_are_those_of_the_prose(asked: list[Dialogue]) -> None:
    share = 0.05
    held_out = {d.origin for d in documents() if is_held_out(d.origin, share)}
    about = {d.origin for d in asked if is_held_out(d.origin, share)}
    assert about
    assert about <= held_out


def test_what_is_asked_of_held_out_files_is_not_answered_in_training(
    asked: list[Dialogue],
) -> None:
    answers: dict[bool, set[str]] = {True: set(), False: set()}
    for dialogue in asked:
        found = {letters_of(turn.text) for turn in dialogue.turns if turn.role == "assistant"}
        answers[is_held_out(dialogue.origin, 0.1)] |= {a for a in found if len(a) >= 40}
    assert len(answers[True]) > 100
    assert len(answers[True] & answers[False]) < len(answers[True]) / 100


def test_asking_again_gives_the_same_dialogues(asked: list[Dialogue]) -> None:
    assert list(dialogues()) == asked
