"""Drafts are taken back across the ends of segments, and no slot remembers them."""

from collections.abc import Callable

import pytest

import pion
from pion.generation import drafts as drafting
from pion.model.draft_block import DraftBlock
from tests.families.families import VOCAB, Family

# A segment is shorter than a pass with drafts, so a pass fills one or two.
LEPTON = Family(
    {"slots": {"per_segment": 2, "segment": 3, "window": 2}, "draft": {"steps": 4, "ids": 40}}
)
SETTINGS = {"stop_ids": (), "vocab_size": VOCAB, "max_tokens": 36}
SAMPLED = [{"temperature": 0}, {"seed": 7, "temperature": 0.9}]
PROMPTS = [[5, 9, 7], [11], [3, 4, 5, 6, 7, 8], [21, 22, 23, 24, 25, 26, 27]]

Guess = Callable[..., list[list[int]]]


@pytest.fixture(scope="module")
def model():
    return LEPTON.decoder()


@pytest.fixture(autouse=True)
def always_drafts(monkeypatch):
    """Draft as much as possible, also where it does not pay."""

    def most(texts, token, guess):
        return max(text.most for text in texts)

    monkeypatch.setattr(drafting, "best_number", most)


def partly_right(plain):
    """Return what guesses the next tokens of known texts, of which 0, 1 … 4 are right in turn."""
    calls = 0

    def guess(block, states, tokens, trunk, most):
        nonlocal calls
        calls += 1
        found = []
        for token in tokens.tolist():
            following = next(
                (text[n + 1 : n + 1 + most] for text in plain for n in places(text, token)), []
            )
            right = [*following, *[0] * most][:most]
            found.append([id if n < calls % 5 else (id + 1) % VOCAB for n, id in enumerate(right)])
        return found

    return guess


def places(text, token):
    return [n for n, own in enumerate(text) if own == token]


def texts_of(model, sampling, drafts, rows):
    found = [[] for _ in PROMPTS]
    every = pion.generate_batch(model, PROMPTS, rows=rows, drafts=drafts, **SETTINGS, **sampling)
    for number, token in every:
        if token is not None:
            found[number].append(token)
    return found


@pytest.mark.parametrize("sampling", SAMPLED)
@pytest.mark.parametrize("rows", [3, pytest.param(1, marks=pytest.mark.soak)])
def test_what_a_block_guesses_never_changes_a_text(model, sampling, rows):
    plain = [list(pion.generate(model, ids, **SETTINGS, **sampling)) for ids in PROMPTS]
    assert all(len(ids) == 36 for ids in plain)
    assert texts_of(model, sampling, 4, rows) == plain


@pytest.mark.parametrize("sampling", SAMPLED)
@pytest.mark.parametrize("rows", [3, pytest.param(1, marks=pytest.mark.soak)])
def test_guesses_of_which_some_are_right_never_change_a_text(model, sampling, rows, monkeypatch):
    plain = [list(pion.generate(model, ids, **SETTINGS, **sampling)) for ids in PROMPTS]
    counted = []
    count = drafting.Drafting.count

    def noted(self, right):
        counted.append((len(self.guess), right))
        count(self, right)

    monkeypatch.setattr(drafting.Drafting, "count", noted)
    monkeypatch.setattr(DraftBlock, "guess", partly_right(plain))
    assert texts_of(model, sampling, 4, rows) == plain
    # Some were cut back by a segment and more, and some passes kept the end of a segment.
    assert any(drafted - right >= 3 for drafted, right in counted)
    assert any(right >= 3 for _, right in counted)
