"""What a request may hold, how a wrong field is named, and that one mistake is enough."""

import pytest
from pydantic import ValidationError

from pipeline.serve.body import checked
from pipeline.serve.errors import ApiError
from pipeline.serve.requests import ChatRequest, CompletionRequest, TokenizeRequest
from pipeline.serve.responses import ResponsesRequest

MANY = 5_000
USER = {"role": "user", "content": "x"}
ODD = {f"field {number}": 1 for number in range(MANY)}

QUESTION = "What is a fox?"


def user(*content):
    return [{"role": "user", "content": [*content]}]


HOSTILE = {
    "prompts": (CompletionRequest, {"prompt": [None] * MANY}),
    "ids": (CompletionRequest, {"prompt": [[1] * MANY + [None] * MANY]}),
    "lists of ids": (CompletionRequest, {"prompt": [[None]] * 16}),
    "stops": (CompletionRequest, {"prompt": "x", "stop": [""] * MANY}),
    "names": (CompletionRequest, {"prompt": "x", **ODD}),
    "messages": (ChatRequest, {"messages": [{}] * MANY}),
    "valid messages": (ChatRequest, {"messages": [USER] * 3 * MANY}),
    "names in a message": (ChatRequest, {"messages": [USER | ODD]}),
    "parts": (ChatRequest, {"messages": [{"role": "user", "content": [{}] * MANY}]}),
    "names in a part": (ChatRequest, {"messages": [{"role": "user", "content": [ODD]}]}),
    "names of how to stream": (ChatRequest, {"messages": [USER], "stream_options": ODD}),
    "biases": (ChatRequest, {"messages": [USER], "logit_bias": {str(i): "x" for i in range(MANY)}}),
    "messages to count": (TokenizeRequest, {"messages": [None] * MANY}),
    "response: items": (ResponsesRequest, {"input": [{}] * MANY}),
    "response: no items": (ResponsesRequest, {"input": [None] * MANY}),
    "response: valid items": (ResponsesRequest, {"input": user(QUESTION) * 3 * MANY}),
    "response: names": (ResponsesRequest, {"input": QUESTION, **ODD}),
    "response: names in an item": (
        ResponsesRequest,
        {"input": [{"role": "user", "content": "x", **ODD}]},
    ),
    "response: parts": (ResponsesRequest, {"input": user(*[{}] * MANY)}),
    "response: names in a part": (
        ResponsesRequest,
        {"input": user({"type": "text", "text": "x", **ODD})},
    ),
    "response: a long type": (ResponsesRequest, {"input": [{"type": "x" * MANY}]}),
    "response: an odd type": (ResponsesRequest, {"input": [{"type": [{}] * MANY}]}),
    "response: names of a format": (ResponsesRequest, {"input": QUESTION, "text": ODD}),
    "response: names of reasoning": (ResponsesRequest, {"input": QUESTION, "reasoning": ODD}),
    "response: names of a text's format": (
        ResponsesRequest,
        {"input": QUESTION, "text": {"format": {"type": "text", **ODD}}},
    ),
    "response: what is included": (ResponsesRequest, {"input": QUESTION, "include": ["x"] * MANY}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_thousands_of_mistakes_are_one_error(name):
    kind, body = HOSTILE[name]
    with pytest.raises(ValidationError) as caught:
        kind.model_validate(body)
    assert caught.value.error_count() <= 3  # an object's own fields
    with pytest.raises(ApiError) as refused:
        checked(kind, body)
    assert len(str(refused.value)) < 300


WRONG = {
    "temperature": ({"temperature": -1}, "temperature", "temperature is -1.0; it must be 0 (the "),
    "a type": ({"n": "2"}, "n", "n should be a valid integer, not '2'"),
    "too many": ({"n": 17}, "n", "n should be less than or equal to 16, not 17"),
    "a tool": ({"tool_choice": "required"}, "tool_choice", 'must be "none", "auto", "required"'),
    "penalty": ({"presence_penalty": 3}, "presence_penalty", "presence_penalty is 3.0; it must"),
    "a frequency": ({"frequency_penalty": 2.5}, "frequency_penalty", "frequency_penalty is 2.5;"),
    "a bias": ({"logit_bias": {"5": 101}}, "logit_bias.5", "logit_bias is 101.0; it must be from"),
    "a biased text": ({"logit_bias": {"the": 1}}, "logit_bias", "must have ids of tokens as names"),
    "a stop id": ({"stop_token_ids": [-1]}, "stop_token_ids.0", "greater than or equal to 0"),
    "typo": ({"temprature": 1}, "temprature", "no field 'temprature'; did you mean 'temperature'?"),
    "role": (
        {"messages": [USER, {"role": "function", "content": "x"}]},
        "messages.1.role",
        "should be 'system', 'developer', 'user', 'assistant' or 'tool', not 'function'",
    ),
    "a call": (
        {"messages": [{"role": "assistant", "tool_calls": [{"id": "1"}]}]},
        "messages.0.tool_calls.0.function",
        "messages.0.tool_calls.0.function is missing",
    ),
    "nothing said": (
        {"messages": [{"role": "user", "content": None}]},
        "messages.0.content",
        "messages.0: content is missing in a message of role user",
    ),
    "no object": ({"messages": ["x"]}, "messages.0", "messages.0: a JSON object is needed"),
    "no messages": ({"messages": None}, "messages", "messages should be a valid list, not None"),
    "top_logprobs": ({"top_logprobs": 2}, "top_logprobs", "top_logprobs needs logprobs: true"),
}


WRONG_RESPONSES = {
    "a tool": ({"tool_choice": "required"}, "tool_choice", "this server has no tool_choice"),
    "earlier": ({"previous_response_id": "resp_1"}, "previous_response_id", "this server has no"),
    "conversation": ({"conversation": "conv_1"}, "conversation", "this server has no conversation"),
    "background": ({"background": True}, "background", "this server has no background"),
    "reasoning": ({"reasoning": {"effort": "low"}}, "reasoning.effort", "reasoning: this server"),
    "a format": (
        {"text": {"format": {"type": "grammar"}}},
        "text.format.type",
        "text.format.type should be 'text', 'json_object' or 'json_schema', not 'grammar'",
    ),
    "no schema": (
        {"text": {"format": {"type": "json_schema", "name": "x"}}},
        "text.format.schema",
        "text.format: schema is missing",
    ),
    "a schema for any object": (
        {"text": {"format": {"type": "json_object", "schema": {}}}},
        "text.format.schema",
        "text.format: the type is json_object; a schema needs json_schema",
    ),
    "a schema of a chat": (
        {"text": {"format": {"type": "json_schema", "json_schema": {}}}},
        "text.format.json_schema",
        "text.format: this server has no field 'json_schema'; did you mean 'schema'?",
    ),
    "probabilities": (
        {"top_logprobs": 2},
        "top_logprobs",
        'top_logprobs needs include: ["message.output_text.logprobs"]',
    ),
    "include": (
        {"include": ["file_search_call.results"]},
        "include.0",
        "include.0 should be 'message.output_text.logprobs' or",
    ),
    "truncation": ({"truncation": "auto"}, "truncation", "this server has no truncation"),
    "a file": (
        {"input": user({"type": "input_text", "text": "x"}, {"type": "input_file"})},
        "input.0.content.1.type",
        "no type 'input_file' here; it must be input_text or output_text or text",
    ),
    "a call": (
        {"input": [{"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"}]},
        "input.0.type",
        "input.0: this server has no type 'function_call' here; it must be message",
    ),
    "no input": ({"input": None}, "input", "input should be a valid list, not None"),
    "empty input": ({"input": []}, "input", "input"),
    "no content": ({"input": [{"role": "user"}]}, "input.0.content", "content is missing"),
    "role": ({"input": [{"role": "tool", "content": "x"}]}, "input.0.role", "input.0.role should"),
    "negative": ({"max_output_tokens": -1}, "max_output_tokens", "max_output_tokens should be"),
    "max_tokens": ({"max_tokens": 1}, "max_tokens", "max_output_tokens here, not max_tokens"),
    "n": ({"n": 2}, "n", "n is 2; a response has one answer"),
    "typo": ({"instruction": "x"}, "instruction", "did you mean 'instructions'?"),
    "messages": ({"messages": []}, "messages", "this server has no field 'messages'"),
}


@pytest.mark.parametrize(
    ("kind", "fields", "wrong"),
    [
        *((ChatRequest, {"messages": [USER]}, wrong) for wrong in WRONG.values()),
        *((ResponsesRequest, {"input": QUESTION}, wrong) for wrong in WRONG_RESPONSES.values()),
    ],
    ids=[*WRONG, *(f"response: {name}" for name in WRONG_RESPONSES)],
)
def test_a_wrong_field_is_named_in_words_and_as_param(kind, fields, wrong):
    changes, param, words = wrong
    with pytest.raises(ApiError) as caught:
        checked(kind, {**fields, **changes})
    assert caught.value.status == 400
    assert words in str(caught.value)
    assert caught.value.param == param


ANSWERS = [
    {"content": "A fox.", "refusal": None},
    {"content": "A fox.", "refusal": "", "annotations": [], "audio": None, "tool_calls": []},
    {"content": None, "refusal": None, "function_call": None, "tool_calls": None},
    {"content": [{"type": "text", "text": "A fox.", "annotations": []}], "name": None},
    {},
    # As OpenAI's stream helpers (Python 2.54, Node 6.49) and litellm 1.106 sent it back. LangChain
    # 1.7 sends only the text.
    {"content": "A fox.", "refusal": None, "parsed": None, "annotations": None, "audio": None},
    {"content": "A fox.", "provider_specific_fields": {"refusal": None}},
    # OpenAI's `parse` adds what it read in the text.
    {"content": "A fox.", "parsed": {"name": "fox", "age": 3}},
]


@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_is_accepted_with_its_null_and_empty_fields(answer):
    body = {"messages": [USER, {"role": "assistant", **answer}, USER]}
    for kind in (ChatRequest, TokenizeRequest):
        assert checked(kind, body).messages[1].text == ("A fox." if answer.get("content") else "")
