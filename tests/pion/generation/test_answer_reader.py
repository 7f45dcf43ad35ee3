"""However an answer is cut into pieces, its thoughts, text and calls are the same."""

import pytest

from pion.data.chat.tool_call_form import CallForm
from pion.generation.answer_reader import AnswerReader, Reading

HERMES = CallForm("<tool_call>\n", "</tool_call>", "name", "arguments", listed=False)
BARE = CallForm("", "", "name", "parameters", listed=False)
LISTED = CallForm("[TOOL_CALLS]", "", "name", "arguments", listed=True)
F, G = '{"name": "f", "arguments": {"a": "}"}}', '{"name": "g", "arguments": {}}'
TAGGED = f"<tool_call>\n{F}\n</tool_call>"
PLAIN, TOOLS = Reading(), Reading(form=HERMES)
THINKS = Reading(thinks=True, form=HERMES)
ODD = '{"name": "f", "arguments": {"a": "</tool_call>"}}'

# What is looked for, the answer, and its text, thoughts and names of tools.
ANSWERS = {
    "a text": (PLAIN, f"Hi <think>\n{TAGGED}", f"Hi <think>\n{TAGGED}", "", []),
    "nothing": (THINKS, "", "", "", []),
    "a call": (TOOLS, TAGGED, "", "", ["f"]),
    "a text and calls": (TOOLS, f"So:\n{TAGGED}\n{TAGGED}\n", "So:\n", "", ["f", "f"]),
    "a text after a call": (TOOLS, f"{TAGGED}\nDone.", "Done.", "", ["f"]),
    "a closing in a text": (TOOLS, f"<tool_call>{ODD}</tool_call>", "", "", ["f"]),
    "a list": (TOOLS, f"<tool_call>[{F}, {G}]</tool_call>", "", "", ["f", "g"]),
    "no closing": (TOOLS, f"<tool_call>\n{F}", "", "", ["f"]),
    "a cut call": (TOOLS, '<tool_call>\n{"name"', '<tool_call>\n{"name"', "", []),
    "a cut mark": (TOOLS, "x <tool_ca", "x <tool_ca", "", []),
    "no call": (TOOLS, "<tool_call>x</tool_call> y", "<tool_call>x</tool_call> y", "", []),
    "one only": (Reading(form=HERMES, most=1), f"{TAGGED}{TAGGED}", "", "", ["f"]),
    "a thought": (THINKS, "<think>\nHm.\n</think>\n\nHi.", "Hi.", "Hm.\n", []),
    "a thought and a call": (THINKS, f"<think>\nHm\n</think>\n\n{TAGGED}", "", "Hm\n", ["f"]),
    "a begun thought": (Reading(thinks=True, place="thought"), "Hm</think>Hi", "Hi", "Hm", []),
    "a cut thought": (THINKS, "<think>\nHm", "", "Hm", []),
    "a late thought": (THINKS, "Hi <think>x</think>", "Hi <think>x</think>", "", []),
    "a call in a thought": (THINKS, f"<think>{TAGGED}</think>Hi", "Hi", TAGGED, []),
    "a bare call": (Reading(form=BARE), F.replace("arguments", "parameters"), "", "", ["f"]),
    "a bare brace": (Reading(form=BARE), '{"a": 5}', '{"a": 5}', "", []),
    "a brace in a text": (Reading(form=BARE), f"x {F}", f"x {F}", "", []),
    "Mistral's": (Reading(form=LISTED), f"[TOOL_CALLS][{F}, {G}]", "", "", ["f", "g"]),
    "a begun call": (Reading(form=HERMES, place="call"), F, "", "", ["f"]),
}


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_is_divided(name, size):
    reading, answer, text, thought, calls = ANSWERS[name]
    reader = AnswerReader(reading)
    pieces = [answer[i : i + size] for i in range(0, len(answer), size)]
    found = [*map(reader.push, pieces), reader.push("", end=True)]
    assert "".join(part[0] for part in found) == text
    assert "".join(part[1] for part in found) == thought
    assert [call.name for part in found for call in part[2]] == calls
    assert reader.called == bool(calls)


def test_text_is_sent_as_soon_as_no_mark_can_begin_in_it():
    reader = AnswerReader(THINKS)
    assert reader.push("Hi <tool")[0] == "Hi "
    assert reader.push("s> are")[0] == "<tools> are"
