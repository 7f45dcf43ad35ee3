"""The messages of a conversation and the tools that it may call, as OpenAI's API writes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from pion.errors import BadInput
from pion.untrusted import parse_json
from pipeline.serve.body import Fields, refused

# More messages fill any context, and take long to check and to render.
MOST_MESSAGES = 10_000
MOST_TOOLS = 1000


class TextPart(Fields):
    """A part of a message. Only texts are supported."""

    without_effect = frozenset({"cache_control"})  # what a proxy may keep
    asks_nothing: ClassVar[Mapping[str, tuple[Any, ...]]] = {"annotations": ([],)}

    type: Literal["text"]
    text: str


def _object(value: Any) -> Any:
    """Return the arguments of a call, which OpenAI's API writes as a text of JSON."""
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value or "{}", "arguments")
    except BadInput as error:
        raise ValueError(str(error)) from None


class CalledFunction(Fields):
    """The tool that a call names, and what the call gives it."""

    without_effect = frozenset({"parsed_arguments"})  # what a client read in `arguments`

    name: str
    arguments: Annotated[dict[str, Any], BeforeValidator(_object)]


class ToolCall(Fields):
    """A call in an assistant's message."""

    without_effect = frozenset({"index"})

    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


def _checked_tool(tool: dict[str, Any]) -> dict[str, Any]:
    """Return a tool as it was sent, because templates show all of it."""
    match tool:
        case {"type": "function", "function": {"name": str(), **function}} if isinstance(
            function.get("parameters"), dict | None
        ):
            return tool
    raise ValueError(
        'tools must have objects such as {"type": "function", "function": {"name": "clock", '
        '"parameters": {"type": "object"}}}'
    )


Tools = Annotated[
    list[Annotated[dict[str, Any], AfterValidator(_checked_tool)]],
    Field(fail_fast=True, max_length=MOST_TOOLS),
]


def in_parts(value: Any) -> Any:
    """Return a text as the list of its only part, and anything else as it is."""
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


class ChatMessage(Fields):
    """A message of a conversation. `developer` is a newer name of `system`.

    Clients send a server's messages back with all their fields, so null and empty ones are fine.
    """

    # litellm puts an answer's fields that it does not know into this one.
    # `parsed` is what a client read in the text of an answer.
    without_effect = frozenset({"provider_specific_fields", "parsed", "cache_control"})
    asks_nothing: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "refusal": ("",),
        "annotations": ([],),
        "audio": (),
        "function_call": ({},),
        "reasoning": ("",),
    }

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[
        list[TextPart] | None,
        Field(fail_fast=True, max_length=MOST_MESSAGES),
        BeforeValidator(in_parts),
    ] = None
    name: str | None = None
    tool_calls: Annotated[list[ToolCall] | None, Field(fail_fast=True, max_length=MOST_TOOLS)] = (
        None
    )
    tool_call_id: str | None = None
    reasoning_content: str | None = None

    @model_validator(mode="after")
    def _check(self) -> ChatMessage:
        if self.content is None and self.role != "assistant":
            raise refused("content", f"content is missing in a message of role {self.role}")
        return self

    @property
    def text(self) -> str:
        """The text of the message."""
        return "".join(part.text for part in self.content or ())

    def to_template(self) -> dict[str, Any]:
        """Return the message as templates expect it."""
        given = self.model_dump(
            include={"tool_calls", "tool_call_id", "reasoning_content"}, exclude_none=True
        )
        if self.role == "tool":
            given["name"] = self.name
        role = "system" if self.role == "developer" else self.role
        content = None if self.content is None and self.tool_calls else self.text
        return {"role": role, "content": content} | {k: v for k, v in given.items() if v}


Messages = Annotated[
    list[ChatMessage], Field(fail_fast=True, min_length=1, max_length=MOST_MESSAGES)
]
