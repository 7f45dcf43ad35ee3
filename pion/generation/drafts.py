"""Guess the next tokens of a text, so that the model reads several of them in one pass.

A draft never changes the text: every token is drawn from the model's own probabilities, with the
text's own generator, and a draft counts where it says the same. So a draft is
accepted with the probability that the model gives it. What a wrong one costs is a wider pass.
"""

from __future__ import annotations

import copy
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from pion.config.draft import MOST_STEPS
from pion.errors import BadInput
from pion.generation.decoding import Decoding, DrawRows
from pion.generation.text import Text
from pion.model.decoder import Decoder
from pion.model.draft_block import block_of
from pion.model.params_and_flops import cost_of

# The longest match is tried first. A single token is no match: it would nearly always be found.
MATCHES = (3, 2)
# How likely a draft is right is seen in the last drafts of the text, and at first in those of the
# texts before it: it is as if of EXPECTED_OF drafts the same share had been right. At the very
# beginning, EXPECTED is assumed.
LAST, LAST_OF_ALL, EXPECTED, EXPECTED_OF = 64, 128, 0.6, 4
# What a pass over one more token takes, as a share of a pass over one. On two cores and for
# Pion-small, 16 texts take 2.8 times as long as one. A GPU waits for its memory and has time for
# more; this number of it was not measured.
TOKEN_SHARE = {"cpu": 0.12, "cuda": 0.01}


class Record:
    """How often the last drafts were right: those of a text, or of all texts before it (`of_all`).

    Attributes:
        chance: the estimated probability that a draft is right, if those before it are.
    """

    def __init__(self, of_all: Record | None = None) -> None:
        self._of_all = of_all
        self._recent: deque[bool] = deque(maxlen=LAST_OF_ALL if of_all is None else LAST)
        self._expected: float = EXPECTED if of_all is None else of_all.chance
        self.chance: float = self._expected
        if of_all is not None:
            of_all.forget()

    def count(self, drafted: int, right: int) -> None:
        """Note that the first `right` of the drafted tokens were right. Later ones are unknown."""
        self._recent.extend([True] * right + [False] * (right < drafted))
        self._estimate()
        if self._of_all is not None:
            self._of_all.count(drafted, right)

    def forget(self) -> None:
        """Forget the oldest draft. So drafts that did not pay are tried again after some texts."""
        if self._recent:
            self._recent.popleft()
            self._estimate()

    def _estimate(self) -> None:
        guesses = sum(self._recent) + self._expected * EXPECTED_OF
        self.chance = guesses / (len(self._recent) + EXPECTED_OF)


class LookUp:
    """Drafts of one text by what followed its last tokens earlier in the text (Saxena 2023, "Prompt
    lookup decoding")."""

    def __init__(self) -> None:
        # Where the last tokens that are there twice were seen last: behind their end.
        self._ends: dict[tuple[int, ...], int] = {}
        self._known = 0  # the tokens whose matches are in `_ends`

    def draft(self, ids: Sequence[int], most: int) -> list[int]:
        """Return `most` tokens that may follow `ids`, or none. `ids` only grow between calls."""
        for end in range(self._known + 1, len(ids)):
            for length in MATCHES:
                if length <= end:
                    self._ends[tuple(ids[end - length : end])] = end
        self._known = max(self._known, len(ids) - 1)
        for length in MATCHES:
            found = self._ends.get(tuple(ids[-length:])) if length < len(ids) else None
            if found is not None:
                period = len(ids) - found  # what ends here may go on as it is
                return [ids[found + n % period] for n in range(most)]
        return []


class Drafting:
    """How one text is drafted: by what it repeats, and else by the model's draft block.

    The records are of the drafts of all texts that a model continues.

    Attributes:
        known: hidden states (B, T, d_model), and the row and the place of the one that predicted
            the last token. None: there is no block.
        guess: the tokens that are drafted for this step.
    """

    def __init__(self, looked_up: Record, of_block: Record) -> None:
        self.known: tuple[Tensor, int, int] | None = None
        self.guess: list[int] = []
        self._look_up = LookUp()
        self._repeats = False
        self._records = {True: Record(looked_up), False: Record(of_block)}  # by `_repeats`

    def begin(self, ids: Sequence[int], most: int) -> None:
        """Begin a step of a text: draft at most `most` tokens by what it repeats."""
        self.guess = self._look_up.draft(ids, most) if most > 0 else []
        self._repeats = bool(self.guess)

    @property
    def chance(self) -> float:
        """The estimated probability that a draft of this step is right."""
        return self._records[self._repeats].chance

    def count(self, right: int) -> None:
        """Note how many drafts of this step were right."""
        self._records[self._repeats].count(len(self.guess), right)


@dataclass(frozen=True)
class Possible:
    """What could be drafted for a text: at most `most` tokens, each right with this `chance`."""

    most: int
    chance: float
    by_block: bool


def best_number(texts: Sequence[Possible], token: float, guess: float) -> int:
    """Return for how many drafts a step of all texts together is expected to be fastest.

    A pass takes 1 for a single token, and `token` for each further one; all texts have as many as
    the widest. A draft block takes `guess` for the next token of all texts.
    """

    def speed(drafts: int) -> float:
        counts = [min(drafts, text.most) for text in texts]
        right = sum(
            text.chance**k for text, count in zip(texts, counts) for k in range(1, count + 1)
        )
        width = 1 + max(counts)
        longest = max((n for text, n in zip(texts, counts) if text.by_block), default=0)
        time = 1 + token * (len(texts) * width - 1) + guess * longest
        return (len(texts) + right) / time

    return max(range(1 + max(text.most for text in texts)), key=speed)


def with_drafts(model: Decoder, most: int) -> Decoder:
    """Return the model for generation with drafts: at most `most` tokens of a text are guessed for
    a step; 0: none beyond those that the given model guesses. Both models share all.

    Raises BadInput for more than a cache can take back.
    """
    if not 0 <= most <= MOST_STEPS:
        raise BadInput(f"drafts is {most}; it must be from 0 to {MOST_STEPS}")
    if most:
        model = copy.copy(model)
        model.decoding = partial(DraftedDecoding, most=most)
    return model


class DraftedDecoding(Decoding):
    """Texts that are continued with drafts: at most `most` guessed tokens of each for a step."""

    def __init__(self, model: Decoder, rows: int, max_tokens: int, most: int) -> None:
        super().__init__(model, rows, max_tokens)
        self._most, self._pause = most, 0  # steps in which nothing is drafted
        self._of_text = defaultdict[int, Drafting](partial(Drafting, Record(), Record()))  # by id
        block = block_of(model)
        self._block = None if block is None else (block, block.trunk(model))
        self._token_share = TOKEN_SHARE[model.embed.weight.device.type]
        # The arithmetic of a block for one guess, as a share of the model's for a token.
        self._guess_share = 0.0
        if block is not None:
            of_model = cost_of(model.config).macs_per_token
            self._guess_share = block.macs_per_token() / block.steps / of_model

    def _begun(self, text: Text, state: Tensor) -> None:
        super()._begun(text, state)
        self._pause = 0
        if self._block is not None:
            # Without a copy, the states of the whole prompt would stay.
            self._of_text[id(text)].known = state.clone()[None, None], 0, 0

    def step(self, draw: DrawRows) -> None:
        """Continue each text by one token, and by those that were drafted right.

        `draw` is called again for the texts whose drafts were right so far.
        """
        starts = self._cache.lengths[: len(self.texts)]
        guesses = self._guesses(self._cache.max_tokens - 1 - max(starts))
        width = 1 + max(map(len, guesses))
        rows = [[text.ids[-1], *guess] for text, guess in zip(self.texts, guesses)]
        hidden, logits = self._pass([ids + [0] * (width - len(ids)) for ids in rows])
        if self._block is not None and width == 1:
            hidden = hidden.clone()  # the next replay of a graph overwrites it
        right = _draw_in_turns(draw, logits, guesses)
        for row, (text, guess, hits) in enumerate(zip(self.texts, guesses, right)):
            self._read[row] += rows[row][: hits + 1]
            self._cache.cut(row, starts[row] + hits + 1)
            if self._block is not None:
                self._of_text[id(text)].known = hidden, row, hits
            if guess:
                self._of_text[id(text)].count(hits)
                text.counts.update(drafted=len(guess), accepted=hits)

    def leave(self, row: int, *, damaged: bool = False) -> None:
        """Free the row of a text, and forget how the text was drafted."""
        self._of_text.pop(id(self.texts[row]), None)
        super().leave(row, damaged=damaged)

    def _guesses(self, room: int) -> list[list[int]]:
        """Return the drafts of each text: at most `room` tokens, and none beyond its own room.

        Finding out that none would pay takes time for each text. So the more texts there are, the
        more steps follow without drafts.
        """
        texts = self.texts
        if self._pause:
            self._pause -= 1
            return [[] for _ in texts]
        draftings = [self._of_text[id(text)] for text in texts]
        possible = []
        for drafting, text in zip(draftings, texts):
            length = max(0, min(self._most, room, text.room - len(text.ids) - 1))
            drafting.begin(text.ids, length)
            by_block = not drafting.guess and self._block is not None
            count = min(length, self._block[0].steps) if by_block and self._block else 0
            possible.append(Possible(count or len(drafting.guess), drafting.chance, by_block))
        count = best_number(possible, self._token_share, self._guess_share)
        self._pause = 0 if count else len(texts) // 2
        for drafting in draftings:
            drafting.guess = drafting.guess[:count]
        block_rows = [row for row, text in enumerate(possible) if text.by_block and text.most]
        if count and block_rows and self._block is not None:
            drafting_states = [draftings[row].known for row in block_rows]
            states = torch.stack([every[of, at] for every, of, at in filter(None, drafting_states)])
            last = torch.tensor([texts[row].ids[-1] for row in block_rows]).to(
                states.device, non_blocking=True
            )
            block, trunk = self._block
            for row, guess in zip(block_rows, block.guess(states, last, trunk, count)):
                draftings[row].guess = guess[: possible[row].most]
        return [drafting.guess for drafting in draftings]


def _draw_in_turns(draw: DrawRows, logits: Tensor, guesses: Sequence[Sequence[int]]) -> list[int]:
    """Draw from logits (B, T, vocab) while drafts are right; return how many are, of each row."""
    right, rows = [0] * len(guesses), list(range(len(guesses)))
    turn = 0
    while rows:
        of_turn = logits[:, turn]
        if len(rows) < len(of_turn):
            of_turn = torch.stack([of_turn[row] for row in rows])
        drawn = zip(rows, draw(rows, of_turn), strict=True)
        # `None` is never a draft.
        rows = [row for row, token in drawn if token in guesses[row][turn : turn + 1]]
        turn += 1
        for row in rows:
            right[row] = turn
    return right
