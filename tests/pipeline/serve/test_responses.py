"""OpenAI's own client talks to /v1/responses, and its types say what an answer must be."""

import json
import sys
from functools import cache
from typing import Annotated

import pytest
from pydantic import BaseModel, Field, TypeAdapter

from pion.generation.answer import Failed
from pipeline.serve.answers import Answers
from tests.support.waiting import wait_until

QUESTION = "What is a fox?"
SYSTEM = "Answer in one word."


@cache
def event_type():
    from openai.types.responses import ResponseStreamEvent

    return TypeAdapter(ResponseStreamEvent)


def post(served, **fields):
    body = {"model": "chat", "input": QUESTION, **fields}
    return served.ask("POST", "/v1/responses", json=body)


def stream_of(served, **fields):
    """Return the events of a stream, each with the name that its `event:` line gives."""
    events = []
    for block in post(served, stream=True, **fields).text.strip().split("\n\n"):
        name, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


def chat_text(client, messages, **settings):
    answer = client.chat.completions.create(model="chat", messages=messages, **settings)
    return answer.choices[0].message.content


@pytest.fixture
def first_stop(served, client):
    """Settings with which the answer to QUESTION ends by itself, after some characters."""
    messages = [{"role": "user", "content": QUESTION}]
    text = chat_text(client, messages, seed=5, max_tokens=20, extra_body={"ignore_eos": True})
    assert text
    return {"seed": 5, "ignore_eos": True, "stop": text[6:]}


def test_an_answer_is_that_of_a_chat_with_the_same_seed(client):
    found = client.responses.create(
        model="chat",
        input=QUESTION,
        instructions=SYSTEM,
        max_output_tokens=20,
        temperature=1.1,
        top_p=0.8,
        extra_body={"seed": 5, "top_k": 30, "repetition_penalty": 1.2, "ignore_eos": True},
    )
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTION}]
    wanted = client.chat.completions.create(
        model="chat",
        messages=messages,
        seed=5,
        max_tokens=20,
        temperature=1.1,
        top_p=0.8,
        extra_body={"top_k": 30, "repetition_penalty": 1.2, "ignore_eos": True},
    )
    assert found.output_text == wanted.choices[0].message.content
    assert found.status == "incomplete"
    assert found.incomplete_details.reason == "max_output_tokens"
    assert (found.temperature, found.top_p, found.instructions) == (1.1, 0.8, SYSTEM)
    assert found.usage.input_tokens == wanted.usage.prompt_tokens
    assert found.usage.output_tokens == 20
    assert found.usage.total_tokens == wanted.usage.total_tokens
    assert (found.model_extra or {})["timings"]["predicted_n"] == 20


def test_a_whole_answer_is_an_object_of_the_api(served, first_stop):
    from openai.types.responses import Response

    found = Response.model_validate(post(served, **first_stop).json())
    assert found.status == "completed"
    assert found.error is None
    assert found.incomplete_details is None
    assert found.usage.input_tokens_details.cached_tokens == found.usage.input_tokens - 1
    assert found.usage.output_tokens_details.reasoning_tokens == 0
    assert [item.type for item in found.output] == ["message"]
    assert len(found.output_text) == 6


def test_a_stream_has_the_events_of_the_api_in_order(served, first_stop):
    events = stream_of(served, **first_stop)
    for event in events:
        assert event_type().validate_python(event).type == event["type"]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    kinds = [event["type"].removeprefix("response.") for event in events]
    deltas = [kind for kind in kinds if kind == "output_text.delta"]
    assert deltas
    assert kinds == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        *deltas,
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    text = "".join(event.get("delta", "") for event in events)
    last = events[-1]["response"]
    whole = post(served, **first_stop).json()
    assert text == last["output"][0]["content"][0]["text"]
    assert text == whole["output"][0]["content"][0]["text"]
    assert last.keys() == whole.keys()
    assert events[-2]["item"] == last["output"][0]
    assert {event["response"]["id"] for event in events if "response" in event} == {last["id"]}


def test_a_cut_stream_ends_as_incomplete(served):
    events = stream_of(served, max_output_tokens=3, ignore_eos=True, timings_per_token=True)
    assert events[-1]["type"] == "response.incomplete"
    assert events[-1]["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert events[-1]["response"]["output"][0]["status"] == "incomplete"
    assert all("timings" in event for event in events if "delta" in event)
    empty = stream_of(served, max_output_tokens=0)
    assert "response.output_text.delta" not in [event["type"] for event in empty]
    assert empty[-1]["response"]["usage"]["output_tokens"] == 0


@pytest.mark.parametrize("way", ["whole", "stream", "dumped"])
def test_a_conversation_is_sent_back_with_the_items_of_an_output(way, client, first_stop):
    said = [{"role": "user", "content": [{"type": "input_text", "text": QUESTION}]}]
    asked = {"model": "chat", "input": said, "extra_body": first_stop}
    if way == "stream":
        with client.responses.stream(**asked) as stream:
            first = stream.get_final_response()
    else:
        first = client.responses.create(**asked)
    output = [item.model_dump() for item in first.output] if way == "dumped" else first.output
    follow = {"role": "user", "content": "Why?"}
    second = client.responses.create(
        model="chat", input=[*said, *output, follow], max_output_tokens=9, extra_body={"seed": 4}
    )
    messages = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": first.output_text},
        follow,
    ]
    assert second.output_text == chat_text(client, messages, seed=4, max_tokens=9)


def test_fields_that_ask_for_nothing_are_accepted(client):
    found = client.responses.create(
        model="chat",
        input=[{"role": "developer", "content": SYSTEM}, {"role": "user", "content": QUESTION}],
        max_output_tokens=1,
        background=False,
        include=[],
        max_tool_calls=1,
        metadata={"a": "b"},
        parallel_tool_calls=False,
        previous_response_id=None,
        prompt_cache_key="key",
        reasoning={"effort": "none"},
        safety_identifier="me",
        service_tier="auto",
        store=True,
        stream_options={"include_obfuscation": False},
        text={"format": {"type": "text"}},
        tool_choice="auto",
        tools=[],
        truncation="disabled",
        user="me",
    )
    assert (found.model_extra or {})["store"] is False


class Person(BaseModel):
    name: Annotated[str, Field(max_length=8)]
    age: Annotated[int, Field(ge=0, le=120)]


SCHEMA = Person.model_json_schema() | {"additionalProperties": False}


def test_an_answer_fits_the_schema_that_the_client_made(client):
    """Whole, streamed, and as a chat gives it; and the parsed answer can be sent back."""

    from openai.types.responses import ResponseFormatTextJSONSchemaConfig

    more = {"max_output_tokens": 100, "extra_body": {"seed": 2}}
    found = client.responses.parse(model="base", input=QUESTION, text_format=Person, **more)
    assert found.status == "completed"
    assert isinstance(found.output_parsed, Person)
    assert isinstance(found.text.format, ResponseFormatTextJSONSchemaConfig)
    assert found.text.format.name == "Person"
    assert found.text.format.strict is True
    assert found.text.format.schema_["properties"] == SCHEMA["properties"]
    with client.responses.stream(
        model="base", input=QUESTION, text_format=Person, **more
    ) as stream:
        assert stream.get_final_response().output_parsed == found.output_parsed
    asked = {"type": "json_schema", "json_schema": {"name": "Person", "schema": SCHEMA}}
    messages = [{"role": "user", "content": QUESTION}]
    wanted = client.chat.completions.create(
        model="base", messages=messages, response_format=asked, seed=2, max_tokens=100
    )
    assert found.output_text == wanted.choices[0].message.content
    again = client.responses.create(
        model="base", input=[*messages, *found.output, *messages], max_output_tokens=1
    )
    assert again.usage.input_tokens > wanted.usage.prompt_tokens


def test_an_answer_is_any_object(client):
    found = client.responses.create(
        model="base", input=QUESTION, max_output_tokens=9, text={"format": {"type": "json_object"}}
    )
    assert found.output_text.startswith("{")
    assert found.text.to_dict() == {"format": {"type": "json_object"}}


def test_a_schema_needs_its_extra(served, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    answer = post(served, text={"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "text.format"
    assert "uv sync --extra json" in answer.json()["error"]["message"]


def test_the_probabilities_are_those_of_a_chat(client, served):
    from openai.types.responses import Response

    asked = {"top_logprobs": 3, "include": ["message.output_text.logprobs"], "max_output_tokens": 9}
    sampled = {"seed": 2, "ignore_eos": True}
    post(served)  # A prompt in the cache is not computed again, which would round differently.
    found = Response.model_validate(post(served, **asked, **sampled).json())
    assert found.top_logprobs == 3
    (part,) = found.output[0].content
    chat = client.chat.completions.create(
        model="chat",
        messages=[{"role": "user", "content": QUESTION}],
        max_tokens=9,
        seed=2,
        logprobs=True,
        top_logprobs=3,
        extra_body={"ignore_eos": True},
    )
    wanted = chat.choices[0].logprobs
    tokens = [token.to_dict() for token in part.logprobs]
    assert tokens == [token.to_dict() for token in wanted.content or ()]
    assert len(tokens) == 9
    events = stream_of(served, **asked, **sampled)
    for event in events:
        event_type().validate_python(event)
    deltas = [event for event in events if event["type"] == "response.output_text.delta"]
    assert [token for event in deltas for token in event["logprobs"]] == tokens
    assert [e["logprobs"] for e in events if e["type"] == "response.output_text.done"] == [tokens]


def test_the_client_raises_its_own_errors(client):
    import openai

    with pytest.raises(openai.NotFoundError, match="there is no model"):
        client.responses.create(model="gpt", input=QUESTION)
    with pytest.raises(openai.BadRequestError, match="context of 256 tokens") as caught:
        client.responses.create(model="chat", input="fox " * 300, stream=True)
    assert caught.value.code == "context_length_exceeded"


def test_no_response_is_stored(client):
    import openai

    found = client.responses.create(model="chat", input=QUESTION, max_output_tokens=1)
    with pytest.raises(openai.NotFoundError, match="there is no GET /v1/responses/resp_"):
        client.responses.retrieve(found.id)


def test_a_client_that_closes_its_stream_frees_the_slot(client, served):
    stream = client.responses.create(
        model="chat", input=QUESTION, stream=True, extra_body={"ignore_eos": True}
    )
    for event in stream:
        if event.type == "response.output_text.delta":
            break
    stream.close()
    wait_until(lambda: served.models[0].engine.load() == (0, 0), "the slot is free")


def fail_after(monkeypatch, tokens):
    """Let each answer fail after so many tokens, as if the engine had."""
    part = Answers._part

    def failing(self, number, event):
        failed = self.completion_tokens >= tokens
        return part(self, number, Failed("the model failed") if failed else event)

    monkeypatch.setattr(Answers, "_part", failing)


def test_an_error_of_the_engine_fails_the_response(client, served, monkeypatch):
    import openai

    fail_after(monkeypatch, 3)
    last = event_type().validate_python(stream_of(served, ignore_eos=True)[-1])
    assert last.type == "response.failed"
    assert last.response.status == "failed"
    assert last.response.error.code == "server_error"
    assert last.response.error.message == "the model failed"
    assert last.response.usage.output_tokens == 3
    with (
        client.responses.stream(
            model="chat", input=QUESTION, extra_body={"ignore_eos": True}
        ) as stream,
        pytest.raises(RuntimeError, match=r"response\.completed"),
    ):
        stream.get_final_response()
    with pytest.raises(openai.InternalServerError, match="the model failed"):
        client.responses.create(model="chat", input=QUESTION, extra_body={"ignore_eos": True})
    wait_until(lambda: served.models[0].engine.load() == (0, 0), "the slots are free")
