"""OpenAI's own client gets from the server what it expects, and what `pion.generate` draws."""

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Annotated

import httpx
import pytest
import torch
from pydantic import BaseModel, Field

import pion
from pipeline.serve.body import MOST_UNFINISHED
from tests.support.waiting import PATIENCE_SECONDS, wait_until

QUESTION = [{"role": "user", "content": "What is a fox?"}]


@pytest.fixture(scope="module")
def chat_model(served):
    return served.models[0]


def drawn(model, ids, **settings):
    ends = {"stop_ids": model.stop_ids, "vocab_size": model.tokenizer.vocab_size}
    return model.tokenizer.decode(list(pion.generate(model.model, ids, **ends, **settings)))


def create_chat(client, **settings):
    return client.chat.completions.create(model="chat", messages=QUESTION, **settings)


def question_ids(model):
    return model._format.prompt_ids(QUESTION)


def test_models_are_listed_with_what_a_page_needs(client):
    assert [model.id for model in client.models.list().data] == ["chat", "base"]
    facts = client.models.retrieve("base").model_extra or {}
    assert facts["max_model_len"] == 256
    assert facts["pion"]["chat"] is False
    assert facts["pion"]["sampling"] == {
        "temperature": 0.8,
        "top_k": 50,
        "top_p": 0.9,
        "repetition_penalty": 1.0,
        "min_p": 0.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "max_tokens": 128,
    }


def test_a_seeded_answer_is_what_the_library_draws(client, chat_model):
    found = create_chat(
        client,
        seed=5,
        max_tokens=20,
        temperature=1.1,
        top_p=0.8,
        presence_penalty=0.5,
        frequency_penalty=-0.2,
        logit_bias={"65": 2},
        extra_body={"top_k": 30, "repetition_penalty": 1.2, "min_p": 0.01},
    )
    ids = question_ids(chat_model)
    wanted = drawn(
        chat_model,
        ids,
        seed=5,
        max_tokens=20,
        temperature=1.1,
        top_p=0.8,
        top_k=30,
        repetition_penalty=1.2,
        min_p=0.01,
        presence_penalty=0.5,
        frequency_penalty=-0.2,
        logit_bias={65: 2},
    )
    assert found.choices[0].message.content == wanted
    assert found.usage.prompt_tokens == len(ids)
    assert found.usage.total_tokens == len(ids) + found.usage.completion_tokens


def test_an_answer_ends_before_a_stop_id_of_its_own(client, chat_model):
    asked = {"model": "base", "prompt": "The", "max_tokens": 8, "seed": 1}
    whole = client.completions.create(**asked).choices[0].text
    (stop,) = chat_model.tokenizer.encode(whole[3])
    more = {"stop_token_ids": [stop], "ignore_eos": True}
    ended = client.completions.create(**asked, extra_body=more).choices[0]
    assert ended.finish_reason == "stop"
    assert ended.text == whole[: whole.index(whole[3])]


class Person(BaseModel):
    name: Annotated[str, Field(max_length=8)]
    age: Annotated[int, Field(ge=0, le=120)]


def test_an_answer_fits_the_schema_that_the_client_made(client):
    """Streamed, in several choices, and while another answer is written without a schema."""
    free = {"model": "base", "messages": QUESTION, "seed": 2, "max_tokens": 100}
    alone = client.chat.completions.create(**free).choices[0].message.content
    with ThreadPoolExecutor(1) as thread:
        meanwhile = thread.submit(client.chat.completions.create, **free)
        found = client.chat.completions.parse(**free, response_format=Person, n=3)
        assert meanwhile.result().choices[0].message.content == alone
    assert [choice.finish_reason for choice in found.choices] == ["stop"] * 3
    people = [choice.message.parsed for choice in found.choices]
    assert all(isinstance(person, Person) for person in people)
    schema = Person.model_json_schema() | {"additionalProperties": False}  # as `parse` sends it
    asked = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}
    parts = client.chat.completions.create(**free, response_format=asked, stream=True)
    text = "".join(part.choices[0].delta.content or "" for part in parts)
    assert Person.model_validate_json(text) == people[0]
    any_object = client.chat.completions.create(**free, response_format={"type": "json_object"})
    assert any_object.choices[0].message.content.startswith("{")


def test_chats_are_answered_while_a_schema_is_compiled(client, monkeypatch):
    compiling, answered = threading.Event(), threading.Event()

    def compiled(grammar):
        compiling.set()
        return "" if answered.wait(PATIENCE_SECONDS) else "no chat was answered"

    monkeypatch.setattr("pion.generation.grammar._why_not", compiled)
    asked = {"model": "chat", "messages": QUESTION, "max_tokens": 2}
    with ThreadPoolExecutor(1) as thread:
        slow = thread.submit(
            client.chat.completions.create, **asked, response_format={"type": "json_object"}
        )
        assert compiling.wait(PATIENCE_SECONDS)
        client.chat.completions.create(**asked, timeout=PATIENCE_SECONDS / 2)
        answered.set()
        assert (slow.result().choices[0].message.content or "").startswith("{")


def test_a_stream_adds_up_to_the_whole_answer(client):
    asked = {"model": "chat", "messages": QUESTION, "seed": 3, "max_tokens": 30}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(stream=True, **asked))
    assert all(chunk.usage is None for chunk in chunks)
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content
    reasons = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons[:-1] == [None] * (len(chunks) - 1)
    assert reasons[-1] == whole.choices[0].finish_reason


def test_the_timings_are_those_of_the_server(served):
    asked = {"model": "base", "prompt": "The", "max_tokens": 6, "ignore_eos": True}
    start = time.monotonic()
    whole = served.ask("POST", "/v1/completions", json=asked).json()["timings"]
    took = 1000 * (time.monotonic() - start)
    assert whole["predicted_n"] == 6
    assert 0 < whole["prompt_ms"] + whole["predicted_ms"] <= took
    assert whole["predicted_per_second"] == pytest.approx(1000 * 5 / whole["predicted_ms"])
    for asks, chunks in (({"timings_per_token": True}, None), ({}, 0)):
        text = served.ask("POST", "/v1/completions", json={**asked, "stream": True, **asks}).text
        events = [json.loads(line[6:]) for line in text.split("\n\n") if "{" in line]
        found = [event["timings"]["predicted_n"] for event in events if "timings" in event]
        assert len(found) == (len(events) if chunks is None else chunks)
        assert found == sorted(found)


def test_n_answers_are_drawn_from_consecutive_seeds(client, chat_model):
    found = create_chat(client, seed=7, n=3, max_tokens=10)
    ids = question_ids(chat_model)
    assert [choice.index for choice in found.choices] == [0, 1, 2]
    for number, choice in enumerate(found.choices):
        assert choice.message.content == drawn(chat_model, ids, seed=7 + number, max_tokens=10)
    chunks = create_chat(client, seed=7, n=3, max_tokens=10, stream=True)
    texts = ["", "", ""]
    for chunk in chunks:
        for part in chunk.choices:
            texts[part.index] += part.delta.content or ""
    assert texts == [choice.message.content for choice in found.choices]


def test_log_probabilities_in_both_shapes(client):
    chat = create_chat(client, seed=2, max_tokens=9, logprobs=True, top_logprobs=3)
    tokens = chat.choices[0].logprobs.content
    assert tokens
    data = b"".join(bytes(token.bytes or []) for token in tokens)
    assert data.decode(errors="replace") == chat.choices[0].message.content
    for token in tokens:
        assert len(token.top_logprobs) == 3
        assert token.logprob <= token.top_logprobs[0].logprob <= 0
    found = client.completions.create(
        model="base", prompt="The quick", max_tokens=6, temperature=0, logprobs=2
    )
    logprobs = found.choices[0].logprobs
    text = found.choices[0].text
    for token_text, offset, top in zip(
        logprobs.tokens, logprobs.text_offset, logprobs.top_logprobs, strict=True
    ):
        assert text[offset : offset + len(token_text)] == token_text
        assert max(top, key=lambda name: top[name]) == token_text  # greedy


def test_several_prompts_ids_and_echo(client, served):
    base = served.models[1]
    ids = base.tokenizer.prompt("The quick")
    asked = {"model": "base", "max_tokens": 5, "temperature": 0}
    text = client.completions.create(prompt="The quick", **asked).choices[0].text
    assert text == drawn(base, ids, max_tokens=5, temperature=0)
    for prompt in (ids, [ids, ids], ["The quick"]):
        found = client.completions.create(prompt=prompt, echo=True, **asked)
        assert {choice.text for choice in found.choices} == {"The quick" + text}
    nothing = client.completions.create(model="base", prompt="The quick", max_tokens=0, echo=True)
    assert nothing.choices[0].text == "The quick"


def test_an_echoed_prompt_has_the_probabilities_of_its_tokens(client, served, monkeypatch):
    """As lm-eval's `local-completions` asks: the lists end with the drawn token, a stop id too."""
    monkeypatch.setattr("pion.generation.engine.PIECE", 8)
    base = served.models[1]
    prompts = [base.tokenizer.prompt("The quick brown fox jumps over it " * n) for n in (1, 4)]
    asked = {"model": "base", "prompt": prompts, "echo": True, "temperature": 0}
    monkeypatch.setattr(base, "stop_ids", tuple(range(base.tokenizer.vocab_size)))  # any id ends
    for most, stream in ((1, False), (1, True), (0, False)):
        found = [[], []]
        if stream:
            for chunk in client.completions.create(
                **asked, max_tokens=most, logprobs=2, stream=True
            ):
                found[chunk.choices[0].index].append(chunk.choices[0].logprobs)
        else:
            whole = client.completions.create(**asked, max_tokens=most, logprobs=2)
            found = [[choice.logprobs] for choice in whole.choices]
        for ids, parts in zip(prompts, found, strict=True):
            every = base.model(torch.tensor([ids]))[0].detach().log_softmax(-1)
            values = [one for part in parts if part for one in part.token_logprobs]
            tops = [one for part in parts if part for one in part.top_logprobs]
            assert len(values) == len(tops) == len(ids) + most
            assert values[0] is tops[0] is None
            wanted = [float(every[place, token]) for place, token in enumerate(ids[1:])]
            wanted += [float(every[-1].max())] * most
            assert values[1:] == pytest.approx(wanted, abs=1e-4)
            for place, top in enumerate(tops[1:]):
                assert max(top.values()) == pytest.approx(float(every[place].max()), abs=1e-4)


def test_a_text_that_spells_a_special_token_is_not_scored(client, served):
    """lm-eval counts the tokens of its contexts with a tokenizer that reads it as one id."""

    import openai

    end = served.models[1].tokenizer.end_of_text
    asked = {"model": "base", "max_tokens": 1, "echo": True}
    for prompt in ("<|endoftext|>The", ["The", "The<|endoftext|>"]):
        with pytest.raises(openai.BadRequestError, match=r"spells <\|endoftext\|>.* list of ids"):
            client.completions.create(prompt=prompt, logprobs=1, **asked)
        assert client.completions.create(prompt=prompt, **asked).choices[0].text
    scored = client.completions.create(prompt=[end, 70], logprobs=1, **asked).choices[0].logprobs
    assert len(scored.token_logprobs or []) == 3


def test_a_text_that_can_t_fit_is_refused_before_it_is_encoded(client, served, monkeypatch):
    import openai

    for model in served.models:
        for place, name in ((model._format, "prompt_ids"), (type(model.tokenizer), "prompt")):
            monkeypatch.setattr(place, name, lambda *_: pytest.fail("it was encoded"))
    long = "a" * 1_000_000
    with pytest.raises(openai.BadRequestError, match="1,000,000 bytes, and base has a context of"):
        client.completions.create(model="base", prompt=["The", long])
    with pytest.raises(openai.BadRequestError, match="1,000,000 bytes, and chat") as caught:
        client.chat.completions.create(model="chat", messages=[{"role": "user", "content": long}])
    assert caught.value.code == "context_length_exceeded"
    begun = [{"role": "user", "content": "a"}, {"role": "assistant", "content": long}]
    body = {"model": "chat", "messages": begun, "continue_final_message": True}
    for path in ("/tokenize", "/chat/completions"):
        with pytest.raises(openai.BadRequestError, match="1,000,000 bytes, and chat"):
            client.post(path, body=body, cast_to=object)


def test_a_long_text_is_counted_while_other_texts_are_encoded(client, served, monkeypatch):
    begun, answered = threading.Event(), threading.Event()
    tokenizer = served.models[0].tokenizer
    encode = type(tokenizer).prompt

    def slowly(self, text):
        if text == "long":
            begun.set()
            assert answered.wait(PATIENCE_SECONDS), "no other text was encoded meanwhile"
        return encode(self, text)

    monkeypatch.setattr(type(tokenizer), "prompt", slowly)
    body = {"model": "base", "prompt": "long"}
    with ThreadPoolExecutor(1) as pool:
        counted = pool.submit(client.post, "/tokenize", body=body, cast_to=object)
        assert begun.wait(PATIENCE_SECONDS)
        client.completions.create(model="base", prompt="The", max_tokens=1)
        answered.set()
        assert counted.result()


def test_an_answer_is_continued(client, chat_model):
    begun = [*QUESTION, {"role": "assistant", "content": "A fox is"}]
    found = client.chat.completions.create(
        model="chat",
        messages=begun,
        seed=4,
        max_tokens=9,
        extra_body={"continue_final_message": True},
    )
    ids = question_ids(chat_model) + chat_model.tokenizer.encode("A fox is")
    assert found.choices[0].message.content == drawn(chat_model, ids, seed=4, max_tokens=9)


def test_the_count_of_a_prompt_is_that_of_its_answer(served, client):
    body = {"model": "chat", "messages": QUESTION}
    counted = served.ask("POST", "/v1/tokenize", json=body).json()
    answer = create_chat(client, max_tokens=1)
    assert counted["count"] == answer.usage.prompt_tokens == len(counted["tokens"])
    assert counted["max_model_len"] == 256


def test_a_base_model_answers_chats_and_says_that_it_has_no_template(client):
    raw = client.chat.completions.with_raw_response
    answer = raw.create(model="base", messages=QUESTION, max_tokens=2)
    assert "no chat template" in answer.headers["Pion-Warning"]
    assert "Pion-Warning" not in raw.create(model="chat", messages=QUESTION, max_tokens=1).headers


def test_a_client_that_closes_its_stream_frees_the_slot(client, served):
    stream = client.completions.create(
        model="base", prompt="The", max_tokens=250, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    stream.close()
    wait_until(lambda: served.models[1].engine.load() == (0, 0), "the slot is free")


WRONG = {
    "unknown model": ({"model": "gpt"}, 404, "there are: chat, base"),
    "no model": ({"model": None}, 400, "it is one of: chat, base"),
    "temperature is infinite": ({"temperature": 1e999}, 400, "JSON"),
    "empty stop": ({"stop": ""}, 400, "stop"),
    "a bias of no token": ({"logit_bias": {"99999": 1}}, 400, "logit_bias has the id 99999"),
    "a schema that can't be met": (
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "x", "schema": {"enum": []}},
            }
        },
        400,
        "this schema can't be used: Unsatisfiable",
    ),
    **{
        f"a schema without end: {name}": (
            {"response_format": {"type": "json_schema", "schema": schema, "name": "x"}},
            400,
            "the schema can't be followed: it refers to itself without end, or allows too much",
        )
        for name, schema in {
            "itself": {"$ref": "#"},
            "two": {"$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}]}}, "$ref": "#/$defs/a"},
            "1,500 optional properties": {
                "type": "object",
                "properties": {f"p{number}": {"type": "string"} for number in range(1500)},
            },
        }.items()
    },
    "no schema": (
        {"response_format": {"type": "json_schema"}},
        400,
        "response_format: schema is missing",
    ),
    "a format": ({"response_format": {"type": "xml"}}, 400, "response_format.type should be"),
    "unknown field": ({"temprature": 1}, 400, "temprature"),
    "no messages": ({"messages": []}, 400, "messages"),
    "an image": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
        400,
        "messages",
    ),
    "continue what": ({"continue_final_message": True}, 400, "assistant"),
    "a long prompt": (
        {"messages": [{"role": "user", "content": "fox " * 300}]},
        400,
        "context of 256 tokens",
    ),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_wrong_request_gets_an_error_that_says_what_is_wrong(wrong, served):
    changes, status, words = wrong
    text = openai_json({"model": "chat", "messages": QUESTION, "max_tokens": 1, **changes})
    headers = {"Content-Type": "application/json"}
    answer = served.ask("POST", "/v1/chat/completions", content=text, headers=headers)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert words in error["message"]
    assert error.keys() == {"message", "type", "param", "code"}


def openai_json(body):
    return json.dumps(body).replace("Infinity", "1e999")


def test_a_prompt_of_too_many_tokens_is_refused(client):
    import openai

    with pytest.raises(openai.BadRequestError, match="tokens, and base has") as caught:
        client.completions.create(model="base", prompt="fox " * 300)
    assert caught.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"prompt": ', 400),
        (b"[1, 2]", 400),
        (b"\xff\xfe", 400),
        (b"[" * 100_000, 400),
        (b'{"prompt": "' + b"x" * 10_000_000 + b'"}', 413),
    ],
    ids=["cut", "a list", "no UTF-8", "deep", "10 MB"],
)
def test_a_malformed_body_is_refused(body, status, served):
    headers = {"Content-Type": "application/json"}
    try:
        answer = served.ask("POST", "/v1/completions", content=body, headers=headers)
    except httpx.WriteError:  # the server closed the connection before it had read everything
        assert status == 413
        return
    assert answer.status_code == status
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd"])
def test_a_damaged_compressed_body_is_refused(coding, served):
    headers = {"Content-Type": "application/json", "Content-Encoding": coding}
    for body in (b"not compressed", b"\x1f\x8b\x08\x00" * 9):
        answer = served.ask("POST", "/v1/completions", content=body, headers=headers)
        assert answer.status_code == 400
        assert answer.json()["error"]["type"] == "invalid_request_error"


def test_a_special_token_as_a_stop_ends_the_answer(client, chat_model):
    mark, id = next(
        (text, id)
        for text, id in chat_model.tokenizer.special_ids.items()
        if id not in chat_model.stop_ids
    )
    biased = {"logit_bias": {str(id): 100}, "max_tokens": 8}
    assert create_chat(client, **biased).choices[0].finish_reason == "length"
    found = create_chat(client, stop=[mark], **biased)
    assert found.choices[0].finish_reason == "stop"
    assert found.usage.completion_tokens == 0


def test_fields_that_ask_for_what_there_is_are_accepted(client):
    part = {"type": "text", "text": "What?", "cache_control": {"type": "ephemeral"}}
    extra = {"skip_special_tokens": True, "min_tokens": 0, "prompt_logprobs": None, "new": None}
    message = {"role": "user", "content": [part]}
    client.chat.completions.create(model="chat", messages=[message], max_tokens=1, extra_body=extra)


def test_clients_that_never_end_their_bodies_take_no_room_of_others(served, client):
    address = served.url.removeprefix("http://")
    head = f"POST /v1/completions HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n"
    host, port = address.split(":")
    with ExitStack() as stack:
        for _ in range(MOST_UNFINISHED + 8):
            slow = stack.enter_context(socket.create_connection((host, int(port))))
            slow.sendall(f"{head}Content-Length: 9\r\n\r\n{{".encode())
        assert create_chat(client, max_tokens=1).choices
        slow.setblocking(False)
        with pytest.raises(BlockingIOError):  # the newest waits, and the oldest have given up
            slow.recv(1)


def test_a_path_may_end_with_a_slash(served):
    for path in ("", "/", "/chat", "/chat/"):
        assert served.ask("GET", f"/v1/models{path}").status_code == 200
    assert served.ask("GET", "/v1/models/nobody/").status_code == 404
