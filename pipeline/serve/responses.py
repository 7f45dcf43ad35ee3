"""/v1/responses, OpenAI's Responses API for texts: what clients may ask, the Response object, and
the events of a stream.

Nothing is stored: a client sends the whole conversation with each request.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from pion.data.tokens.tokenizer import Tokenizer
from pion.generation.answer import Drawn
from pion.later_fields import shown
from pipeline.serve.answer_json import Json, logprobs_of
from pipeline.serve.answers import Answers, Part, joined
from pipeline.serve.body import Fields, refused
from pipeline.serve.errors import ApiError
from pipeline.serve.messages import MOST_MESSAGES, ChatMessage, in_parts
from pipeline.serve.requests import MOST_ALTERNATIVES, ConversationRequest, Request, TextFormat

LOGPROBS = "message.output_text.logprobs"


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
    # An answer that is sent back also has its probabilities, and what the client read in its text.
    without_effect = frozenset({"prompt_cache_breakpoint", "logprobs", "parsed"})
    asks_nothing: ClassVar[Mapping[str, tuple[Any, ...]]] = {"annotations": ([],)}

    type: str
    text: str


class InputMessage(_Typed):
    """A message of the input, or an item of an earlier Response's `output`."""

    types = ("message", None)
    without_effect = frozenset({"id", "status", "phase"})

    type: str | None = None
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        list[InputPart],
        Field(fail_fast=True, max_length=MOST_MESSAGES),
        BeforeValidator(in_parts),
    ]


class Reasoning(Fields):
    """How long a model thinks. The models here don't, so only "not at all" is accepted."""

    without_effect = frozenset({"summary", "generate_summary"})
    asks_nothing: ClassVar[Mapping[str, tuple[Any, ...]]] = {"effort": ("none",)}


class TextOutput(Fields):
    """What the text of an answer is."""

    asks_nothing: ClassVar[Mapping[str, tuple[Any, ...]]] = {"verbosity": ()}

    format: TextFormat | None = None


class ResponsesRequest(ConversationRequest):
    """The body of POST /v1/responses."""

    without_effect = ConversationRequest.without_effect | {"prompt_cache_options", "max_tool_calls"}
    asks_nothing: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **ConversationRequest.asks_nothing,
        "truncation": ("disabled",),
        "background": (False,),
        "previous_response_id": (),
        "conversation": (),
        "prompt": (),
        "context_management": ([],),
        "moderation": (),
    }

    input: Annotated[
        list[InputMessage],
        Field(fail_fast=True, min_length=1, max_length=MOST_MESSAGES),
        BeforeValidator(lambda v: [{"role": "user", "content": v}] if isinstance(v, str) else v),
    ]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    text: TextOutput | None = None
    reasoning: Reasoning | None = None
    # The other one asks for the thoughts of a model that thinks.
    include: (
        Annotated[
            list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]],
            Field(fail_fast=True, max_length=9),
        ]
        | None
    ) = None
    top_logprobs: Annotated[int, Field(ge=0, le=MOST_ALTERNATIVES)] | None = None

    @model_validator(mode="after")
    def _check(self) -> ResponsesRequest:
        if self.max_tokens is not None:
            raise refused("max_tokens", "this server has max_output_tokens here, not max_tokens")
        if self.n not in (None, 1):
            raise refused("n", f"n is {self.n}; a response has one answer")
        if self.top_logprobs and not self.logprobs:
            raise refused("top_logprobs", f'top_logprobs needs include: ["{LOGPROBS}"]')
        return self

    @property
    def logprobs(self) -> bool:
        """Whether the answer has the log-probabilities of its tokens."""
        return LOGPROBS in (self.include or ())

    @property
    def answer_format(self) -> TextFormat | None:
        """What the text of the answer is; None: any text."""
        return self.text.format if self.text else None

    @property
    def messages(self) -> list[ChatMessage]:
        """The conversation that the answer follows."""
        told = [] if self.instructions is None else [("system", self.instructions)]
        said = [(item.role, "".join(part.text for part in item.content)) for item in self.input]
        return [ChatMessage.model_validate({"role": r, "content": t}) for r, t in [*told, *said]]


class ResponseShape:
    """The Response object of one request, and the events of its stream."""

    def __init__(
        self,
        model: str,
        tokenizer: Tokenizer,
        asked: ResponsesRequest,
        sampling: Mapping[str, Any],
    ) -> None:
        """`sampling` are the settings where the request gives none."""
        self._tokenizer, self._logprobs = tokenizer, asked.logprobs
        asked_format = asked.answer_format or TextFormat(type="text")
        given = {"temperature": asked.temperature, "top_p": asked.top_p}
        self._item_id = f"msg_{uuid.uuid4().hex}"
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
            **{name: sampling[name] if value is None else value for name, value in given.items()},
            "top_logprobs": asked.top_logprobs or 0,
            "text": {"format": asked_format.model_dump(by_alias=True, exclude_unset=True)},
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

    def whole(self, parts: Sequence[Part], answers: Answers) -> Json:
        """Return the Response of the only answer, which has ended."""
        (answer,) = parts
        cut = answer.finish_reason == "length"
        status = "incomplete" if cut else "completed"
        ends = {"incomplete_details": {"reason": "max_output_tokens"}} if cut else {}
        output = [self._item(self._text(answer.text, answer.tokens), status)]
        return self._ended(status, output, answers) | ends

    async def events(self, answers: Answers, asked: Request) -> AsyncIterator[bytes]:
        """Yield the events of the answer's stream."""
        yield self._event("response.created", response=self._head)
        yield self._event("response.in_progress", response=self._head)
        empty: Json = self._item(self._text(""), "in_progress") | {"content": []}
        yield self._event("response.output_item.added", output_index=0, item=empty)
        yield self._of_part("response.content_part.added", part=self._text(""))
        parts: list[Part] = []
        try:
            async for part in answers.parts():
                parts.append(part)
                if part.text or (self._logprobs and part.tokens):
                    more = {"timings": answers.timings} if asked.timings_per_token else {}
                    more["logprobs"] = self._text(part.text, part.tokens)["logprobs"]
                    yield self._of_part("response.output_text.delta", delta=part.text, **more)
        except ApiError as error:  # the status has been sent
            so_far = joined([Part(0, "", [], None), *parts])
            yield self._event("response.failed", response=self._failed(so_far, error, answers))
            return
        response = self.whole([joined(parts)], answers)
        item = response["output"][0]
        text = item["content"][0]
        yield self._of_part(
            "response.output_text.done", text=text["text"], logprobs=text["logprobs"]
        )
        yield self._of_part("response.content_part.done", part=text)
        yield self._event("response.output_item.done", output_index=0, item=item)
        yield self._event(f"response.{response['status']}", response=response)

    def _failed(self, so_far: Part, error: ApiError, answers: Answers) -> Json:
        found = error.body()["error"]
        output = [self._item(self._text(so_far.text, so_far.tokens), "incomplete")]
        # OpenAI's codes have no other one for a server's failure.
        return self._ended("failed", output, answers) | {"error": {**found, "code": "server_error"}}

    def _ended(self, status: str, output: list[Json], answers: Answers) -> Json:
        return self._head | {
            "status": status,
            "completed_at": int(time.time()) if status == "completed" else None,
            "output": output,
            "usage": {
                "input_tokens": answers.prompt_tokens,
                "input_tokens_details": {
                    "cached_tokens": answers.cached_tokens,
                    "cache_write_tokens": 0,
                },
                "output_tokens": answers.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": answers.prompt_tokens + answers.completion_tokens,
            },
            "timings": answers.timings,
        }

    def _item(self, text: Json, status: str) -> Json:
        return {
            "id": self._item_id,
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": [text],
        }

    def _text(self, text: str, tokens: Sequence[Drawn] = ()) -> Json:
        found = logprobs_of(self._tokenizer, tokens) if self._logprobs else []
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": found}

    def _of_part(self, kind: str, **fields: Any) -> bytes:
        place = {"item_id": self._item_id, "output_index": 0, "content_index": 0}
        return self._event(kind, **place, **fields)

    def _event(self, kind: str, **fields: Any) -> bytes:
        data = json.dumps({"type": kind, "sequence_number": self._sent, **fields})
        self._sent += 1
        return f"event: {kind}\ndata: {data}\n\n".encode()
