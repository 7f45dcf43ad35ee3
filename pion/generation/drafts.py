"""Guess the next tokens of a text, so that the model reads several of them in one pass.

A draft never changes the text: every token is drawn from the model's own probabilities, with the
text's own generator, and a draft counts where it says the same (decoding.py). So a draft is
accepted with the probability that the model gives it. What a wrong one costs is a wider pass.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from pion.config.model_config import ModelConfig
from pion.errors import BadInput
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
        known = sum(self._recent) + self._expected * EXPECTED_OF
        self.chance = known / (len(self._recent) + EXPECTED_OF)


@dataclass(frozen=True)
class Records:
    """How often the drafts of all texts were right that a model continues."""

    looked_up: Record = field(default_factory=Record)
    of_block: Record = field(default_factory=Record)


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

    Attributes:
        known: hidden states (B, T, d_model), and the row and the place of the one that predicted
            the last token. None: there is no block.
        guess: the tokens that are drafted for this step.
        drafted, right: how many tokens were drafted, and how many of them were right.
    """

    def __init__(self, records: Records) -> None:
        self.known: tuple[Tensor, int, int] | None = None
        self.guess: list[int] = []
        self.drafted = self.right = 0
        self._look_up = LookUp()
        self._records = Record(records.looked_up), Record(records.of_block)
        self._repeats = False

    def begin(self, ids: Sequence[int], most: int) -> None:
        """Begin a step of a text: draft at most `most` tokens by what it repeats."""
        self.guess = self._look_up.draft(ids, most) if most > 0 else []
        self._repeats = bool(self.guess)

    @property
    def chance(self) -> float:
        """The estimated probability that a draft of this step is right."""
        looked_up, of_block = self._records
        return looked_up.chance if self._repeats else of_block.chance

    def count(self, right: int) -> None:
        """Note how many drafts of this step were right."""
        looked_up, of_block = self._records
        (looked_up if self._repeats else of_block).count(len(self.guess), right)
        self.drafted += len(self.guess)
        self.right += right


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
        asked = max((n for text, n in zip(texts, counts) if text.by_block), default=0)
        time = 1 + token * (len(texts) * width - 1) + guess * asked
        return (len(texts) + right) / time

    return max(range(1 + max(text.most for text in texts)), key=speed)


def guess_share(config: ModelConfig) -> float:
    """Return the arithmetic of a draft block for one guess, as a share of the model's for a token.

    Raises BadInput for a model without a draft block.
    """
    if config.draft is None:
        raise BadInput("the model has no draft block")
    cost = cost_of(config)
    return cost.apart_macs / config.draft.steps / cost.macs_per_token
