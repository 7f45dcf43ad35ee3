"""What clients may ask of /v1/responses: OpenAI's Responses API for texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from pion.later_fields import shown
from pipeline.serve.answer_format import TextFormat
from pipeline.serve.body import Fields, refused
from pipeline.serve.messages import MOST_MESSAGES, ChatMessage, in_parts
from pipeline.serve.requests import MOST_ALTERNATIVES, ConversationRequest

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


def _messages(value: Any) -> Any:
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


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
        BeforeValidator(_messages),
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
