"""Each layout of prompts, as the data sets that have it write it, and records without a prompt."""

import pytest

from pion.data.prompt.layouts import parse_question
from pion.errors import BadInput

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


BAD = [
    ([ASKED], "not a prompt: found"),
    ({"text": ASKED}, r"expected a text or messages.*found 'text'"),
    ({"prompt": "  ", "answer": "1"}, "not a prompt: key 'prompt' is empty"),
    ({"prompt": [{"role": "user", "content": " "}]}, "key 'prompt': there is no prompt"),
    ({"messages": [SAID]}, "key 'messages': there is no prompt: the user says nothing"),
    ({"prompt": [USER, SAID, SAID]}, "key 'prompt' ends with two answers.*Remove the first"),
    ({"prompt": 5}, "key 'prompt' must be text or a list"),
    ({"prompt": ASKED, "question": "And?"}, "the keys 'prompt' and 'question' could all be"),
    ({"prompt": ASKED, "answer": None}, "key 'answer': the right answer can't be None"),
    ({"prompt": ASKED, "answer": float("nan")}, "key 'answer': the right answer can't be nan"),
    ({**VERL, "reward_model": {"ground_truth": None}}, "'reward_model.ground_truth'"),
    ({"prompt": ASKED, "images": ["a.png"]}, "'images' has what a model of texts does not see"),
]


@pytest.mark.parametrize(("record", "why"), BAD)
def test_a_record_that_is_no_prompt_is_refused_in_one_line_with_its_place(record, why):
    with pytest.raises(BadInput, match=f"^rl.jsonl:7: .*{why}") as error:
        parse_question(record, "rl.jsonl:7")
    assert "\n" not in str(error.value)
