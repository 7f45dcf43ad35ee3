"""Texts in which the turns of a conversation are marked, read back into messages.

A chat template was applied to many data sets: ChatML (`<|im_start|>user`), or that of Llama 2 or 3,
Gemma, Phi, Zephyr or Alpaca. Anthropic's texts begin with "\\n\\nHuman:".
"""

from __future__ import annotations

import re

from pion.data.chat.messages import Message, without_ends
from pion.data.records.turns import read_turns
from pion.errors import BadInput

# What begins a turn, with the name of its role. Of headings, an answer must be there: people write
# headings, too.
_MARKS = tuple(
    re.compile(pattern, re.DOTALL)
    for pattern in (
        r"\n\n(Human|Assistant):\s*",
        r"<\|im_start\|>(\w+)\n?",
        r"<\|start_header_id\|>(\w+)<\|end_header_id\|>(?:\n\n)?",
        r"<start_of_turn>(\w+)\n?",
        r"<\|(system|user|assistant)\|>\n?",
        r"(?:<s>\s*)?(\[/?INST\]) ?",
        r"(?<![^\n])### (Response|Assistant|(?:Instruction|Human|User|System|Question)"
        r"(?=:.*\n### (?:Response|Assistant):)):[ ]*\n?",
    )
)
# What templates write before the first turn. The last is Alpaca's.
_FIRST = re.compile(
    r"(?:\s*(?:<s>|<bos>|<\|begin_of_text\|>)\s*)*(?:Below is an instruction[^#]*)?", re.DOTALL
)
_SYSTEM = re.compile(r"<<SYS>>\n?(.*?)\n?<</SYS>>\s*", re.DOTALL)
_ROLES = {"[INST]": "user", "[/INST]": "assistant"}


def marked(text: object) -> list[str]:
    """Return what is before the first turn of a text in which turns are marked, and then the name
    and the text of each turn; nothing of a text that does not begin with a mark."""
    if not isinstance(text, str) or (first := _FIRST.match(text)) is None:
        return []
    return next((mark.split(text) for mark in _MARKS if mark.match(text, first.end())), [])


def transcript(text: str, place: str, *, ends_open: bool = False) -> list[Message]:
    """Return the messages of a text in which turns are `marked`.

    With `ends_open`, the answer after the last mark is still missing: it is a prompt.

    Raises:
        BadInput: a role is unknown, a prompt has an answer, or Human and Assistant do not take
            turns.
    """
    before, *parts = marked(text)
    if parts[0] == "Human":
        _require_turns(parts[::2], place)
    system_text = before.rpartition(">")[2].strip()
    turns = [{"role": "system", "content": system_text}] if system_text else []
    for name, part in zip(parts[::2], parts[1::2]):
        content = without_ends(part).rstrip()
        if (system := _SYSTEM.match(content)) is not None:
            turns.append({"role": "system", "content": system[1]})
            content = content[system.end() :]
        turns.append({"role": _ROLES.get(name, name), "content": content})
    messages = read_turns(turns, place)
    if ends_open and messages[-1]["role"] == "assistant" and messages.pop()["content"]:
        raise BadInput(f'{place} must end with "{parts[-2]}:", without an answer')
    return messages


def _require_turns(names: list[str], where: str) -> None:
    for number, name in enumerate(names, 1):
        if name != ("Human", "Assistant")[(number - 1) % 2]:
            raise BadInput(
                f"{where}: turn {number} is by {name} again: Human and Assistant must take turns"
            )
    if names[-1] != "Assistant":
        raise BadInput(f"{where} ends with a turn of Human, without an answer of Assistant")
