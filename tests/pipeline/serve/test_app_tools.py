"""Tools, their results and thoughts, as OpenAI's client sends and reads them.

The model is tiny and untrained. Its own sampler draws; what it draws is then replaced by a script.
"""

import json

import pytest

from pion.generation.text import Text
from pipeline.models.find import find_model
from tests.support.chat_templates import CHATML, QWEN3, QWEN25
from tests.support.in_process_renderer import InProcessRenderer
from tests.support.served import serving
from tests.support.stock_models import saved, stock_model
from tests.support.tokenizer_kinds import write_files

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tell the weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Oslo", "Rome"]}, "days": {"type": "integer"}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
ASKED = [{"role": "user", "content": "Rain in Oslo?"}]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo", "days": 1}}\n</tool_call>'
TWO_CALLS = f'I look.\n{CALL}\n<tool_call>\n{{"name": "clock", "arguments": {{}}}}\n</tool_call>'


@pytest.fixture(scope="module")
def served_tools(tmp_path_factory):
    """Models whose templates this process renders: that of another process takes a second each."""
    found = {}
    for name, template in (("tools", QWEN25), ("thinks", QWEN3), ("plain", CHATML)):
        folder = tmp_path_factory.mktemp(name) / name
        saved(stock_model("Qwen3", vocab_size=400, max_position_embeddings=2048), folder)
        found[name] = find_model(str(write_files("qwen", folder, template)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pion.data.chat.template.Renderer", InProcessRenderer)
        with serving(found, slots=2, queue=4) as served:
            yield served


@pytest.fixture
def tools_client(served_tools):
    return served_tools.client()


class Script:
    """What the served models say next, instead of what they draw; and what they were asked."""

    def __init__(self, served, monkeypatch):
        self.model = served.models[0]
        self.said = []
        self.prompts = []
        script = self

        class Scripted(Text):
            def __init__(self, model, ids, settings):
                super().__init__(model, ids, settings)
                script.prompts.append(script.model.tokenizer.decode(ids, specials=True))
                (encoding,) = script.model.tokenizer.encode_with_specials([script.said.pop(0)])
                self.left = [*encoding.ids, script.model.stop_ids[0]]

            def take(self, token):
                return super().take(self.left.pop(0))

        monkeypatch.setattr("pipeline.serve.served_model.Text", Scripted)


@pytest.fixture
def script(served_tools, monkeypatch):
    return Script(served_tools, monkeypatch)


def test_an_agent_calls_a_tool_reads_its_result_and_answers(tools_client, script):
    """The conversation is sent back as the client has it, and the template writes all of it."""
    messages = [*ASKED]
    script.said = [CALL, "It rains."]
    while True:
        found = tools_client.chat.completions.create(
            model="tools", messages=messages, tools=[WEATHER, CLOCK]
        ).choices[0]
        messages.append(found.message)
        if found.finish_reason != "tool_calls":
            break
        for call in found.message.tool_calls or ():
            assert call.type == "function"
            assert call.function.name == "weather"
            assert json.loads(call.function.arguments) == {"city": "Oslo", "days": 1}
            messages.append({"role": "tool", "tool_call_id": call.id, "content": "rain, 8 °C"})
    assert found.finish_reason == "stop"
    assert found.message.content == "It rains."
    assert found.message.tool_calls is None
    first, second = script.prompts
    assert "Tell the weather." in first
    assert second.startswith(first + CALL + "<|im_end|>")
    assert "<tool_response>rain, 8 °C</tool_response>" in second


def test_parallel_calls_come_whole_and_in_a_stream(tools_client, script):
    asked = {"model": "tools", "messages": ASKED, "tools": [WEATHER, CLOCK]}
    script.said = [TWO_CALLS] * 3
    whole = tools_client.chat.completions.create(**asked).choices[0].message
    assert whole.content == "I look.\n"
    called = [call.function for call in whole.tool_calls or ()]
    assert [(f.name, json.loads(f.arguments)) for f in called] == [
        ("weather", {"city": "Oslo", "days": 1}),
        ("clock", {}),
    ]
    with tools_client.chat.completions.stream(**asked) as stream:
        final = stream.get_final_completion().choices[0]
    assert final.finish_reason == "tool_calls"
    assert final.message.content == "I look.\n"
    assert [call.function for call in final.message.tool_calls or ()] != []
    assert [c.function.arguments for c in final.message.tool_calls or ()] == [
        f.arguments for f in called
    ]
    one = tools_client.chat.completions.create(**asked, parallel_tool_calls=False)
    assert len(one.choices[0].message.tool_calls or ()) == 1


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "weather"}}]
)
def test_a_call_that_is_demanded_is_made_by_any_model(tools_client, choice):
    """What an untrained model draws is a call whose arguments fit the tool's schema."""
    asked = {"model": "tools", "messages": ASKED, "tools": [WEATHER], "seed": 1}
    found = tools_client.chat.completions.create(**asked, tool_choice=choice).choices[0]
    assert found.finish_reason == "tool_calls"
    (call,) = found.message.tool_calls or ()
    assert call.type == "function"
    given = json.loads(call.function.arguments)
    assert given.keys() == {"city", "days"}
    assert given["city"] in ("Oslo", "Rome")
    assert found.message.content is None


CALLED = {"name": "weather", "arguments": '{"city": "Oslo", "days": 1}'}
BY_ID = {"type": "function", "id": "call_1", "function": CALLED}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "rain"}
# What front ends send back after a call, by their sources.
HISTORIES = {
    "LangChain": [{"role": "assistant", "content": None, "tool_calls": [BY_ID]}, RESULT],
    "Open WebUI": [
        {"role": "assistant", "content": "", "tool_calls": [{"index": 0, **BY_ID}]},
        RESULT,
    ],
    "OpenAI's stream helper": [
        {
            "role": "assistant",
            "content": "",
            "parsed": None,
            "tool_calls": [
                {**BY_ID, "index": 0, "function": {**CALLED, "parsed_arguments": {"city": "Oslo"}}}
            ],
        },
        RESULT,
    ],
    "a result without its call's id": [
        {"role": "assistant", "tool_calls": [{"function": CALLED}]},
        {"role": "tool", "content": "rain"},
    ],
    "a result in parts": [
        {"role": "assistant", "tool_calls": [BY_ID]},
        {**RESULT, "name": "weather", "content": [{"type": "text", "text": "rain"}]},
    ],
    "thoughts": [
        {"role": "assistant", "reasoning_content": "Hm.", "content": None, "tool_calls": [BY_ID]},
        RESULT,
    ],
}


@pytest.mark.parametrize("name", HISTORIES)
def test_what_front_ends_send_after_a_call_is_understood(name, tools_client, script):
    script.said = ["It rains."]
    messages = [*ASKED, *HISTORIES[name]]
    tools_client.chat.completions.create(
        model="tools", messages=messages, tools=[WEATHER], stream_options=None, tool_choice="auto"
    )
    wanted = f"{CALL}<|im_end|>\n<|im_start|>user\n<tool_response>rain</tool_response><|im_end|>"
    assert wanted in script.prompts[0]


@pytest.mark.parametrize("model", ["tools", "plain"])
def test_tools_are_not_told_of_when_none_may_be_called(tools_client, script, model):
    script.said = [CALL]
    asked = {"model": model, "messages": ASKED, "tools": [WEATHER], "tool_choice": "none"}
    assert tools_client.chat.completions.create(**asked).choices[0].message.content == CALL
    assert "Tell the weather." not in script.prompts[0]


@pytest.mark.parametrize("stream", [False, True])
def test_thoughts_are_apart_from_the_text(tools_client, script, stream):
    asked = {"model": "thinks", "messages": ASKED, "stream": stream}
    script.said = ["<think>\nHm, Oslo.\n</think>\n\nIt rains."]
    found = tools_client.chat.completions.create(**asked)
    parts = [c.choices[0].delta for c in found] if stream else [found.choices[0].message]
    assert "".join(part.content or "" for part in parts) == "It rains."
    thoughts = [getattr(part, "reasoning_content", None) or "" for part in parts]
    assert "".join(thoughts) == "Hm, Oslo.\n"


def test_settings_reach_the_template(tools_client, script):
    asked = {"model": "thinks", "messages": ASKED}
    off = {"chat_template_kwargs": {"enable_thinking": False}}
    for more in ({"extra_body": off}, {"reasoning_effort": "none"}, {"reasoning_effort": "high"}):
        script.said = ["Rain."]
        tools_client.chat.completions.create(**asked, **more)
    assert [prompt.endswith("</think>\n\n") for prompt in script.prompts] == [True, True, False]
    script.said = ["Rain."]
    asked["model"] = "plain"  # it asks for nothing there
    tools_client.chat.completions.create(**asked, extra_body=off, reasoning_effort="none")


REFUSED = {
    "tools without a place": (
        {"model": "plain", "tools": [WEATHER]},
        "tools",
        "plain has a chat template without tools, or one that writes calls in another form than "
        "JSON with a name and arguments, and Pion reads no other. To get answers without tools, "
        "leave them out, or start the server with --ignore-tools",
    ),
    "an older name": (
        {"functions": [CLOCK["function"]]},
        "functions",
        "tools takes functions by their newer name: send them as tools. To get",
    ),
    "an older name next to the newer": (
        {"functions": [CLOCK["function"]], "tools": [CLOCK]},
        "functions",
        "send them as tools",
    ),
    "an older result": (
        {"messages": [*ASKED, {"role": "function", "name": "clock", "content": "5"}]},
        "messages.1.role",
        "not 'function'",
    ),
    "an answer that can't be a call": (
        {"tools": [CLOCK], "response_format": {"type": "json_object"}},
        "response_format",
        "an answer with a response_format can't call tools. Leave response_format out, or set "
        'tool_choice to "none"',
    ),
    "a call without a place": (
        {
            "model": "plain",
            "messages": [
                *ASKED,
                {
                    "role": "assistant",
                    "tool_calls": [{"id": "1", "function": {"name": "clock", "arguments": "{}"}}],
                },
                {"role": "tool", "tool_call_id": "1", "content": "5"},
            ],
        },
        "messages",
        "answer 1 calls 'clock', and the chat template does not write calls",
    ),
    "arguments that are no JSON": (
        {
            "messages": [
                {
                    "role": "assistant",
                    "tool_calls": [{"id": "1", "function": {"name": "f", "arguments": "{x"}}],
                }
            ]
        },
        "messages.0.tool_calls.0.function.arguments",
        "arguments is not valid JSON",
    ),
    "a tool of another kind": (
        {"tools": [{"type": "web_search"}]},
        "tools.0",
        'tools must have objects such as {"type": "function", "function": {',
    ),
    "an unknown tool": (
        {"tools": [CLOCK], "tool_choice": WEATHER | {"function": {"name": "weather"}}},
        "tool_choice",
        'tool_choice must be "none", "auto", "required" or one of the tools by name: {"type": ',
    ),
    "an unread setting": (
        {"model": "plain", "chat_template_kwargs": {"enable_thinking": True}},
        "chat_template_kwargs",
        "this model's chat template has no setting 'enable_thinking'",
    ),
    "a setting that is no setting": (
        {"chat_template_kwargs": {"messages": []}},
        "chat_template_kwargs",
        "this model's chat template has no setting 'messages'",
    ),
    "an unread effort": (
        {"model": "plain", "reasoning_effort": "high"},
        "reasoning_effort",
        "this model's chat template has no setting 'reasoning_effort'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_template_has_no_place_for_is_refused_by_name(name, served_tools):
    body, param, words = REFUSED[name]
    asked = {"model": "tools", "messages": ASKED, **body}
    answer = served_tools.ask("POST", "/v1/chat/completions", json=asked)
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]
    assert answer.json()["error"]["param"] == param


@pytest.mark.slow
def test_minus_one_token_is_no_limit(tools_client, script):
    import openai

    for limit in ({"max_tokens": -1}, {"max_completion_tokens": -1}, {"max_tokens": None}):
        script.said = ["It rains all day long in Oslo."]
        found = tools_client.chat.completions.create(model="tools", messages=ASKED, **limit)
        assert found.choices[0].finish_reason == "stop"
    with pytest.raises(openai.BadRequestError, match="greater than or equal to -1"):
        tools_client.chat.completions.create(model="tools", messages=ASKED, max_tokens=-2)
