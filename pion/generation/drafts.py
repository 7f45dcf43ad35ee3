"""Guess the next tokens of a text, so that the model reads several of them in one pass.

A draft never changes the text: every token is drawn from the model's own probabilities, with the
text's own generator, and a draft counts where it says the same (decoding.py). So a draft is
accepted with the probability that the model gives it. What a wrong one costs is a wider pass.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

# The longest match is tried first. A single token is no match: it would nearly always be found.
MATCHES = (3, 2)
# A text is drafted for as long as so large a share of its last drafted tokens is right: a second
# token in a pass adds 0.12 of its time (two cores, Pion-small).
LEAST_RIGHT, LAST = 0.15, 64


class LookUp:
    """Drafts of one text by what followed its last tokens earlier in the text (Saxena 2023, "Prompt
    lookup decoding")."""

    def __init__(self) -> None:
        self._recent: deque[bool] = deque(maxlen=LAST)
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
        if not self._pays:
            return []
        for length in MATCHES:
            found = self._ends.get(tuple(ids[-length:])) if length < len(ids) else None
            if found is not None:
                period = len(ids) - found  # what ends here may go on as it is
                return [ids[found + n % period] for n in range(most)]
        return []

    def count(self, drafted: int, right: int) -> None:
        """Note how many of the drafted tokens were right."""
        self._recent.extend(n < right for n in range(drafted))

    @property
    def _pays(self) -> bool:
        return len(self._recent) < LAST or sum(self._recent) >= LEAST_RIGHT * LAST
