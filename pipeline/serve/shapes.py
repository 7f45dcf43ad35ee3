"""The JSON of answers: OpenAI's objects of chats and completions, whole and in chunks."""

from __future__ import annotations

import codecs
import json
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from typing import Any

from pion.data.chat.call_form import Call
from pion.data.tokens.tokenizer import Tokenizer
from pion.generation.answer import Logprobs
from pipeline.serve.answers import Answers, FinishReason, Part, Token

Json = dict[str, Any]


def usage(answers: Answers) -> Json:
    """Return the counts of tokens."""
    counts: Json = {
        "prompt_tokens": answers.prompt_tokens,
        "completion_tokens": answers.completion_tokens,
        "total_tokens": answers.prompt_tokens + answers.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": answers.cached_tokens},
    }
    if answers.drafted_tokens:
        counts["completion_tokens_details"] = {
            "accepted_prediction_tokens": answers.accepted_tokens,
            "rejected_prediction_tokens": answers.drafted_tokens - answers.accepted_tokens,
        }
    return counts


class ChatShape:
    """The objects of /v1/chat/completions."""

    def __init__(self, model: str, tokenizer: Tokenizer, *, logprobs: bool) -> None:
        self._tokenizer, self._logprobs = tokenizer, logprobs
        self._head = _head("chatcmpl", model)
        self._called: Counter[int] = Counter()  # the calls in each answer's earlier parts

    def first_chunks(self, choices: int) -> list[Json]:
        """Return what a stream begins with: who speaks."""
        delta = {"role": "assistant", "content": ""}
        return [self._chunk([self._delta(number, delta, None)]) for number in range(choices)]

    def chunk(self, part: Part) -> Json:
        """Return a part of an answer."""
        delta: Json = {"content": part.text} if part.text else {}
        first = self._called[part.choice]
        self._called[part.choice] += len(part.calls)
        calls = [{"index": i, **_call(call)} for i, call in enumerate(part.calls, first)]
        delta |= _more(part, calls)
        choice = self._delta(part.choice, delta, part.finish_reason)
        if self._logprobs and part.tokens:
            choice["logprobs"] = self._logprobs_of(part.tokens)
        return self._chunk([choice])

    def last_chunk(self, counts: Json) -> Json:
        """Return the chunk with the counts of tokens, which has no choices."""
        return self._chunk([]) | {"usage": counts}

    def whole(self, answers: Sequence[Part], counts: Json) -> Json:
        """Return all answers at once."""
        choices = [
            {
                "index": answer.choice,
                "message": {
                    "role": "assistant",
                    "content": None if answer.calls and not answer.text else answer.text,
                    "refusal": None,
                }
                | _more(answer, list(map(_call, answer.calls))),
                "logprobs": self._logprobs_of(answer.tokens) if self._logprobs else None,
                "finish_reason": answer.finish_reason,
            }
            for answer in answers
        ]
        return self._head | {"object": "chat.completion", "choices": choices, "usage": counts}

    def _chunk(self, choices: list[Json]) -> Json:
        return self._head | {"object": "chat.completion.chunk", "choices": choices}

    def _delta(self, number: int, delta: Json, reason: FinishReason | None) -> Json:
        return {"index": number, "delta": delta, "logprobs": None, "finish_reason": reason}

    def _logprobs_of(self, tokens: Sequence[Token]) -> Json:
        return {"content": logprobs_of(self._tokenizer, tokens), "refusal": None}


def _more(part: Part, calls: list[Json]) -> Json:
    """Return the thoughts and calls of a message, where there are any."""
    thought = {"reasoning_content": part.thought} if part.thought else {}
    return thought | ({"tool_calls": calls} if calls else {})


def _call(call: Call) -> Json:
    # Mistral's template wants such an id.
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    function = {"name": call.name, "arguments": arguments}
    return {"id": uuid.uuid4().hex[:9], "type": "function", "function": function}


class CompletionShape:
    """The objects of /v1/completions."""

    def __init__(self, model: str, tokenizer: Tokenizer, *, logprobs: bool) -> None:
        self._tokenizer, self._logprobs = tokenizer, logprobs
        self._head = _head("cmpl", model) | {"object": "text_completion"}
        self._sent: dict[int, int] = {}  # characters of each answer's earlier parts

    def first_chunks(self, choices: int) -> list[Json]:
        """Return what a stream begins with: nothing."""
        return []

    def chunk(self, part: Part) -> Json:
        """Return a part of an answer."""
        sent = self._sent.get(part.choice, 0)
        self._sent[part.choice] = sent + len(part.text)
        return self._head | {"choices": [self._choice(part, sent)]}

    def last_chunk(self, counts: Json) -> Json:
        """Return the chunk with the counts of tokens, which has no choices."""
        return self.whole([], counts)

    def whole(self, answers: Sequence[Part], counts: Json) -> Json:
        """Return all answers at once."""
        choices = [self._choice(answer, 0) for answer in answers]
        return self._head | {"choices": choices, "usage": counts}

    def _choice(self, part: Part, offset: int) -> Json:
        shown = self._logprobs and part.tokens
        return {
            "index": part.choice,
            "text": part.text,
            "logprobs": self._logprobs_of(part.tokens, offset) if shown else None,
            "finish_reason": part.finish_reason,
        }

    def _logprobs_of(self, tokens: Sequence[Token], offset: int) -> Json:
        offsets, decoder = [], codecs.getincrementaldecoder("utf-8")("replace")
        for token in tokens:
            offsets.append(offset)
            offset += len(decoder.decode(self._tokenizer.bytes_of(token.id)))
        found = [token.logprobs for token in tokens]  # of a prompt's first token: none
        return {
            "tokens": [token_text(self._tokenizer, token.id) for token in tokens],
            "token_logprobs": [None if one is None else one.drawn for one in found],
            "top_logprobs": [None if one is None else self._top(one) for one in found],
            "text_offset": offsets,
        }

    def _top(self, found: Logprobs) -> Json:
        values: Json = {}
        for other, value in found.top:  # the likeliest of several ids with the same text
            values.setdefault(token_text(self._tokenizer, other), value)
        return values


def logprobs_of(tokenizer: Tokenizer, tokens: Sequence[Token]) -> list[Json]:
    """Return tokens with their log-probabilities and likeliest alternatives."""

    def named(token: int, logprob: float) -> Json:
        data = tokenizer.bytes_of(token)
        return {"token": token_text(tokenizer, token), "logprob": logprob, "bytes": [*data]}

    found = []
    for token in tokens:
        assert token.logprobs is not None
        top = [named(other, value) for other, value in token.logprobs.top]
        found.append(named(token.id, token.logprobs.drawn) | {"top_logprobs": top})
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


def _head(prefix: str, model: str) -> Json:
    return {"id": f"{prefix}-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}
