"""Preferences as sequences of ids with a mask, or why one is left out.

Both sides are rendered as conversations are (`pion.data.chat`): the same template, the same ids.
What is learned of a side: its answers after the last message that both sides share, each up to and
including the end of the turn. So the ids before the first learned one are the prompt. They are the
same on both sides, because the prompt is encoded alone, without an answer. We check each pair.

An answer is never cut: a model that does not see the end of an answer learns not to end, and
a pair of which one side is cut teaches the length of a row.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pion.data.chat.chat_format import ChatFormat
from pion.data.chat.conversation import Tokenized, marked_text
from pion.data.chat.messages import Conversation
from pion.data.chat.packing import Sided, item_length
from pion.data.chat.template import COUNTS, Examples
from pion.data.preference.layouts import Pair, Preference, differs_early, is_empty
from pion.data.tokens.tokenizer import Tokenizer

# Why a preference is left out, as summaries say it.
EMPTY = "an answer is empty"
IDENTICAL = "chosen and rejected are the same tokens"
TIE = "chosen and rejected are equally good"
REWRITTEN = "the chat template rewrites answers before the last one, and the sides differ in these"
ENDLESS = "an answer has no end of turn"
LONGER_THAN_CONTEXT = "a sequence is longer than the model's context"
LONGER_THAN_ROW = "longer than a row"
REASONS = (EMPTY, IDENTICAL, TIE, REWRITTEN, ENDLESS, LONGER_THAN_CONTEXT, LONGER_THAN_ROW)

# Normalizers can make a text shorter, but not to so small a part of its bytes.
_SHORTEST = 4
# Renders and encodes conversations.
Encode = Callable[[list[Conversation]], list[Examples]]


@dataclass(frozen=True)
class Usable:
    """A preference that can be learned.

    Attributes:
        item: its sequences, of a pair first the chosen one.
        prompt: ids of the prompt, int32 ``(n,)``.
        early: whether its sides differ from an earlier answer on.
        seen: what `Examples` counts of its first sequence, by the names in COUNTS.
    """

    item: tuple[Sided, ...]
    prompt: np.ndarray
    early: bool = False
    seen: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Dropped:
    """A preference that is left out. `tokens` counts its sequences' ids; None: never encoded."""

    reason: str
    tokens: int | None


@dataclass(frozen=True)
class Refused:
    """A preference that is malformed, or that the template refuses; `why` names file and line."""

    why: str


Outcome = Usable | Dropped | Refused


@dataclass(frozen=True)
class PreferenceFormat:
    """Writes preferences as ids.

    Attributes:
        encode: the chat format.
        stops: the ids at which the model stops.
        seq_len: the most tokens of a preference: a row.
        context: the most tokens of each of its sequences.
        longest_token: bytes of the longest token.
    """

    encode: Encode
    stops: Collection[int]
    seq_len: int
    context: int
    longest_token: int

    def outcomes(self, preferences: Sequence[Preference]) -> list[Outcome]:
        """Return what becomes of each preference.

        Raises:
            BadInput: the chat template can't be used at all.
        """
        early = [self._before_encoding(preference) for preference in preferences]
        rest = [usable for usable, dropped in zip(preferences, early) if dropped is None]
        encoded = iter(self.encode([side for usable in rest for side in usable.conversations]))
        written = iter([[next(encoded) for _ in usable.conversations] for usable in rest])
        return [
            self._outcome(preference, next(written)) if dropped is None else dropped
            for preference, dropped in zip(preferences, early)
        ]

    def _before_encoding(self, preference: Preference) -> Dropped | None:
        """Return why a preference is left out that is not worth encoding, or None.

        To encode a text of many megabytes takes gigabytes of memory.
        """
        if any(map(is_empty, preference.conversations)):
            return Dropped(EMPTY, None)
        sides = preference.conversations
        if any(surely_longer(side, self.context, self.longest_token) for side in sides):
            return Dropped(LONGER_THAN_CONTEXT, None)
        return None

    def _outcome(self, preference: Preference, examples: Sequence[Examples]) -> Outcome:
        for example in examples:
            if example.refused is not None:
                return Refused(example.refused)
        if any(len(example.tokenized) != 1 for example in examples):
            return Dropped(REWRITTEN, None)
        sides = [_up_to_answer(example.tokenized[0]) for example in examples]
        if not all(side.learned.any() for side in sides):
            return Dropped(EMPTY, None)  # calls of tools, which Pion's own format leaves out
        prompts = [side.ids[: int(side.learned.argmax())] for side in sides]
        if not all(np.array_equal(prompts[0], prompt) for prompt in prompts):
            return Refused(
                f"{preference.conversations[0].where}: the chat template writes the messages "
                "before the answers in two ways, so they are not answers to the same prompt. If "
                "only one answer has calls of tools, the template may need these in another form. "
                "Use a model whose template takes calls as they are, or leave out this pair"
            )
        item = tuple(map(Sided, sides, preference.preferred))
        reason = self._reason(preference, sides)
        if reason is not None:
            return Dropped(reason, item_length(item))
        seen = {name: int(getattr(examples[0], name)) for name in COUNTS}
        return Usable(item, prompts[0], differs_early(preference), seen)

    def _reason(self, preference: Preference, sides: Sequence[Tokenized]) -> str | None:
        """Return why a preference is left out whose sides are encoded, or None."""
        if isinstance(preference, Pair):
            if np.array_equal(sides[0].ids, sides[1].ids):
                return IDENTICAL
            if preference.tie:
                return TIE
        if not all(ends_once(side, self.stops) for side in sides):
            return ENDLESS
        if any(len(side.ids) > self.context for side in sides):
            return LONGER_THAN_CONTEXT
        return LONGER_THAN_ROW if sum(len(side.ids) for side in sides) > self.seq_len else None


def preference_format(written: ChatFormat, seq_len: int, context: int) -> PreferenceFormat:
    """Return how a model with this chat format writes preferences.

    Raises:
        BadInput: the chat template can't be used.
    """
    longest = int(written.tokenizer.token_bytes().max())
    return PreferenceFormat(
        written.examples, frozenset(written.stop_ids), seq_len, context, longest
    )


def ends_once(side: Tokenized, stops: Collection[int]) -> bool:
    """Return whether the last learned ids are an answer and one end of turn."""
    learned = side.ids[side.learned].tolist()
    return len(learned) > 1 and learned[-1] in stops and learned[-2] not in stops


def is_held_out(prompt: np.ndarray, share: float, seed: int) -> bool:
    """Return whether preferences with a prompt are held out, as a `share` of all prompts is.

    `prompt` is int32 ``(n,)``. All preferences of a prompt are on the same side, in every data set.
    """
    digest = hashlib.blake2b(f"{seed}:".encode(), digest_size=8)
    digest.update(np.ascontiguousarray(prompt, dtype="<i4").tobytes())
    return int.from_bytes(digest.digest(), "big") < share * 2**64


def surely_longer(conversation: Conversation, tokens: int, longest_token: int) -> bool:
    """Return whether a conversation has more than so many tokens, however it is written.

    The longest token has `longest_token` bytes. Every template writes questions and the last
    message.
    """
    last = conversation.messages[-1]
    texts = [m["content"] for m in conversation.messages if m["role"] == "user" or m is last]
    size = sum(len((text or "").strip().encode("utf-8", "replace")) for text in texts)
    return size > _SHORTEST * tokens * longest_token


def _up_to_answer(tokenized: Tokenized) -> Tokenized:
    """Return the sequence without what templates write after the last end of turn: a newline."""
    end = len(tokenized.ids) - int(tokenized.learned[::-1].argmax())
    return Tokenized(tokenized.ids[:end], tokenized.learned[:end])


# ---------------------------------------------------------------- for people


def marked_preference(tokenizer: Tokenizer, usable: Usable, most: int = 1000) -> list[str]:
    """Return the prompt once, then each answer after it, special tokens included.

    Learned tokens are between ⟦ and ⟧. Of each part, at most `most` tokens are shown.
    """
    n = len(usable.prompt)
    names = {True: "chosen", False: "rejected"} if len(usable.item) == 2 else _LABELS
    first = usable.item[0].sequence
    parts = [f"prompt: {marked_text(tokenizer, _part(first, 0, n), most)}"]
    for sequence, preferred in usable.item:
        answer = _part(sequence, n, len(sequence.ids))
        parts.append(f"{names[preferred]}: {marked_text(tokenizer, answer, most)}")
    return parts


_LABELS = {True: "desired", False: "undesired"}


def _part(sequence: Tokenized, start: int, end: int) -> Tokenized:
    return Tokenized(sequence.ids[start:end], sequence.learned[start:end])
