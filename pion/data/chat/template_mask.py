"""Find the ids of an answer in the ids of a rendered conversation, exactly, for any template.

The mask does not need to understand the template. Before an answer, the conversation so far is
rendered with the generation prompt; after the answer, it is rendered without one. The ids of the
first must begin the ids of the second, and both must begin the ids of the whole conversation.
Special tokens divide a text: the ids up to a special token do not depend on what follows it. So
only the few characters after the last special token are encoded again to compare ids.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import tokenizers

from pion.data.chat.template_renderer import RenderedTurn
from pion.data.tokens.tokenizer import Tokenizer

# How many short texts are kept with their ids: those between a special token and an answer are
# the same in most conversations.
_KEPT_TEXTS = 4096


@dataclass(frozen=True)
class EncodedText:
    """A rendered text and its ids; `special` has the index and the end, in characters, of each
    special id, and `cuts` how many ids and characters come before each part."""

    text: str
    ids: Sequence[int]
    special: Sequence[tuple[int, int]]
    cuts: Sequence[tuple[int, int]]


class AnswerFinder:
    """Finds answers in texts of one tokenizer, whose turns end with `end_of_turn` (None: unknown).

    An answer ends with the last `end_of_turn` of its turn; without one, with the last special
    token; without any, where the turn ends.
    """

    def __init__(
        self, tokenizer: Tokenizer, marks: Mapping[str, int], end_of_turn: int | None
    ) -> None:
        """`marks` are the ids of the tokens that texts can't write, by their texts."""
        self._special = frozenset(marks.values())
        longest_first = sorted(marks, key=len, reverse=True)
        self._marks = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._most = len(longest_first[0]) if marks else 0
        self._tokenizer, self._end_of_turn = tokenizer, end_of_turn
        self._ids_of: Callable[[str], list[int]] = lru_cache(_KEPT_TEXTS)(
            lambda text: tokenizer.encode_with_specials([text])[0].ids
        )

    def encode(self, texts: Sequence[str], prompts: Sequence[Iterable[int]]) -> list[EncodedText]:
        """Encode rendered texts, using all cores. `prompts` has, of each text, where prompts end.

        If an answer begins with space, no id may have the end of its prompt, too: the answer is
        generated after the ids of the prompt. So the text is encoded in parts.
        """
        starts = [
            [0, *(end for end in ends if text[end : end + 1].isspace())]
            for text, ends in zip(texts, prompts, strict=True)
        ]
        parts = [
            self._before(text, start) + text[start:end]
            for text, cut in zip(texts, starts)
            for start, end in pairwise([*cut, len(text)])
        ]
        encoded = iter(self._tokenizer.encode_with_specials(parts))
        return [
            self._located(text, [(start, next(encoded)) for start in cut])
            for text, cut in zip(texts, starts)
        ]

    def span(self, whole: EncodedText, turn: RenderedTurn) -> tuple[int, int] | None:
        """Return the `[start, end)` of an answer in the ids of the whole text.

        None if the prompt or the turn, up to its end, does not begin these ids, or if the turn
        adds no ids to the prompt.
        """
        prompt, prompt_differs = turn.prompt
        shared, rest = self._before_special(whole.text, turn.turn)
        start = None if prompt_differs else self._ids_before(whole, prompt)
        if start is None:
            return None
        inside = [i for i, end in whole.special if i >= start and end <= shared]
        ends = [i for i in inside if whole.ids[i] == self._end_of_turn]
        # A turn with text after its last special token does not end with this token.
        last = max((end for i, end in whole.special if i in inside), default=0)
        if not ends and not whole.text[last:shared].strip():
            ends = inside
        # The turn ends in `rest`, which the whole text does not have.
        later = bool(rest) and (
            self._end_of_turn is None or self._end_of_turn in self._ids_of(rest)
        )
        if ends and not later:
            return start, ends[-1] + 1
        end = None if rest else self._ids_before(whole, shared)
        return None if end is None or end <= start else (start, end)

    def _before_special(self, text: str, turn: tuple[int, str]) -> tuple[int, str]:
        """Return the turn with its common beginning cut before a special token that begins in it.

        `<|end|>` and `<|return|>` have their first characters in common, and no id.
        """
        shared, rest = turn
        begin = max(0, shared - self._most)
        around = text[begin:shared] + rest[: self._most]
        for mark in self._marks.finditer(around) if rest else ():
            if mark.start() < shared - begin < mark.end():
                cut = begin + mark.start()
                return cut, text[cut:shared] + rest
        return turn

    def _ids_before(self, encoded: EncodedText, position: int) -> int | None:
        """Return how many ids the first `position` characters have when they are alone.

        None if these ids do not begin the ids of the whole text.
        """
        begun = [*encoded.cuts, *((index + 1, end) for index, end in encoded.special)]
        before, begins = max(cut for cut in begun if cut[1] <= position)
        context = self._before(encoded.text, begins)
        if self._tokenizer.joint and (before - 1, begins) in encoded.special:
            context = self._tokenizer.decode([encoded.ids[before - 1]], specials=True)
        alone = self._ids_of(context + encoded.text[begins:position])[len(self._ids_of(context)) :]
        after = before + len(alone)
        return after if list(encoded.ids[before:after]) == alone else None

    def _before(self, text: str, start: int) -> str:
        """Return what is encoded before the part of a text that begins at `start`, so that its ids
        are those within the text: the special token there, or `joint`."""
        joint = self._tokenizer.joint if start else ""
        at = (mark[0] for mark in self._marks.finditer(text, max(0, start - self._most), start))
        return joint and next((mark for mark in at if text.endswith(mark, 0, start)), joint)

    def _located(self, text: str, parts: Sequence[tuple[int, tokenizers.Encoding]]) -> EncodedText:
        ids: list[int] = []
        special, cuts = [], []
        for start, encoding in parts:
            cuts.append((len(ids), start))
            context = self._before(text, start)
            first, begins = len(self._ids_of(context)), start - len(context)
            indices = [i for i, token in enumerate(encoding.ids) if token in self._special]
            places = [(len(ids) + i - first, encoding.token_to_chars(i)) for i in indices]
            special += [(i, begins + span[1]) for i, span in places if span and i >= len(ids)]
            ids += encoding.ids[first:]
        return EncodedText(text, ids, special, cuts)
