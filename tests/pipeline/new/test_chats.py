"""Records of any layout become conversations, with the roles that a person gave."""

import pytest

from pion.data.records.layouts import read_conversation
from pion.errors import BadInput
from pipeline.new.chats import as_conversation, meaning_of, parse_roles
from pipeline.new.layouts import PairColumns, TurnsColumn


def test_names_of_roles_are_given_in_any_letter_case():
    roles = parse_roles("Agent=assistant, customer = USER,bot=human")
    assert roles == {"agent": "assistant", "customer": "user", "bot": "user"}
    assert meaning_of("AGENT", roles) == "assistant"
    assert meaning_of("gpt", roles) == "assistant"
    assert meaning_of("nobody", roles) is None


@pytest.mark.parametrize("given", ["agent", "agent=", "=user", "agent=boss"])
def test_roles_that_say_nothing_are_refused(given):
    with pytest.raises(BadInput, match="should be NAME=ROLE, such as agent=assistant"):
        parse_roles(given)


def test_columns_of_any_names_become_those_that_a_job_reads():
    layout = PairColumns("q1", "a1", "more", "told")
    record = {"q1": "Add.", "more": "1, 2", "a1": 3, "told": "", "history": [["Hi", "Hello"]]}
    copied = as_conversation(record, layout, {})
    said = [(m["role"], m["content"]) for m in read_conversation(copied, "here").messages]
    assert said == [
        ("user", "Hi"),
        ("assistant", "Hello"),
        ("user", "Add.\n\n1, 2"),
        ("assistant", "3"),
    ]


def test_turns_get_the_roles_that_a_person_gave_and_keep_the_rest():
    layout = TurnsColumn("dialog", "speaker", "text")
    turns = [{"speaker": "Agent", "text": "Hi", "name": "Ann"}, "no turn"]
    record = {"dialog": turns, "tools": [{"name": "f"}], "system": "Be kind."}
    found = as_conversation(record, layout, {"agent": "assistant"})
    assert found == {
        "messages": [{"speaker": "assistant", "text": "Hi", "name": "Ann"}, "no turn"],
        "tools": [{"name": "f"}],
        "system": "Be kind.",
    }
    with pytest.raises(BadInput, match="turn 2 must be an object"):
        read_conversation(found, "here")
