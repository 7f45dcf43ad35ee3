"""Turn a conversation into token ids and a mask of the learned ids.

Training, chatting and the published model use one template. Each turn is ``<|system|>``,
``<|user|>`` or ``<|assistant|>``, a newline, the stripped text and a newline; an assistant's turn
ends with the end-of-text token. If the tokenizer puts a first token before a text (Llama's), the
conversation starts with it. Empty turns are dropped, and so are the results of tools. The role
markers are ordinary text, but the end of a turn is the special id.

If a text spells out a special token, because a user quotes "<|endoftext|>" for example, we insert a
space ("< |endoftext|>"). Our own tokenizer would encode the quote as text anyway. But other
programs render the published template and tokenize the result, and they could not distinguish the
quote from the end of a turn.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np

from pion.data.tokens.tokenizer import Tokenizer
from pion.errors import BadInput
from pion.later_fields import closest, shown

Role = Literal["system", "user", "assistant"]

# The names of roles in data sets, and the role that each name means.
ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}
# Other names, which Pion reads and says. They are not in `chat_template`: its text must not change.
ALIASES: dict[str, Role] = {
    "developer": "system",
    "prompter": "user",
    "instruction": "user",
    "question": "user",
    "ai": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "chatbot": "assistant",
    "answer": "assistant",
    "response": "assistant",
}
# What could control a terminal, or change the direction of its text. Newlines and tabs may stay.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def role_of(name: str) -> Role | None:
    """Return the role that a name means, in any letter case; None for an unknown name."""
    lower = name.strip().lower()
    return ROLES.get(lower) or ALIASES.get(lower)


def unknown_role(name: str, roles: Iterable[str], where: str) -> BadInput:
    """Return the refusal of a turn, at `where`, whose role is none of `roles`."""
    roles = tuple(roles)
    near = closest(name.strip().lower(), (*roles, *ROLES, *ALIASES))
    return BadInput(
        f"{where} has the unknown role {shown(name)}{near}. The roles are {', '.join(roles)}"
    )


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation, with its text as written; ``render`` strips the text. Of answers,
    `learned` says whether they are learned, or only seen."""

    role: Role
    text: str
    learned: bool = True


class Tokenized(NamedTuple):
    """A conversation as ids, int32 ``(n,)``, and a mask of the learned ids, bool ``(n,)``."""

    ids: np.ndarray
    learned: np.ndarray


def render(
    tokenizer: Tokenizer, turns: Iterable[Turn], *, add_generation_prompt: bool = False
) -> tuple[str, list[tuple[int, int]]]:
    """Return the text of a conversation and the ``[start, end)`` spans of its answers.

    They count characters. The span of an answer has its text, newline and end-of-text. With
    ``add_generation_prompt`` the text ends where the assistant's next answer begins.
    """
    text, spans = "", []
    for turn in turns:
        content = defused(turn.text, tokenizer.specials).strip()
        if not content:
            continue
        text += f"<|{turn.role}|>\n"
        start = len(text)
        text += f"{content}\n"
        if turn.role == "assistant":
            text += tokenizer.end_of_text_token
            spans.append((start, len(text)))
    if add_generation_prompt:
        text += "<|assistant|>\n"
    return text, spans


def tokenize(
    tokenizer: Tokenizer, turns: Iterable[Turn], *, add_generation_prompt: bool = False
) -> Tokenized:
    """Return the ids of a conversation and its mask of learned ids.

    The prompt up to ``<|assistant|>\\n`` has the same ids with and without an answer after it:
    texts are stripped, so no token spans the marker's newline and the answer.
    """
    (tokenized,) = tokenize_batch(tokenizer, [turns], add_generation_prompt=add_generation_prompt)
    return tokenized


def tokenize_batch(
    tokenizer: Tokenizer,
    conversations: Iterable[Iterable[Turn]],
    *,
    add_generation_prompt: bool = False,
) -> list[Tokenized]:
    """Return ``tokenize`` of each conversation, using all cores."""
    conversation_turns = [list(turns) for turns in conversations]
    prompt = add_generation_prompt
    rendered = [
        render(tokenizer, turns, add_generation_prompt=prompt) for turns in conversation_turns
    ]
    tokenized = _tokenize_rendered(tokenizer, rendered)
    return [
        _only_learned(tokenizer, turns, tokenized_turns)
        for turns, tokenized_turns in zip(conversation_turns, tokenized)
    ]


def _only_learned(tokenizer: Tokenizer, turns: Sequence[Turn], tokenized: Tokenized) -> Tokenized:
    """Return a conversation with a mask without the answers that are only seen."""
    answers = [turn.learned for turn in turns if turn.role == "assistant" and turn.text.strip()]
    if all(answers):
        return tokenized
    ends = np.flatnonzero(tokenized.learned & (tokenized.ids == tokenizer.end_of_text))
    of_learned = np.array([*answers, False])[np.searchsorted(ends, np.arange(len(tokenized.ids)))]
    return Tokenized(tokenized.ids, tokenized.learned & of_learned)


def chat_template(tokenizer: Tokenizer) -> str:
    """Return a Jinja template that gives the same ids in transformers as ``tokenize``."""
    roles: dict[str, list[str]] = {}
    for alias, role in ROLES.items():
        roles.setdefault(role, []).append(alias)
    defuse = "".join(
        f" | replace({_literal(special)}, {_literal(defused(special, [special]))})"
        for special in tokenizer.specials
    )
    first = ""
    if tokenizer.first is not None:
        first = f"{{{{ {_literal(tokenizer.decode([tokenizer.first], specials=True))} }}}}"
    end = {"assistant": _literal(tokenizer.end_of_text_token)}
    branches = "".join(
        f"{{%- {'if' if i == 0 else 'elif'} message['role'] in {json.dumps(aliases)} -%}}"
        f'{{{{ "<|{role}|>\\n" + content + "\\n" + {end.get(role, _literal(""))} }}}}'
        for i, (role, aliases) in enumerate(roles.items())
    )
    return (
        f"{first}"
        "{%- for message in messages -%}"
        "{%- if message['content'] is string -%}"
        f"{{%- set content = message['content']{defuse} | trim -%}}"
        f"{{%- if content -%}}{branches}{{%- endif -%}}{{%- endif -%}}"
        "{%- endif -%}"
        "{%- endfor -%}"
        '{%- if add_generation_prompt -%}{{ "<|assistant|>\\n" }}{%- endif -%}'
    )


def response_template(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return how transformers finds the answer in what a model with `chat_template` has written.

    This is the `response_template` of a tokenizer_config.json. Without it, `transformers serve`
    looks for the marks of Qwen's template in each Qwen3, and answers with the prompt as well.
    """
    end = re.escape(tokenizer.end_of_text_token)
    return {
        "defaults": {"role": "assistant"},
        "start_anchor": "<|assistant|>\n",
        "fields": {"content": {"close_pattern": rf"\n?{end}", "content": "text"}},
    }


def _literal(text: str) -> str:
    # Jinja string literals support JSON's escapes, except for surrogate pairs.
    return json.dumps(text, ensure_ascii=False)


def defused(text: str, specials: Iterable[str]) -> str:
    """Return a text with a space in each special token, so that it is ordinary text."""
    for special in specials:
        text = text.replace(special, f"{special[0]} {special[1:]}")
    return text


def _tokenize_rendered(
    tokenizer: Tokenizer, rendered: Sequence[tuple[str, list[tuple[int, int]]]]
) -> list[Tokenized]:
    # The text between two end-of-text tokens is encoded as one piece. Texts can't spell the token,
    # so piece number k ends with learned span number k. The text after the last span is not
    # learned.
    end = tokenizer.end_of_text_token
    pieces: list[str] = []
    learned_from: list[int] = []  # within each piece, in characters
    for text, spans in rendered:
        start = 0
        for learned_start, learned_end in spans:
            pieces.append(text[start : learned_end - len(end)])
            learned_from.append(learned_start - start)
            start = learned_end
        pieces.append(text[start:])
        learned_from.append(len(text) - start)
    encoded = iter(tokenizer.encode_batch_from(pieces, learned_from))

    tokenized = []
    for _, spans in rendered:
        ids, before = next(encoded)
        tokens = len(ids)
        ids = tokenizer.start_document(ids)
        learned = [False] * (before + len(ids) - tokens) + [True] * (tokens - before)
        for _ in spans:
            piece_ids, before = next(encoded)
            ids += [tokenizer.end_of_text, *piece_ids]
            learned += [True] + [False] * before + [True] * (len(piece_ids) - before)
        tokenized.append(Tokenized(np.array(ids, np.int32), np.array(learned, np.bool_)))
    return tokenized


def marked_text(tokenizer: Tokenizer, conversation: Tokenized, most: int = 1000) -> str:
    """Return the text of a conversation as the model sees it, special tokens included.

    Learned tokens are between ⟦ and ⟧. At most `most` tokens are shown, and how many follow.
    Control characters become U+FFFD.
    """
    ids, learned = conversation.ids[:most], conversation.learned[:most]
    borders = np.flatnonzero(np.diff(learned)) + 1
    parts = []
    for start, end in pairwise([0, *borders.tolist(), len(ids)]):
        text = _CONTROL.sub(
            "\N{REPLACEMENT CHARACTER}", tokenizer.decode(ids[start:end].tolist(), specials=True)
        )
        marked = start < end and bool(learned[start])
        parts.append(f"⟦{text}⟧" if marked else text)
    more = len(conversation.ids) - len(ids)
    return "".join(parts) + (f"\n… ({more:,} more tokens)" if more else "")
