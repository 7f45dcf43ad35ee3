"""Texts with drafts of a block that is partly right are the texts without drafts.

Each family writes 18 texts, alone and in batches of 16: 216 in all, most of them under soak. A
block that learned would take minutes. These blocks know which token follows a token most often in
the texts without drafts.
(test_drafts.py has drafts by what a text repeats.)
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from torch import Tensor

import pion
from pion.generation import drafts as drafting
from pion.generation.drafts import Drafting, LookUp, Possible
from pion.model.decoder import Decoder
from pion.model.draft_block import DraftBlock, Trunk
from tests.families.families import FAMILIES, VOCAB, Family
from tests.pion.generation.test_drafts import prompts
from tests.pion.generation.test_engine import initial

FIXED: dict[str, Any] = {"stop_ids": (1,), "vocab_size": VOCAB, "max_tokens": 16}
SAMPLINGS: list[dict[str, Any]] = [
    {"temperature": 0, "repetition_penalty": 1.01},
    {"temperature": 0.2, "seed": 3, "frequency_penalty": 0.01},
]
TEXTS = 18
# test_drafts.py has more families by default.
IN_SUITE = ("tachyon", "daisy")


class Counts:
    """How many drafts were accepted and refused."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.accepted = self.refused = 0
        count = Drafting.count

        def counted(drafting: Drafting, right: int) -> None:
            self.accepted += right
            self.refused += len(drafting.guess) - right
            count(drafting, right)

        monkeypatch.setattr(Drafting, "count", counted)


def plain(model: Decoder, texts: Sequence[list[int]], **sampling: Any) -> list[list[int]]:
    return [list(pion.generate(model, ids, **FIXED, **sampling)) for ids in texts]


def in_batches(model: Decoder, texts: Sequence[list[int]], **sampling: Any) -> list[list[int]]:
    found: list[list[int]] = [[] for _ in texts]
    for number, token in pion.generate_batch(model, texts, rows=16, **FIXED, **sampling):
        if token is not None:
            found[number].append(token)
    return found


def as_many_as_possible(texts: Sequence[Possible], token: float, guess: float) -> int:
    return max(text.most for text in texts)


def most_usual_successors(texts: Sequence[Sequence[int]]) -> dict[int, int]:
    seen: defaultdict[int, Counter[int]] = defaultdict(Counter)
    for ids in texts:
        for one, other in pairwise(ids):
            seen[one][other] += 1
    return {token: counts.most_common(1)[0][0] for token, counts in seen.items()}


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, id=name, marks=() if name in IN_SUITE else pytest.mark.soak)
        for name, family in FAMILIES.items()
    ],
)
def test_drafts_that_are_partly_right_change_no_text(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = initial(Family({**family.model, "draft": {"steps": 3}}))
    texts, each = prompts(TEXTS), TEXTS // len(SAMPLINGS)
    groups = [texts[begin : begin + each] for begin in range(0, TEXTS, each)]
    cases = list(zip(groups, SAMPLINGS, strict=True))
    expected = [plain(model, group, **sampling) for group, sampling in cases]
    after = most_usual_successors([ids for group in expected for ids in group])

    def guess(
        self: DraftBlock, states: Tensor, tokens: Tensor, trunk: Trunk, count: int
    ) -> list[list[int]]:
        found = []
        for token in tokens.tolist():
            chain = [token]
            for _ in range(min(count, self.steps)):
                chain.append(after.get(chain[-1], 2))
            found.append(chain[1:])
        return found

    monkeypatch.setattr(DraftBlock, "guess", guess)
    monkeypatch.setattr(LookUp, "draft", lambda self, ids, most: [])
    # A block is large next to models this small: none of its drafts would be expected to pay.
    monkeypatch.setattr(drafting, "best_number", as_many_as_possible)
    counts = Counts(monkeypatch)
    for (group, sampling), wanted in zip(cases, expected, strict=True):
        assert plain(model, group, drafts=3, **sampling) == wanted
        assert in_batches(model, group, drafts=3, **sampling) == wanted
    assert counts.accepted > 50
    assert counts.refused > 50
