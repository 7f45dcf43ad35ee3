"""How a chat template writes the calls of tools, learned from what it writes for a known call.

Templates differ in what stands around a call and in the names of its keys: `<tool_call>` and
`"arguments"` (Qwen, Hermes), nothing and `"parameters"` (Llama 3.1), `[TOOL_CALLS]` and a list
(Mistral). So a template is asked, and no format is known by its name. Calls must be JSON with a
name and arguments.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pion.data.chat.messages import Conversation
from pion.errors import BadInput
from pion.untrusted import parse_json

# Names that are in no template. Mistral's wants ids of nine letters.
_NAME, _ARGUMENTS = "pion_asks_how", {"pion_asks_what": "pion_asks_this"}
_ID = "pionasks1"
_CALLED = {"name": _NAME, "arguments": _ARGUMENTS}
_TOOL = {"name": _NAME, "description": "Tell how.", "parameters": {"type": "object"}}
PROBE = Conversation(
    [
        {"role": "user", "content": "Hello"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": _ID, "type": "function", "function": _CALLED}],
        },
    ],
    [{"type": "function", "function": _TOOL}],
    "a question and a call",
)


@dataclass(frozen=True)
class Call:
    """A call of a tool."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class CallForm:
    """How calls are written: JSON between two texts, each of which may be empty.

    Attributes:
        opening: the text before the JSON, with the spaces between them.
        closing: the text after it.
        name: the key of the tool's name.
        arguments: the key of the arguments.
        listed: whether the JSON is a list of calls.
    """

    opening: str
    closing: str
    name: str
    arguments: str
    listed: bool

    def calls(self, text: str) -> list[Call] | None:
        """Return the calls in the JSON `text`; None if it is something else."""
        try:
            value = parse_json(text, "the call")
            every = value if isinstance(value, list) else [value]
            return [Call(str(call[self.name]), dict(call[self.arguments])) for call in every]
        except (BadInput, TypeError, KeyError, ValueError):
            return None

    def schema(self, tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return the JSON schema of a call of one of some tools (`{name, parameters}`)."""
        calls: list[dict[str, Any]] = []
        shared: dict[str, Any] = {}
        for tool in tools:
            parameters = dict(tool.get("parameters") or {"type": "object"})
            shared |= parameters.pop("$defs", {})  # its references begin at the root
            calls.append(
                {
                    "type": "object",
                    "properties": {
                        self.name: {"const": tool["name"]},
                        self.arguments: parameters,
                    },
                    "required": [self.name, self.arguments],
                    "additionalProperties": False,
                }
            )
        call = {"anyOf": calls}
        schema = {"type": "array", "items": call, "minItems": 1} if self.listed else call
        return {**schema, "$defs": shared}


def form_of(
    prompt: str, answer: str, marks: Iterable[str], stops: Iterable[str]
) -> CallForm | None:
    """Return the form of calls, from what a template writes for `PROBE`, before and in the answer.

    `marks` are the special tokens, `stops` those at which an answer ends. None if the template has
    no place for tools, or writes calls in another form.
    """
    at = answer.find(_NAME)
    if _NAME not in prompt or at < 0:
        return None
    for begin in (index for index in range(at) if answer[index] in "[{"):
        try:
            value, end = json.JSONDecoder().raw_decode(answer, begin)
        except ValueError:
            continue
        call = value[0] if isinstance(value, list) and value else value
        keys = {str(part): key for key, part in call.items()} if isinstance(call, dict) else {}
        # Around each call, its own id would be another text.
        if not keys.keys() >= {_NAME, str(_ARGUMENTS)} or _ID in answer[:begin] + answer[end:]:
            continue
        # A template may write an empty thought first, and ends the turn after the call.
        opening, closing = answer[:begin].rpartition("</think>")[2], answer[end:]
        for mark in marks:  # Command R: the last one follows thoughts
            opening = opening[max(opening.rfind(mark), 0) :]
        for stop in stops:
            closing = closing.partition(stop)[0]
        name, arguments = keys[_NAME], keys[str(_ARGUMENTS)]
        return CallForm(opening.lstrip(), closing.strip(), name, arguments, isinstance(value, list))
    return None
