"""The JSON of answers: OpenAI's objects of chats and completions, whole and in chunks."""

from __future__ import annotations

import codecs
import json
import time
import uuid
from abc import ABC, abstractmethod
from collections import ChainMap, Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any, ClassVar

from pion.data.chat.tool_call_form import Call
from pion.data.tokens.tokenizer import Tokenizer
from pion.generation.answer import Drawn, Logprobs
from pipeline.models.program_parts import PROGRAM_PARTS
from pipeline.serve.answers import Answers, FinishReason, Part
from pipeline.serve.errors import ApiError
from pipeline.serve.requests import Request

Json = dict[str, Any]


def _counts(answers: Answers) -> Json:
    """Return the counts of tokens and the times."""
    timings = answers.timings
    counts: Json = {
        "prompt_tokens": answers.prompt_tokens,
        "completion_tokens": answers.completion_tokens,
        "total_tokens": answers.prompt_tokens + answers.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": answers.cached_tokens},
        **ChainMap(*(part.usage(timings) for part in PROGRAM_PARTS.values())),
    }
    return {"usage": counts, "timings": timings}


def _event(chunk: Json) -> bytes:
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


class Shape(ABC):
    """The objects of one request's answers."""

    # What ids begin with, and what the object of a part is called.
    names: ClassVar[tuple[str, str]]

    def __init__(self, model: str, tokenizer: Tokenizer, *, logprobs: bool) -> None:
        self._tokenizer, self._logprobs = tokenizer, logprobs
        id, name = f"{self.names[0]}-{uuid.uuid4().hex}", self.names[1]
        self._head = {"id": id, "created": int(time.time()), "model": model, "object": name}
        # The calls, or the characters, in each answer's earlier parts.
        self._earlier: Counter[int] = Counter()

    def first_chunks(self, choices: int) -> list[Json]:
        """Return what a stream begins with."""
        return []

    @abstractmethod
    def chunk(self, part: Part) -> Json:
        """Return a part of an answer."""

    async def events(self, answers: Answers, asked: Request) -> AsyncIterator[bytes]:
        """Yield the server-sent events of a stream."""
        for chunk in self.first_chunks(answers.choices):
            yield _event(chunk)
        try:
            async for part in answers.parts():
                timings = {"timings": answers.timings} if asked.timings_per_token else {}
                yield _event(self.chunk(part) | timings)
            if asked.stream_options is not None and asked.stream_options.include_usage:
                yield _event(self._chunk([]) | _counts(answers))
        except ApiError as error:  # the status has been sent
            yield _event(error.body())
        yield b"data: [DONE]\n\n"

    def _chunk(self, choices: list[Json]) -> Json:
        return self._head | {"choices": choices}


class ChatShape(Shape):
    """The objects of /v1/chat/completions."""

    names = ("chatcmpl", "chat.completion.chunk")

    def first_chunks(self, choices: int) -> list[Json]:
        """Return what a stream begins with: who speaks."""
        delta = {"role": "assistant", "content": ""}
        return [self._chunk([self._delta(number, delta, None)]) for number in range(choices)]

    def chunk(self, part: Part) -> Json:
        """Return a part of an answer."""
        delta: Json = {"content": part.text} if part.text else {}
        first = self._earlier[part.choice]
        self._earlier[part.choice] += len(part.calls)
        calls = [{"index": i, **_call(call)} for i, call in enumerate(part.calls, first)]
        delta |= _more(part, calls)
        choice = self._delta(part.choice, delta, part.finish_reason)
        if self._logprobs and part.tokens:
            choice["logprobs"] = self._logprobs_of(part.tokens)
        return self._chunk([choice])

    def whole(self, parts: Sequence[Part], answers: Answers) -> Json:
        """Return all answers at once."""
        choices = [
            {
                "index": part.choice,
                "message": {
                    "role": "assistant",
                    "content": None if part.calls and not part.text else part.text,
                    "refusal": None,
                }
                | _more(part, list(map(_call, part.calls))),
                "logprobs": self._logprobs_of(part.tokens) if self._logprobs else None,
                "finish_reason": part.finish_reason,
            }
            for part in parts
        ]
        return self._chunk(choices) | {"object": "chat.completion"} | _counts(answers)

    def _delta(self, number: int, delta: Json, reason: FinishReason | None) -> Json:
        return {"index": number, "delta": delta, "logprobs": None, "finish_reason": reason}

    def _logprobs_of(self, tokens: Sequence[Drawn]) -> Json:
        return {"content": logprobs_of(self._tokenizer, tokens), "refusal": None}


def _more(part: Part, calls: list[Json]) -> Json:
    """Return the thoughts and calls of a message, where there are any."""
    thought = {"reasoning_content": part.thought} if part.thought else {}
    return thought | ({"tool_calls": calls} if calls else {})


def _call(call: Call) -> Json:
    # Mistral's template wants such an id.
    function = {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)}
    return {"id": uuid.uuid4().hex[:9], "type": "function", "function": function}


class CompletionShape(Shape):
    """The objects of /v1/completions."""

    names = ("cmpl", "text_completion")

    def chunk(self, part: Part) -> Json:
        """Return a part of an answer."""
        sent = self._earlier[part.choice]
        self._earlier[part.choice] += len(part.text)
        return self._chunk([self._choice(part, sent)])

    def whole(self, parts: Sequence[Part], answers: Answers) -> Json:
        """Return all answers at once."""
        return self._chunk([self._choice(part, 0) for part in parts]) | _counts(answers)

    def _choice(self, part: Part, offset: int) -> Json:
        shown = self._logprobs and part.tokens
        return {
            "index": part.choice,
            "text": part.text,
            "logprobs": self._logprobs_of(part.tokens, offset) if shown else None,
            "finish_reason": part.finish_reason,
        }

    def _logprobs_of(self, tokens: Sequence[Drawn], offset: int) -> Json:
        offsets, decoder = [], codecs.getincrementaldecoder("utf-8")("replace")
        for token in tokens:
            offsets.append(offset)
            offset += len(decoder.decode(self._tokenizer.bytes_of(token.token)))
        found = [token.logprobs for token in tokens]  # of a prompt's first token: none
        return {
            "tokens": [token_text(self._tokenizer, token.token) for token in tokens],
            "token_logprobs": [None if one is None else one.drawn for one in found],
            "top_logprobs": [None if one is None else self._top(one) for one in found],
            "text_offset": offsets,
        }

    def _top(self, found: Logprobs) -> Json:
        values: Json = {}
        for other, value in found.top:  # the likeliest of several ids with the same text
            values.setdefault(token_text(self._tokenizer, other), value)
        return values


def logprobs_of(tokenizer: Tokenizer, tokens: Sequence[Drawn]) -> list[Json]:
    """Return tokens with their log-probabilities and likeliest alternatives."""

    def named(token: int, logprob: float) -> Json:
        data = tokenizer.bytes_of(token)
        return {"token": token_text(tokenizer, token), "logprob": logprob, "bytes": [*data]}

    found = []
    for token in tokens:
        assert token.logprobs is not None
        top = [named(other, value) for other, value in token.logprobs.top]
        found.append(named(token.token, token.logprobs.drawn) | {"top_logprobs": top})
    return found


def token_text(tokenizer: Tokenizer, token: int) -> str:
    """Return a token as text. Bytes of no whole character are written `bytes:\\xe2\\x82`."""
    data = tokenizer.bytes_of(token)
    if not data:
        return tokenizer.decode([token], specials=True)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
