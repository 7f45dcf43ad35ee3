"""Conversations by the published chat templates themselves, token by token against transformers.

The files are not ours, so they are not in this repository: PION_REAL_MODELS is a folder with one
folder in transformers' form for each name of REAL. See tests/README.md.
"""

import os
from pathlib import Path

import numpy as np
import pytest

from pion.data.chat.messages import harmless
from pion.data.chat.template_source import find_template
from pion.errors import BadInput
from tests.pion.data.chat.test_template import Model, learned_by_prefixes, talk

FOLDER = os.environ.get("PION_REAL_MODELS", "")
pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(not FOLDER, reason="PION_REAL_MODELS names no folder with real models"),
]

SYSTEM = {"role": "system", "content": "Be brief."}
ASKED = {"role": "user", "content": "What is 2 + 2?"}
AGAIN = {"role": "user", "content": "And the double of it, in 漢字?\n\n  Thank you"}
LAST = {"role": "user", "content": "Which weather is there in Graz?"}
FOUR = {"role": "assistant", "content": "It is 4."}
EIGHT = {"role": "assistant", "content": "八 (8).\n\n```python\nprint(4 * 2)\n```"}
THOUGHT = {"role": "assistant", "content": "<think>\nTwice four.\n</think>\n\nEight."}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {
            "type": "function",
            "function": {"name": "get_weather", "arguments": {"city": "Graz", "days": 2}},
        }
    ],
}
RESULT = {"role": "tool", "name": "get_weather", "content": '{"sky": "cloudy"}'}
CLOUDY = {"role": "assistant", "content": "Cloudy, for two days."}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Says the weather of a city.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "Its name."},
                    "days": {"type": "integer", "description": "How many."},
                },
                "required": ["city"],
            },
        },
    }
]
TALKS = {
    "one answer": ([ASKED, FOUR], None),
    "three answers": ([ASKED, FOUR, AGAIN, EIGHT, LAST, CLOUDY], None),
    "system": ([SYSTEM, ASKED, FOUR, AGAIN, EIGHT], None),
    "thought": ([ASKED, THOUGHT, AGAIN, EIGHT], None),
    "thought last": ([SYSTEM, ASKED, FOUR, AGAIN, THOUGHT], None),
    "tools unused": ([ASKED, FOUR, AGAIN, EIGHT], TOOLS),
    "call": ([LAST, CALL, RESULT, CLOUDY], TOOLS),
    "call with a text": ([SYSTEM, LAST, {**CALL, "content": "I look."}, RESULT, CLOUDY], TOOLS),
    "two calls": ([ASKED, FOUR, LAST, CALL, RESULT, CLOUDY, LAST, CALL, RESULT, CLOUDY], TOOLS),
    "calls at once": (
        [LAST, {**CALL, "tool_calls": CALL["tool_calls"] * 2}, RESULT, CLOUDY],
        TOOLS,
    ),
    "call last": ([ASKED, FOUR, LAST, CALL], TOOLS),
}
CALLS = ("call", "call with a text", "two calls", "calls at once", "call last")
LOST = "does not write calls of tools"
ENDLESS = "ends this call with '<｜tool▁call▁end｜>', at which the model does not stop"
NO_PREFIX = "generation prompt does not begin what the template writes"

# The models, by a name; the folder's name and the options of its template.
MODELS = {
    "SmolLM2": ("smollm2-135m-instruct", {}),
    "Qwen 3": ("qwen3", {}),
    "Qwen 3 without thoughts": ("qwen3", {"enable_thinking": False}),
    "Llama 3": ("llama3", {}),
    "Llama 3.1": ("llama3_1", {}),
    "DeepSeek V3": ("deepseek_v3", {}),
    "Gemma 3": ("gemma3", {}),
}

# Which conversations are refused, and why. All of these are the templates' own faults: the ids that
# transformers gives for them have no answer that could be learned.
REFUSED = {
    # The template adds content to a text, and has no word about calls.
    "SmolLM2": dict.fromkeys(CALLS, LOST),
    # The short template, which knows content only, and writes "None" for null.
    "Llama 3": dict.fromkeys(CALLS, LOST),
    # The package has the short one too, without tools and dates.
    "Llama 3.1": dict.fromkeys(CALLS, LOST),
    # The option puts an empty thought into the prompt, so that no answer can have its own.
    "Qwen 3 without thoughts": dict.fromkeys(("thought", "thought last"), NO_PREFIX),
    # It has no place for calls, and writes tools nowhere.
    "Gemma 3": dict.fromkeys(CALLS, LOST),
    # Calls are written for null content only, and after the first call of a conversation no end.
    "DeepSeek V3": {
        "call with a text": LOST,
        **dict.fromkeys(("call", "two calls", "call last"), ENDLESS),
    },
}
# Folders of which nothing can be used.
UNUSABLE = {
    "gptoss": "this model has no chat template",  # its package has none
    "gpt4o": "this model has no chat template",  # there is none
}


class RealModel(Model):
    """A real tokenizer and template, and transformers' view of the same files."""

    def __init__(self, real, folder, options):
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / name).symlink_to(real / name)
        self.load(folder, find_template(real), None, options)


@pytest.mark.parametrize("name", MODELS)
def test_ids_and_masks_are_those_of_transformers(name, tmp_path):
    folder, options = MODELS[name]
    model = RealModel(Path(FOLDER) / folder, tmp_path, options)
    refused = REFUSED.get(name, {})
    for said, (messages, tools) in TALKS.items():
        conversation = harmless(talk(messages, tools), model.template._marks)
        (found,) = model.template.tokenize_batch([conversation])
        assert (found.refused is not None) == (said in refused), f"{said}: {found.refused}"
        if found.refused is not None:
            assert refused[said] in found.refused
            continue
        form, _ = model.template._rendered(conversation)
        expected = learned_by_prefixes(model, list(form.messages), form.tools)
        assert expected is not None, said
        for ours, theirs in zip(found.tokenized, expected, strict=True):
            assert ours.ids.tolist() == theirs.ids.tolist(), said
            assert ours.learned.tolist() == theirs.learned.tolist(), said
        learned = np.concatenate([example.ids[example.learned] for example in found.tokenized])
        _require_answers_only(model.text(learned), messages, said)
        answers = sum(message["role"] == "assistant" for message in messages)
        assert learned.tolist().count(model.template.end_of_turn) == answers, said
        question = [*form.messages][:-1]
        stock = model.stock_ids(question, prompt=True, tools=form.tools)
        assert model.template.prompt_ids(question, form.tools) == stock, said
    model.template.close()


def _require_answers_only(learned, messages, talk):
    """Fail unless the learned text has all answers in their order, and no other message."""
    place = 0
    for message in messages:
        if message["role"] != "assistant":
            assert message["content"] not in learned, talk
            continue
        calls = [call["function"]["name"] for call in message.get("tool_calls", ())]
        for text in filter(None, [message["content"], *calls]):
            place = learned.find(text, place)
            assert place >= 0, f"{talk}: {text!r} is not learned: {learned}"
            place += len(text)


@pytest.mark.parametrize("folder", UNUSABLE)
def test_a_model_that_can_not_be_used_is_refused_with_the_reason(folder, tmp_path):
    with pytest.raises(BadInput, match=UNUSABLE[folder]):
        RealModel(Path(FOLDER) / folder, tmp_path, {})
