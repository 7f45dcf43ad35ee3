"""Lists of turns in every spelling that data sets have, as messages.

A message has a `role` of KNOWN_ROLES and a `content`, and may have `tool_calls`, what was thought
before it (`reasoning_content`), `learned: False`, and other keys, which a template may use.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pion.data.chat.conversation import ROLES, role_of, unknown_role
from pion.data.chat.messages import KNOWN_ROLES, THOUGHTS, Message
from pion.data.records.fields import is_blank, json_in, yes_or_no
from pion.errors import BadInput
from pion.later_fields import shown

# The keys of a turn's role and text; the first that is there counts.
ROLE_KEYS = ("role", "from", "speaker", "author")
TEXT_KEYS = ("content", "value", "text", "message")
# ShareGPT's and ms-swift's names of calls and of results; the text of a call is JSON.
CALLS = ("function_call", "tool_call")
RESULTS = ("tool", "function", "observation", "tool_response", "function_response", "ipython")
# A message with one of these keys at 0 or false is not learned.
FLAGS = ("weight", "train", "trainable", "training", "loss", "loss_scale", "learned")
_THOUGHTS = (THOUGHTS, "thinking", "reasoning")
# Where a turn is an object with a question and its answer, and the order in which they are said.
_ROUNDS = {"input": "user", "output": "assistant"}
_SAID = ("system", "user", "tool", "assistant")
# With one of these, axolotl learns what the user says.
_LEARNS = ("train", "training", "trainable")
# Of axolotl: which characters of a message are learned.
_PARTLY = ("train_detail", "training_detail")


def read_turns(value: Any, where: str) -> list[Message]:
    """Return the messages of a list of turns, of JSON that says one, or of one turn.

    Raises BadInput, naming `where`, for what is no turn, an unknown role, and what can't be learned
    as it is meant.
    """
    turns = json_in(value, where)
    if isinstance(turns, dict):
        turns = [turns]
    if not isinstance(turns, list):
        raise BadInput(f"{where} must be a list of turns, not {shown(turns)}")
    messages: list[Message] = []
    for number, raw_turn in enumerate(turns, 1):
        for turn in _round(raw_turn):
            message = read_turn(turn, f"{where}: turn {number}")
            # ms-swift writes one turn for a text and for each call after it.
            if role_name(turn) in CALLS and messages and messages[-1]["role"] == "assistant":
                calls = messages[-1].get("tool_calls", [])
                calls = calls + message["tool_calls"]
                messages[-1] = {**message, **messages[-1], "tool_calls": calls}
            else:
                messages.append(message)
    return messages


def _round(turn: Any) -> list[Any]:
    """Return the turns of an object without a role, whose keys are the roles of its texts."""
    keys = turn if isinstance(turn, dict) and role_name(turn) is None else {}
    roles = {key: known_role(key) or _ROUNDS.get(key) for key in keys if keys[key] is not None}
    if "assistant" not in roles.values() or None in roles.values():
        return [turn]
    ordered = sorted(roles, key=lambda key: _SAID.index(roles[key] or ""))
    return [{"role": roles[key], "content": keys[key]} for key in ordered]


def read_turn(turn: Any, where: str) -> Message:
    """Return one message. Raises BadInput as `read_turns` does."""
    named = role_name(turn)
    if named is None:
        keys = " or ".join(map(repr, ROLE_KEYS[:2]))
        raise BadInput(f"{where} must be an object with text under {keys}: {shown(turn)}")
    rest = {key: value for key, value in turn.items() if value is not None}
    role = known_role(named)
    if role is None:
        raise unknown_role(role_said(turn) or "", (*KNOWN_ROLES, *CALLS[:1], *RESULTS[2:3]), where)
    text_key = _key_of(rest, TEXT_KEYS)
    content = None if text_key is None else text_of(rest.pop(text_key), f"{where}: {text_key!r}")
    if named in CALLS:
        rest["tool_calls"], content = json_in(content or "", f"{where}: its call"), None
    if "function_call" in rest:  # OpenAI's, before there were several
        rest.setdefault("tool_calls", [rest.pop("function_call")])
    if not is_blank(calls := rest.pop("tool_calls", None)):
        rest["tool_calls"] = read_calls(calls, f"{where}: its calls")
    message = {"role": role, "content": content}
    spellings = (*ROLE_KEYS, *TEXT_KEYS)
    rest = {key: value for key, value in rest.items() if key not in spellings}
    return message | _learned_and_thought(rest, role, where)


def _learned_and_thought(rest: Message, role: str, where: str) -> Message:
    """Return the other keys of a turn with its flags as `learned`, and its thoughts under the names
    that templates have for them."""
    if (partly := next((key for key in _PARTLY if not is_blank(rest.get(key))), None)) is not None:
        raise BadInput(
            f"{where}: {partly!r} says which characters are learned, and Pion learns whole answers "
            'or none of them. Remove it, or give the message "weight": 0'
        )
    flags = {k: yes_or_no(rest.pop(k), f"{where}: {k!r}") for k in FLAGS if k in rest}
    if role != "assistant" and (key := next((k for k in _LEARNS if flags.get(k)), None)):
        raise BadInput(f"{where}: {key!r} is true, and Pion learns nothing of the role {role}")
    raw_thoughts = [rest.pop(key, None) for key in _THOUGHTS]
    thoughts = [text for text in raw_thoughts if not is_blank(text)]
    if thoughts and not isinstance(thoughts[0], str):
        raise BadInput(f"{where}: its thoughts must be text, not {shown(thoughts[0])}")
    if role == "assistant" and not all(flags.values()):
        rest["learned"] = False
    # No template has both names.
    return rest | ({key: thoughts[0] for key in (THOUGHTS, "thinking")} if thoughts else {})


def role_said(turn: Any) -> str | None:
    """Return a turn's name of its role, as it is written; None if it has none."""
    keys = turn if isinstance(turn, dict) else {}
    role = keys.get(_key_of(keys, ROLE_KEYS) or "")
    return role if isinstance(role, str) else None


def _key_of(turn: Mapping[str, Any], names: Sequence[str]) -> str | None:
    """Return the first of the names that is filled, or that is there if all are blank."""
    present = (name for name in names if turn.get(name) is not None)
    return min(present, key=lambda name: is_blank(turn[name]), default=None)


def role_name(turn: Any) -> str | None:
    """Return a turn's name of its role, in small letters; None if it has none."""
    return plain_name(role_said(turn))


def plain_name(said: str | None) -> str | None:
    """Return a name of a role as the tables here have it."""
    return None if said is None else said.strip().lower().replace("-", "_")


def known_role(named: str) -> str | None:
    """Return the role of KNOWN_ROLES that a name in small letters means; None if nobody knows."""
    if named in KNOWN_ROLES:
        return named
    if named in CALLS:
        return "assistant"
    return "tool" if named in RESULTS else role_of(named)


def text_of(content: Any, where: str) -> str | None:
    """Return a text, or the texts of its parts. Raises BadInput for parts that are no text."""
    if isinstance(content, list):
        return "".join(_part(part, where) for part in content)
    if not isinstance(content, str | None):
        raise BadInput(f"{where} must be text or null, not {shown(content)}")
    return content


def _part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    text = part.get("text") if isinstance(part, dict) else None
    if not isinstance(text, str) or part.get("type", "text") not in ("text", "input_text"):
        kind = part.get("type") if isinstance(part, dict) else part
        raise BadInput(f"{where} has a part that is no text: {shown(kind)}. Pion learns from text")
    return text


def read_calls(calls: Any, where: str) -> list[dict[str, Any]]:
    """Return calls of tools as OpenAI writes them, with arguments that are objects.

    Raises BadInput for what is no call.
    """
    calls = json_in(calls, where)
    read = []
    for call in calls if isinstance(calls, list) else [calls]:
        call = json_in(call, where)
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise BadInput(f"{where}: expected a name and arguments, found {shown(call)}")
        around = {"type": "function"} if function is call else call
        read.append({**around, "function": {**function, "arguments": _arguments(function)}})
    return read


def _arguments(function: dict[str, Any]) -> Any:
    arguments = function.get("arguments", function.get("parameters", {}))
    try:
        parsed = json_in(arguments or {}, "")
    except BadInput:  # what a model wrote may be no JSON
        return arguments
    return parsed if isinstance(parsed, dict) else arguments


def read_tools(tools: Any, where: str) -> list[dict[str, Any]] | None:
    """Return tools as OpenAI writes them; None if there are none.

    Raises BadInput unless they are objects, or JSON that says so.
    """
    if is_blank(tools) or is_blank(tools := json_in(tools, where)):
        return None
    if isinstance(tools, dict):
        tools = [tools]
    tools = [json_in(tool, where) for tool in tools] if isinstance(tools, list) else None
    if tools is None or not all(isinstance(tool, dict) for tool in tools):
        raise BadInput(f"{where} must be a list of objects, not {shown(tools)}")
    bare = ("name" in tool and "function" not in tool for tool in tools)
    return [
        {"type": "function", "function": tool} if alone else tool
        for tool, alone in zip(tools, bare)
    ] or None


def other_names(turns: Iterable[Any]) -> dict[str, str]:
    """Return the names of roles that are not the usual ones, and the role that each was read as."""
    names = {said: known_role(plain_name(said) or "") for said in map(role_said, turns) if said}
    usual = (*ROLES, *KNOWN_ROLES)
    return {name: role for name, role in names.items() if role is not None and name not in usual}
