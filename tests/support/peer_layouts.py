"""Own examples of the layouts that peers document, and what each of them means.

`tests/fixtures/layouts/PEER/LAYOUT.jsonl` has the records, and `expected.yaml` next to it has for
each layout the stage that reads it, and for each record

    messages             what a conversation is; `learned: false` marks an answer that is context
    prompt, chosen, rejected                    a pair
    prompt, answer, desired                     an answer with a label
    text                                        a document
    refused              words of the refusal
    unread               the keys that are said to be unread
    warned               those of them that `pion check` warns of

A message is its role and its text, with `calls` (arguments as objects) and `thinking`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pion.data.chat.messages import Conversation, answers_in
from pion.data.documents.file_to_documents import Span, jsonl_records

FOLDER = Path(__file__).parent.parent / "fixtures" / "layouts"
THOUGHTS = ("reasoning_content", "reasoning", "thinking")


@dataclass(frozen=True)
class Example:
    """A record of a peer's layout, and what it means."""

    stage: str
    value: dict[str, Any]
    where: str
    means: dict[str, Any]

    @property
    def name(self) -> str:
        """The layout and the line: axolotl/sharegpt.jsonl:1."""
        return "/".join(Path(self.where).parts[-2:])


def examples() -> list[Example]:
    """Return all of them, read as a job reads JSON Lines."""
    found = []
    for file in sorted(FOLDER.glob("*/expected.yaml")):
        layouts = yaml.safe_load(file.read_text())
        assert {path.stem for path in file.parent.glob("*.jsonl")} == set(layouts), file
        for name, layout in layouts.items():
            records = list(jsonl_records([Span(file.parent / f"{name}.jsonl")], "sft.sources"))
            for record, means in zip(records, layout["records"], strict=True):
                found.append(Example(layout["stage"], record.value, record.origin, means))
    return found


def as_in_a_table(values: Sequence[Any]) -> list[Any]:
    """Return values as rows of a table: each object has the keys of all at its place, as nulls."""
    objects = [value for value in values if isinstance(value, dict)]
    if objects:
        names = dict.fromkeys(name for value in objects for name in value)
        columns = {name: as_in_a_table([value.get(name) for value in objects]) for name in names}
        rows = iter([dict(zip(columns, row)) for row in zip(*columns.values())])
        return [next(rows) if isinstance(value, dict) else value for value in values]
    lists = [value for value in values if isinstance(value, list)]
    items = iter(as_in_a_table([item for value in lists for item in value]) if lists else [])
    return [[next(items) for _ in value] if isinstance(value, list) else value for value in values]


def conversation_said(conversation: Conversation) -> dict[str, Any]:
    """Return what a conversation says, as `expected.yaml` writes it."""
    learned = answers_in(conversation)
    said = [
        _message(message, learned=number in learned)
        for number, message in enumerate(conversation.messages)
    ]
    names = [tool.get("function", tool)["name"] for tool in conversation.tools or ()]
    return {"messages": said} | ({"tools": names} if names else {})


def as_messages(said: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return messages of `expected.yaml` as transformers' templates get them."""
    messages = []
    for one in said:
        role, content = next(iter(one.items()))
        message: dict[str, Any] = {"role": role, "content": content or ""}
        if "calls" in one:
            calls = [{"type": "function", "function": call} for call in one["calls"]]
            message["tool_calls"] = calls
        if "thinking" in one:
            message["reasoning_content"] = one["thinking"]
        messages.append(message)
    return messages


def _message(message: dict[str, Any], *, learned: bool) -> dict[str, Any]:
    role = "system" if message["role"] == "developer" else message["role"]
    content = message["content"]
    said: dict[str, Any] = {role: content.strip() if content else None}
    if calls := message.get("tool_calls"):
        said["calls"] = [_call(call) for call in calls]
    thoughts = {message[key] for key in THOUGHTS if message.get(key)}
    if thoughts:
        (said["thinking"],) = thoughts
    if role == "assistant" and not learned:
        said["learned"] = False
    return said


def _call(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function", call)
    arguments = function["arguments"]
    if isinstance(arguments, str):
        arguments = json.loads(arguments)
    return {"name": function["name"], "arguments": arguments}
