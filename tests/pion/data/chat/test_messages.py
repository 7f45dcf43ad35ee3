from pion.data.chat.messages import harmless
from pion.data.records.layouts import read_conversation

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


def test_special_tokens_are_defused_everywhere():
    call = {"function": {"name": "<s>", "arguments": {"<s>": ["a<s>", 1]}}}
    messages = [{"role": "user", "content": "<s>Hi"}, {**YES, "tool_calls": [call]}]
    found = harmless(
        read_conversation({"messages": messages, "tools": [{"a": "<s>"}]}, "x"), ["<s>"]
    )
    quiet = {"function": {"name": "< s>", "arguments": {"< s>": ["a< s>", 1]}}}
    assert found.messages == [{"role": "user", "content": "< s>Hi"}, {**YES, "tool_calls": [quiet]}]
    assert found.tools == [{"a": "< s>"}]
