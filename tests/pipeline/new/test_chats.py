"""Records of any layout become conversations, with the roles that a person gave."""

from __future__ import annotations

from typing import Any

import pytest

from pion.errors import BadInput
from pipeline.new.chats import as_conversation, meaning_of, parse_roles, problem_of, texts_of
from pipeline.new.layouts import PairColumns, TurnsColumn


def test_names_of_roles_are_given_in_any_letter_case() -> None:
    roles = parse_roles("Agent=assistant, customer = USER,bot=human")
    assert roles == {"agent": "assistant", "customer": "user", "bot": "user"}
    assert meaning_of("AGENT", roles) == "assistant"
    assert meaning_of("gpt", roles) == "assistant"
    assert meaning_of("nobody", roles) is None


@pytest.mark.parametrize("given", ["agent", "agent=", "=user", "agent=boss"])
def test_roles_that_say_nothing_are_refused(given: str) -> None:
    with pytest.raises(BadInput, match="should be NAME=ROLE, such as agent=assistant"):
        parse_roles(given)


def test_question_context_and_answer_become_turns() -> None:
    layout = PairColumns("q", "a", "more", "sys")
    record = {"q": " Add. ", "more": "1, 2", "a": 3, "sys": ""}
    assert as_conversation(record, layout, {}) == {
        "messages": [
            {"role": "user", "content": "Add.\n\n1, 2"},
            {"role": "assistant", "content": "3"},
        ]
    }


def test_turns_keep_what_they_have_besides_role_and_text() -> None:
    layout = TurnsColumn("dialog", "speaker", "text")
    turns: list[Any] = [{"speaker": "Agent", "text": "Hi", "name": "Ann"}, "no turn"]
    found = as_conversation({"dialog": turns, "tools": [{}]}, layout, {"agent": "assistant"})
    assert found["messages"] == [{"role": "assistant", "content": "Hi", "name": "Ann"}, "no turn"]
    assert found["tools"] == [{}]
    assert texts_of(found) == ["Hi"]
    assert "turn 2" in (problem_of(found, "here", own_template=False) or "")


@pytest.mark.parametrize("own_template", [False, True])
def test_what_a_run_would_refuse_is_a_problem(own_template: bool) -> None:
    good = {"messages": [{"role": "assistant", "content": "Hi"}]}
    assert problem_of(good, "f:1", own_template=own_template) is None
    empty = {"messages": [{"role": "assistant", "content": " "}]}
    said = problem_of(empty, "f:1", own_template=own_template)
    assert said == "f:1: a conversation whose answer is empty: there is nothing to learn from it."
