"""Each layout of prompts, as the data sets that have it write it, and records without a prompt."""

import pytest

from pion.data.prompt.layouts import parse_question

ASKED, SOLVED = "How many eggs are left?", "16 - 3 = 13 eggs. #### 72"
USER, SYSTEM = {"role": "user", "content": ASKED}, {"role": "system", "content": "Be brief."}
SAID = {"role": "assistant", "content": "18 eggs"}
GPT = [{"from": "human", "value": ASKED}, {"from": "gpt", "value": "18 eggs"}]
KINDS = {"problem": ASKED, "solution": SOLVED, "answer": "18", "final_answer": None}
VERL = {"prompt": [USER], "reward_model": {"ground_truth": "18"}, "extra_info": {"answer": "no"}}
CUT = "the prompt is what is before the last answer in"
# A record, the roles of its messages, its answer, and what prepare says of it.
LAYOUTS = [
    ({"question": ASKED, "answer": SOLVED}, "u", SOLVED, "the question is in question"),
    ({"prompt": [SYSTEM, USER], "solution": "$18$"}, "su", "$18$", "the answer in solution"),
    ({"prompt": ASKED, "answer": 18, "info": {"a": None}}, "u", "18", "the question is in prompt"),
    ({"system": "Be brief.", "prompt": ASKED}, "su", None, "the question is in prompt"),
    (KINDS, "u", "18", "the question is in problem, the answer in answer"),
    (VERL, "u", "18", "the answer in reward_model.ground_truth"),
    ({"messages": [USER], "ground_truth": "18"}, "u", "18", "the answer in ground_truth"),
    (
        {"messages": [USER, SAID, USER, SAID, SAID], "answer": 18.5},
        "uau",
        "18.5",
        f"{CUT} messages",
    ),
    ({"conversations": GPT, "output": None}, "u", "18 eggs", f"{CUT} conversations"),
    ({"prompt": ASKED, "answer": ["18", "18.0"]}, "u", ["18", "18.0"], "the question is in prompt"),
    ({"prompt": ASKED, "answer": {"target": [18]}}, "u", {"target": [18]}, "the question is in"),
    ({"prompt": ASKED, "answer": False}, "u", False, "the question is in prompt"),
    ({"prompt": [USER, SAID], "answer": "18"}, "u", "18", "the prompt in prompt begins the answer"),
]


@pytest.mark.parametrize(("record", "roles", "answer", "words"), LAYOUTS)
def test_each_layout_gives_its_prompt_and_its_answer(record, roles, answer, words):
    found = parse_question(record, "f:1")
    messages, seen = found.conversation.messages, found.conversation.seen
    assert "".join(message["role"][0] for message in messages) == roles
    assert {message["content"] for message in messages} <= {ASKED, "Be brief.", "18 eggs"}
    assert (found.answer, found.record) == (answer, record)
    text = roles == "u" and "messages" not in words and ASKED in record.values()
    assert found.begun == ("18 eggs" if record.get("prompt") == [USER, SAID] else "")
    assert found.prompt == (ASKED if text else messages)
    assert seen.layout.startswith(words)
    assert seen.unread == ()
