"""What may be asked of /v1/responses, and how a wrong field is named."""

import pytest
from pydantic import ValidationError

from pipeline.serve.body import checked
from pipeline.serve.errors import ApiError
from pipeline.serve.responses import ResponsesRequest

QUESTION = "What is a fox?"


def user(*content):
    return [{"role": "user", "content": [*content]}]


IMAGE = {"type": "input_image", "image_url": "data:,", "detail": "auto"}
WRONG = {
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
    "too many of them": (
        {"top_logprobs": 21, "include": ["message.output_text.logprobs"]},
        "top_logprobs",
        "top_logprobs should be less than or equal to 20, not 21",
    ),
    "include": (
        {"include": ["file_search_call.results"]},
        "include.0",
        "include.0 should be 'message.output_text.logprobs' or",
    ),
    "truncation": ({"truncation": "auto"}, "truncation", "this server has no truncation"),
    "an image": ({"input": user(IMAGE)}, "input.0.content.0.type", "no type 'input_image' here"),
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


@pytest.mark.parametrize("name", WRONG)
def test_what_the_server_has_not_is_refused_by_name(name):
    changes, param, words = WRONG[name]
    with pytest.raises(ApiError) as caught:
        checked(ResponsesRequest, {"model": "chat", "input": QUESTION, **changes})
    assert caught.value.status == 400
    assert caught.value.param == param
    assert words in str(caught.value)


MANY = 5_000
ODD = {f"field {number}": 1 for number in range(MANY)}
HOSTILE = {
    "items": {"input": [{}] * MANY},
    "no items": {"input": [None] * MANY},
    "valid items": {"input": user(QUESTION) * 3 * MANY},
    "names": {"input": QUESTION, **ODD},
    "names in an item": {"input": [{"role": "user", "content": "x", **ODD}]},
    "parts": {"input": user(*[{}] * MANY)},
    "names in a part": {"input": user({"type": "text", "text": "x", **ODD})},
    "a long type": {"input": [{"type": "x" * MANY}]},
    "an odd type": {"input": [{"type": [{}] * MANY}]},
    "names of a format": {"input": QUESTION, "text": ODD},
    "names of reasoning": {"input": QUESTION, "reasoning": ODD},
    "names of a text's format": {"input": QUESTION, "text": {"format": {"type": "text", **ODD}}},
    "what is included": {"input": QUESTION, "include": ["x"] * MANY},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_thousands_of_mistakes_are_one_error(name):
    with pytest.raises(ValidationError) as caught:
        ResponsesRequest.model_validate(HOSTILE[name])
    assert caught.value.error_count() <= 3  # an object's own fields
    with pytest.raises(ApiError) as refused:
        checked(ResponsesRequest, HOSTILE[name])
    assert len(str(refused.value)) < 300
