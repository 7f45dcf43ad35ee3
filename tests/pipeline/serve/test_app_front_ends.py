"""Requests as front ends sent them to `pion serve`, with shorter texts, are answered or refused.

Recorded from Open WebUI 0.12.4, Continue's command line 1.5.47, LangChain 1.7.4, litellm 1.110.2,
OpenAI's Agents client 0.24.0 and lm-eval 0.4.13.
"""

import pytest

from pipeline.models.find import find_model
from tests.support.served import serving

QUESTION = "What is a fox?"
ASKED = [{"role": "user", "content": QUESTION}]
SCHEMA = {
    "description": "A fox.",
    "properties": {
        "name": {"maxLength": 8, "title": "Name", "type": "string"},
        "age": {"maximum": 50, "minimum": 0, "title": "Age", "type": "integer"},
    },
    "required": ["name", "age"],
    "title": "Fox",
    "type": "object",
    "additionalProperties": False,
}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_current_timestamp",
        "description": "Get the current Unix timestamp in seconds.",
        "parameters": {"properties": {}, "type": "object"},
    },
}
CHAT, RESPONSES, COMPLETIONS = "chat/completions", "responses", "completions"

REQUESTS = {
    "Open WebUI: a title": (CHAT, {"messages": ASKED, "stream": False, "max_tokens": 20}),
    "Open WebUI: after an answer that was refused": (
        CHAT,
        {"stream": True, "messages": [*ASKED, *ASKED]},
    ),
    "LangChain: a chat": (
        CHAT,
        {"stream": False, "messages": ASKED, "max_completion_tokens": 9, "seed": 1},
    ),
    "LangChain: a schema": (
        CHAT,
        {
            "stream": False,
            "messages": ASKED,
            "max_completion_tokens": 30,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"schema": SCHEMA, "name": "Fox", "strict": True},
            },
            "temperature": 0.0,
        },
    ),
    "LangChain: the Responses API": (
        RESPONSES,
        {
            "stream": False,
            "input": [{"content": QUESTION, "role": "user", "type": "message"}],
            "max_output_tokens": 30,
            "text": {
                "format": {"type": "json_schema", "strict": True, "name": "Fox", "schema": SCHEMA}
            },
        },
    ),
    "LangChain: a completion": (
        COMPLETIONS,
        {
            "prompt": ["The capital"],
            "frequency_penalty": 0,
            "logprobs": None,
            "max_tokens": 9,
            "n": 1,
            "presence_penalty": 0,
            "seed": None,
            "temperature": 0.0,
            "top_p": 1,
        },
    ),
    "litellm: a stream": (
        CHAT,
        {
            "messages": ASKED,
            "temperature": 0,
            "max_tokens": 9,
            "stream": True,
            "stream_options": {"include_usage": True},
        },
    ),
    "litellm: vLLM's fields": (CHAT, {"messages": ASKED, "max_tokens": 9, "top_k": 5}),
    "Agents: no tools": (
        RESPONSES,
        {
            "include": ["message.output_text.logprobs"],
            "input": ASKED,
            "instructions": "Be short.",
            "temperature": 0.0,
            "tools": [],
            "top_logprobs": 2,
        },
    ),
    "lm-eval: a chat": (
        CHAT,
        {
            "messages": [*ASKED, {"role": "assistant", "content": "4"}, *ASKED],
            "max_tokens": 9,
            "temperature": 0,
            "stop": ["\n\n"],
            "seed": 1234,
        },
    ),
    "lm-eval: two texts": (
        COMPLETIONS,
        {
            "prompt": [[70, 71, 72], [73, 74]],
            "temperature": 0,
            "max_tokens": 1,
            "logprobs": 1,
            "seed": 1234,
            "echo": True,
        },
    ),
}
OFFERS = {
    "Open WebUI": (CHAT, {"stream": True, "messages": ASKED, "tools": [TOOL]}),
    "Continue": (
        CHAT,
        {
            "messages": [{"role": "system", "content": "You are an agent."}, *ASKED],
            "stream": True,
            "tools": [TOOL],
            "stream_options": {"include_usage": True},
        },
    ),
    "Agents": (
        RESPONSES,
        {
            "include": [],
            "input": ASKED,
            "tools": [{**TOOL["function"], "type": "function", "strict": True}],
        },
    ),
    "an older client": (CHAT, {"messages": ASKED, "functions": [TOOL["function"]]}),
}
NO_FORM = (
    "has a chat template without tools, or one that writes calls in another form than JSON with a "
    "name and arguments, and Pion reads no other"
)
WHY = {
    "Open WebUI": NO_FORM,
    "Continue": NO_FORM,
    "Agents": "has no tools in /v1/responses; /v1/chat/completions may have them",
    "an older client": "takes functions by their newer name: send them as tools",
}


def post(served, path, body):
    return served.ask("POST", f"/v1/{path}", json={"model": "chat", **body})


@pytest.mark.parametrize("name", REQUESTS)
def test_what_front_ends_send_is_answered(name, served):
    path, body = REQUESTS[name]
    answer = post(served, path, body)
    assert answer.status_code == 200, answer.text
    assert "Pion-Warning" not in answer.headers
    assert ('"choices"' if path != RESPONSES else '"output"') in answer.text


@pytest.mark.parametrize("name", OFFERS)
def test_offered_tools_are_refused_with_the_option_that_ignores_them(name, served):
    path, body = OFFERS[name]
    answer = post(served, path, body)
    field = "functions" if "functions" in body else "tools"
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == field
    why = WHY[name]
    assert answer.json()["error"]["message"] == (
        f"chat {why}. To get answers without tools, leave them out, or start the server with "
        "--ignore-tools"
    )


@pytest.fixture(scope="module")
def ignoring(run_folder):
    with serving(
        {"chat": find_model(f"{run_folder}/demo")}, slots=2, queue=2, seq_len=100, ignore_tools=True
    ) as server:
        yield server


@pytest.mark.parametrize("name", OFFERS)
def test_with_the_option_the_answer_is_that_without_tools(name, ignoring):
    path, body = OFFERS[name]
    field = "functions" if "functions" in body else "tools"
    found = post(ignoring, path, {**body, "stream": False, "seed": 3})
    assert found.status_code == 200
    assert found.headers["Pion-Warning"] == f"{field} were ignored"
    bare = {name: value for name, value in body.items() if name != field}
    wanted = post(ignoring, path, {**bare, "stream": False, "seed": 3})
    assert "Pion-Warning" not in wanted.headers
    if path == RESPONSES:
        assert found.json()["tools"] == []
        content = [one.json()["output"][0]["content"] for one in (found, wanted)]
    else:
        content = [one.json()["choices"][0]["message"] for one in (found, wanted)]
    assert content[0] == content[1]


def test_a_tool_that_must_be_called_is_refused_also_with_the_option(ignoring):
    for choice in ("required", {"type": "function", "function": {"name": "f"}}):
        answer = post(ignoring, CHAT, {"messages": ASKED, "tools": [TOOL], "tool_choice": choice})
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] == "tool_choice"
