"""OpenAI's Responses API for texts: its request, the Response object, and the events of a stream.

Nothing is stored: a client sends the whole conversation with each request.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from pion.later_fields import shown
from pipeline.serve.answers import Answers, Part
from pipeline.serve.body import Fields, refused
from pipeline.serve.errors import ApiError
from pipeline.serve.requests import MOST_MESSAGES, ChatMessage, Request, TextPart
from pipeline.serve.shapes import Json


class _Typed(Fields):
    """An object whose `type` says what else is in it. Other types are refused by name."""

    types: ClassVar[tuple[str | None, ...]] = ()

    @model_validator(mode="before")
    @classmethod
    def _of_known_type(cls, fields: Any) -> Any:
        """Check the type first, so that an image is not refused for its other fields."""
        if isinstance(fields, dict) and fields.get("type") not in cls.types:
            possible = " or ".join(name for name in cls.types if name is not None)
            kind = shown(fields.get("type"))
            raise refused("type", f"this server has no type {kind} here; it must be {possible}")
        return fields


class InputPart(_Typed):
    """A part of a message. Only texts are supported."""

    types = ("input_text", "output_text", "text")
    without_effect = frozenset({"prompt_cache_breakpoint"})
    asks_nothing: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "annotations": ([],),
        "logprobs": ([],),
        "parsed": (),
    }

    type: str
    text: str


def _parts(value: Any) -> Any:
    return [{"type": "input_text", "text": value}] if isinstance(value, str) else value


class InputMessage(_Typed):
    """A message of the input, or an item of an earlier Response's `output`."""

    types = ("message", None)
    without_effect = frozenset({"id", "status", "phase"})

    type: str | None = None
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        list[InputPart],
        Field(fail_fast=True, max_length=MOST_MESSAGES),
        BeforeValidator(_parts),
    ]

    def to_chat(self) -> ChatMessage:
        """Return the same message of a chat."""
        parts = [TextPart(type="text", text=part.text) for part in self.content]
        return ChatMessage(role=self.role, content=parts)


def _messages(value: Any) -> Any:
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


class Reasoning(Fields):
    """How long a model thinks. The models here don't, so only "not at all" is accepted."""

    without_effect = frozenset({"summary", "generate_summary"})
    asks_nothing: ClassVar[Mapping[str, tuple[Any, ...]]] = {"effort": ("none",)}


class TextOutput(Fields):
    """What the text of an answer is. To support JSON, make `format` a field here."""

    asks_nothing: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "format": ({"type": "text"},),
        "verbosity": (),
    }


class ResponsesRequest(Request):
    """The body of POST /v1/responses."""

    without_effect = Request.without_effect | {"prompt_cache_options", "max_tool_calls"}
    asks_nothing: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **Request.asks_nothing,
        # The other one asks for the thoughts of a model that thinks.
        "include": ([], ["reasoning.encrypted_content"]),
        "truncation": ("disabled",),
        "background": (False,),
        "previous_response_id": (),
        "conversation": (),
        "prompt": (),
        "context_management": ([],),
        "moderation": (),
        "top_logprobs": (0,),
    }

    input: Annotated[
        list[InputMessage],
        Field(fail_fast=True, min_length=1, max_length=MOST_MESSAGES),
        BeforeValidator(_messages),
    ]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    text: TextOutput | None = None
    reasoning: Reasoning | None = None

    @model_validator(mode="after")
    def _check(self) -> ResponsesRequest:
        if self.max_tokens is not None:
            raise refused("max_tokens", "this server has max_output_tokens here, not max_tokens")
        if self.n not in (None, 1):
            raise refused("n", f"n is {self.n}; a response has one answer")
        return self

    @property
    def messages(self) -> list[ChatMessage]:
        """The conversation that the answer follows."""
        begin: list[ChatMessage] = []
        if self.instructions is not None:
            parts = [TextPart(type="text", text=self.instructions)]
            begin = [ChatMessage(role="system", content=parts)]
        return begin + [message.to_chat() for message in self.input]


class ResponseShape:
    """The Response object of one request, and the events of its stream."""

    def __init__(self, model: str, asked: ResponsesRequest, sampling: Mapping[str, Any]) -> None:
        """`sampling` are the settings where the request gives none."""
        self._item_id = f"msg_{uuid.uuid4().hex}"
        self._timings_per_token = bool(asked.timings_per_token)
        self._sent = 0  # events
        self._head: Json = {
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "model": model,
            "output": [],
            "error": None,
            "incomplete_details": None,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "temperature": _or_else(asked.temperature, sampling["temperature"]),
            "top_p": _or_else(asked.top_p, sampling["top_p"]),
            "text": {"format": {"type": "text"}},
            "reasoning": {"effort": None, "summary": None},
            "tools": [],
            "tool_choice": "auto",
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "background": False,
            "store": False,
            "truncation": "disabled",
            "metadata": {},
            "usage": None,
        }

    def whole(self, answer: Part, answers: Answers) -> Json:
        """Return the Response of an answer that has ended."""
        cut = answer.finish_reason == "length"
        status = "incomplete" if cut else "completed"
        ends = {"incomplete_details": {"reason": "max_output_tokens"}} if cut else {}
        output = [self._item(answer.text, status)]
        return self._ended(status, output, answers) | ends

    async def events(self, answers: Answers) -> AsyncIterator[bytes]:
        """Yield the events of the answer's stream."""
        yield self._event("response.created", response=self._head)
        yield self._event("response.in_progress", response=self._head)
        empty: Json = self._item("", "in_progress") | {"content": []}
        yield self._event("response.output_item.added", output_index=0, item=empty)
        yield self._of_part("response.content_part.added", part=_text(""))
        text, last = "", None
        try:
            async for last in answers.parts():
                text += last.text
                if last.text:
                    more = {"timings": answers.timings} if self._timings_per_token else {}
                    yield self._of_part(
                        "response.output_text.delta", delta=last.text, logprobs=[], **more
                    )
        except ApiError as error:  # the status has been sent
            yield self._event("response.failed", response=self._failed(text, error, answers))
            return
        assert last is not None
        response = self.whole(Part(0, text, [], last.finish_reason), answers)
        yield self._of_part("response.output_text.done", text=text, logprobs=[])
        yield self._of_part("response.content_part.done", part=_text(text))
        item = response["output"][0]
        yield self._event("response.output_item.done", output_index=0, item=item)
        yield self._event(f"response.{response['status']}", response=response)

    def _failed(self, text: str, error: ApiError, answers: Answers) -> Json:
        found = error.body()["error"]
        output = [self._item(text, "incomplete")]
        # OpenAI's codes have no other one for a server's failure.
        why = {**found, "code": "server_error"}
        return self._ended("failed", output, answers) | {"error": why}

    def _ended(self, status: str, output: list[Json], answers: Answers) -> Json:
        return self._head | {
            "status": status,
            "completed_at": int(time.time()) if status == "completed" else None,
            "output": output,
            "usage": _usage(answers),
            "timings": answers.timings,
        }

    def _item(self, text: str, status: str) -> Json:
        return {
            "id": self._item_id,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": [_text(text)],
        }

    def _of_part(self, kind: str, **fields: Any) -> bytes:
        place = {"item_id": self._item_id, "output_index": 0, "content_index": 0}
        return self._event(kind, **place, **fields)

    def _event(self, kind: str, **fields: Any) -> bytes:
        data = json.dumps({"type": kind, "sequence_number": self._sent, **fields})
        self._sent += 1
        return f"event: {kind}\ndata: {data}\n\n".encode()


def _text(text: str) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(answers: Answers) -> Json:
    return {
        "input_tokens": answers.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": answers.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": answers.prompt_tokens + answers.completion_tokens,
    }


def _or_else(value: float | None, default: float) -> float:
    return default if value is None else value
