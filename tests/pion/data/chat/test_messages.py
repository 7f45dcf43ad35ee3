import pytest

from pion.data.chat.messages import harmless
from pion.data.records.layouts import read_conversation
from pion.errors import BadInput

HI = {"role": "user", "content": "Hi"}
YES = {"role": "assistant", "content": "Yes"}


def parsed(*messages, **rest):
    return list(read_conversation({"messages": list(messages), **rest}, "data.jsonl:3").messages)


def test_calls_and_null_contents_are_kept_and_other_null_keys_are_not():
    calls = [{"function": {"name": "f", "arguments": {}}}]
    call = {"role": "assistant", "content": None, "tool_calls": calls}
    result = {"role": "tool", "content": "", "name": "f"}
    filled = {**result, "tool_calls": None}
    assert parsed(HI, call, filled, YES) == [HI, call, result, YES]


def test_empty_messages_and_those_after_the_last_answer_are_left_out():
    blank = {"role": "system", "content": " \n"}
    null = {"role": "user", "content": None}
    assert parsed(blank, null, HI, YES, HI, HI) == [HI, YES]


WRONG = {
    "no record": (["x"], "not a conversation: .*found ..x.. instead of an object"),
    "null": (None, "found None"),
    "no key": ({}, "expected a list of turns.*found no key"),
    "another layout": ({"text": "a"}, "not a conversation: expected a list of turns.*found 'text'"),
    "no list": ({"messages": "a"}, "key 'messages' is a text, and not JSON: 'a'"),
    "a number": ({"messages": "3"}, "must be a list of turns, not 3"),
    "an empty list": ({"messages": []}, "not a conversation"),
    "no message": ({"messages": ["a"]}, "turn 1 must be an object"),
    "a role of another type": ({"conversations": [{"from": 1, "value": "x"}]}, "turn 1"),
    "no role": ({"messages": [HI, {"content": "a"}]}, "turn 2 must be an object"),
    "an unknown role": (
        {"messages": [HI, {"role": "asistant", "content": "a"}]},
        "turn 2 has the unknown role 'asistant'; did you mean 'assistant'",
    ),
    "a long role": ({"messages": [{"role": "a" * 9999}]}, "unknown role"),
    "parts": (
        {"messages": [HI, {**YES, "content": [{"type": "image_url", "text": "a"}]}]},
        "turn 2: 'content' has a part that is no text: 'image_url'",
    ),
    "content of another type": ({"messages": [{**HI, "content": 3}]}, "'content' must be text"),
    "no answer": ({"messages": [HI]}, "no assistant turn"),
    "empty answers": ({"messages": [{**YES, "content": None}] * 2}, "whose 2 answers are empty"),
    "an answer of null": ({"question": "a", "answer": None}, "key 'answer' is empty"),
    "an answer of NaN": ({"question": "a", "answer": float("nan")}, "key 'answer' is empty"),
    "an empty answer": ({"messages": [HI, {**YES, "content": " "}]}, "whose answer is empty"),
    "tools that are text": (
        {"messages": [HI, YES], "tools": "[f]"},
        "'tools' is a text, and not JSON",
    ),
    "tools of text": ({"messages": [HI, YES], "tools": ['"f"']}, "'tools' must be a list"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_record_that_is_wrong_is_named_by_file_and_line(what):
    record, message = WRONG[what]
    with pytest.raises(BadInput, match=rf"^data\.jsonl:3: .*{message}") as error:
        read_conversation(record, "data.jsonl:3")
    assert len(str(error.value)) < 500


def test_special_tokens_are_defused_everywhere():
    call = {"function": {"name": "<s>", "arguments": {"<s>": ["a<s>", 1]}}}
    messages = [{"role": "user", "content": "<s>Hi"}, {**YES, "tool_calls": [call]}]
    found = harmless(
        read_conversation({"messages": messages, "tools": [{"a": "<s>"}]}, "x"), ["<s>"]
    )
    quiet = {"function": {"name": "< s>", "arguments": {"< s>": ["a< s>", 1]}}}
    assert found.messages == [{"role": "user", "content": "< s>Hi"}, {**YES, "tool_calls": [quiet]}]
    assert found.tools == [{"a": "< s>"}]
