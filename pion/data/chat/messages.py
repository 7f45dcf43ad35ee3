"""Conversations as a model's own chat template gets them: messages and tools as in the data.

Pion's own template needs roles and texts alone (`pion.data.chat.conversation`). A template of
others can also write calls of tools, their results and the tools themselves, so nothing is left out
here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pion.data.chat.conversation import defused, nothing_to_learn, role_of, unknown_role
from pion.errors import BadInput
from pion.later_fields import shown

# The roles that templates know. `developer` is a newer name of `system`.
KNOWN_ROLES = ("system", "developer", "user", "assistant", "tool")
Message = dict[str, Any]


@dataclass(frozen=True)
class Conversation:
    """Messages and the tools that they may call, as a template gets them.

    `where` is the record's file and line, for errors.
    """

    messages: Sequence[Message]
    tools: Sequence[dict[str, Any]] | None
    where: str


def parse_messages(record: Any, where: str) -> Conversation:
    """Return the conversation of a record in one of the layouts of `parse_conversation`.

    A message keeps all of its keys (`tool_calls`, `name`, …), and its content may be null. Only
    keys that are null are left out, because tables have every key in every row. Other names
    of roles (`role_of`) become these. Messages after the last answer teach nothing and are left
    out.

    Args:
        where: the record's file and line, for errors.

    Raises:
        BadInput: the record has another layout, an unknown role, or no answer.
    """
    if isinstance(record, dict) and isinstance(record.get("conversations"), list):
        turns, role_key, text_key = record["conversations"], "from", "value"
    elif isinstance(record, dict) and isinstance(record.get("messages"), list):
        turns, role_key, text_key = record["messages"], "role", "content"
    else:
        raise BadInput(
            f"{where}: not a conversation: expected a list under 'conversations' "
            f"([{{from, value}}]) or 'messages' ([{{role, content}}]), found {shown(record)}"
        )
    messages = [
        _message(turn, role_key, text_key, f"{where}: turn {number}")
        for number, turn in enumerate(turns, 1)
    ]
    answers = sum(message["role"] == "assistant" for message in messages)
    messages = [message for message in messages if says_something(message)]
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    if not messages:
        raise nothing_to_learn(answers, where)
    return Conversation(messages, _tools(record.get("tools"), where), where)


def harmless(conversation: Conversation, specials: Iterable[str]) -> Conversation:
    """Return the conversation with texts stripped and special tokens in them defused.

    See `pion.data.chat.conversation` for how and why texts are defused; here it covers calls and
    tools too.
    """
    specials = tuple(specials)
    stripped = [
        {**message, "content": message["content"].strip()} if message.get("content") else message
        for message in conversation.messages
    ]
    messages: list[Message] = [_defused(message, specials) for message in stripped]
    return Conversation(messages, _defused(conversation.tools, specials), conversation.where)


def _message(turn: Any, role_key: str, text_key: str, where: str) -> Message:
    if not isinstance(turn, dict) or not isinstance(turn.get(role_key), str):
        raise BadInput(f"{where} must be an object with text under {role_key!r}: {shown(turn)}")
    named = turn[role_key].strip().lower()
    role = named if named in KNOWN_ROLES else role_of(named)
    if role is None:
        raise unknown_role(turn[role_key], KNOWN_ROLES, where)
    content = turn.get(text_key)
    if not isinstance(content, str | None):
        raise BadInput(f"{where}: {text_key!r} must be text or null, not {shown(content)}")
    rest = {key: value for key, value in turn.items() if value is not None}
    rest = {key: value for key, value in rest.items() if key not in (role_key, text_key)}
    return {"role": role, "content": content, **rest}


def says_something(message: Message) -> bool:
    """Return whether a message has a text or calls. An empty result of a tool says something."""
    return bool(
        (message.get("content") or "").strip()
        or message.get("tool_calls")
        or message["role"] == "tool"
    )


def system_texts(conversation: Conversation) -> list[str]:
    """Return the texts of the system messages."""
    roles = ("system", "developer")
    return [m["content"] or "" for m in conversation.messages if m["role"] in roles]


def _tools(tools: Any, where: str) -> list[dict[str, Any]] | None:
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise BadInput(f"{where}: 'tools' must be a list of objects, not {shown(tools)}")
    return tools


def _defused(value: Any, specials: tuple[str, ...]) -> Any:
    """Return the value with special tokens defused in all of its texts and keys."""
    if isinstance(value, str):
        for special in specials:
            value = value.replace(special, defused(special))
        return value
    if isinstance(value, dict):
        return {_defused(key, specials): _defused(item, specials) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_defused(item, specials) for item in value]
    return value
