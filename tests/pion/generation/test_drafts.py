"""A text with drafts is the text without them: for every seed, alone and with others."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import pion
from pion.errors import BadInput
from pion.generation import decoding
from pion.generation import drafts as drafting
from pion.generation.answer import Ended
from pion.generation.drafts import (
    EXPECTED,
    Drafting,
    LookUp,
    Possible,
    Record,
    best_number,
    with_drafts,
)
from pion.generation.engine import Engine
from pion.model.decoder import Decoder
from pion.model.draft_block import DraftBlock
from tests.families.families import SEQ_LEN, VOCAB, Family, often
from tests.pion.generation.test_engine import Client, engines, now
from tests.support.tiny_config import drawn

__all__ = ["engines"]
SETTINGS = {"stop_ids": (1,), "vocab_size": VOCAB, "max_tokens": SEQ_LEN}


def prompts(count):
    """Return prompts that repeat themselves, so that there is something to look up."""
    draw = random.Random(2)
    found = []
    for _ in range(count):
        part = [draw.randrange(2, VOCAB) for _ in range(draw.randint(2, 5))]
        found.append((part * 4)[: draw.randint(3, 16)])
    return found


def together(model, texts, **settings):
    found = [[] for _ in texts]
    for number, token in pion.generate_batch(model, texts, **SETTINGS | settings):
        if token is not None:
            found[number].append(token)
    return found


@often("tachyon")  # the other tests of this file have a dense model, a Daisy and a Lepton
@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"seed": 7, "temperature": 0.4}])
@pytest.mark.parametrize(
    ("texts", "drafts"),
    [
        (2, 4),
        pytest.param(10, 1, marks=pytest.mark.soak),
        pytest.param(10, 4, marks=pytest.mark.soak),
    ],
)
def test_drafts_never_change_a_text(family, sampling, texts, drafts):
    model, given = drawn(family.config()), prompts(texts)
    plain = [list(pion.generate(model, ids, **SETTINGS, **sampling)) for ids in given]
    alone = [
        list(pion.generate(model, ids, drafts=drafts, **SETTINGS, **sampling)) for ids in given
    ]
    assert alone == plain
    assert together(model, given, rows=texts - 1, drafts=drafts, **sampling) == plain


def test_drafts_save_passes(monkeypatch):
    """A model that says the same again and again is drafted nearly without error."""
    torch.manual_seed(0)
    model = Decoder(FAMILY.config())
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(0.1)  # so it repeats one token
    passes = []
    cache_tokens = decoding.cache_tokens

    def counted(model, rows, cache, first=0):
        passes.append(len(rows[0]))
        return cache_tokens(model, rows, cache, first)

    monkeypatch.setattr(decoding, "cache_tokens", counted)
    new = [*pion.generate(model, [5, 6], drafts=4, temperature=0, stop_ids=(), max_tokens=30)]
    assert len(new) == 30
    assert len(passes) < 12


FAMILY = Family({})


def test_the_engine_drafts_and_gives_the_same_answers(engines):
    model, found = drawn(FAMILY.config()), {}
    for drafts in (0, 3):
        engine = Engine(with_drafts(model, drafts), now, slots=3, queue=99, seq_len=SEQ_LEN)
        engines.append(engine)
        clients = [Client(model, ids, seed=n, top=2) for n, ids in enumerate(prompts(12))]
        engine.submit([client.answer for client in clients])
        engine.start()
        assert all(isinstance(client.wait(), Ended) for client in clients)
        found[drafts] = [client.tokens for client in clients]
        chances = [
            event.logprobs.drawn for client in clients for event in client.drawn if event.logprobs
        ]
        found[f"chances {drafts}"] = torch.tensor(chances)
    assert found[0] == found[3]
    torch.testing.assert_close(found["chances 0"], found["chances 3"], rtol=0, atol=1e-4)


def test_the_drafts_of_one_text_do_not_push_another_over_the_context(engines, monkeypatch):
    monkeypatch.setattr(LookUp, "draft", lambda self, ids, most: [9] * most)
    model = drawn(FAMILY.config())
    engine = Engine(with_drafts(model, 8), now, slots=2, queue=9, seq_len=10 * SEQ_LEN)
    engines.append(engine)
    long = Client(model, [5] * (SEQ_LEN - 2), stop_ids=(), max_tokens=9)
    repeats = Client(model, [6, 7, 8] * 3, stop_ids=(), max_tokens=9)
    engine.submit([long.answer, repeats.answer])
    engine.start()
    assert long.wait() == repeats.wait() == Ended(stopped=False)
    assert (len(long.tokens), len(repeats.tokens)) == (2, 9)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.integers(1, 6))
def test_a_look_up_drafts_what_followed_the_last_tokens(ids, most):
    one = LookUp()
    for end in range(1, len(ids) + 1):
        assert one.draft(ids[:end], most) == expected(ids[:end], most)


def expected(ids, most):
    for length in (3, 2):
        for begin in range(len(ids) - length - 1, -1, -1):
            if ids[begin : begin + length] == ids[-length:]:
                return (ids[begin + length :] * most)[:most]
    return []


def test_a_text_that_is_drafted_wrong_is_no_longer_drafted():
    drafting, text = Drafting(Record(), Record()), [5, 6, 7, 8, 5, 6]
    numbers = []
    for _ in range(20):
        drafting.begin(text, 2)
        assert drafting.guess == [7, 8]
        numbers.append(best_number([Possible(2, drafting.chance, by_block=False)], 0.12, 0))
        drafting.count(right=0)
    assert numbers[0] == 2
    assert numbers[-1] == 0


def test_a_new_text_is_expected_to_be_like_the_texts_before_it():
    every = Record()
    wrong = Record(every)
    assert wrong.chance == EXPECTED
    for _ in range(50):
        wrong.count(drafted=1, right=0)
    assert Record(every).chance < 0.1
    for _ in range(50):  # texts that were not drafted
        last = Record(every)
    assert last.chance > 0.5


def test_texts_that_are_not_worth_drafts_are_asked_less_often(monkeypatch):
    asked = []

    def never(texts, token, guess):
        asked.append(len(texts))
        return 0

    monkeypatch.setattr(drafting, "best_number", never)
    model = drawn(FAMILY.config())
    for rows in (1, 8):
        prompts = [[5, 6 + number] for number in range(rows)]
        list(pion.generate_batch(model, prompts, rows=rows, drafts=2, stop_ids=(), max_tokens=20))
    assert asked == [1] * 19 + [8] * 4  # of eight texts, every fifth of 19 steps


@pytest.mark.parametrize(
    ("texts", "token", "guess", "number"),
    [
        ([(4, 0.9, False)], 0.1, 0.0, 4),
        ([(4, 0.05, False)], 0.1, 0.0, 0),
        ([(3, 0.9, True)], 0.1, 0.2, 3),
        ([(3, 0.6, True)], 0.1, 0.9, 0),  # the block takes longer than what it saves
        ([(4, 0.6, False)] + [(0, 0.6, False)] * 15, 0.12, 0.0, 0),  # all others would wait
        ([(4, 0.95, False)] * 16, 0.12, 0.0, 3),
    ],
)
def test_a_step_has_as_many_drafts_as_are_expected_to_pay(texts, token, guess, number):
    assert best_number([Possible(*text) for text in texts], token, guess) == number


def test_more_drafts_than_the_cache_can_take_back_are_refused():
    with pytest.raises(BadInput, match="drafts is 17; it must be from 0 to 16"):
        next(pion.generate(drawn(FAMILY.config()), [5], stop_ids=(), drafts=17))


# ---------------------------------------------------------------- drafts that are partly right

FIXED = {"stop_ids": (1,), "vocab_size": VOCAB, "max_tokens": 16}
SAMPLINGS = [
    {"temperature": 0, "repetition_penalty": 1.01},
    {"temperature": 0.2, "seed": 3, "frequency_penalty": 0.01},
]
TEXTS = 12


class Counts:
    """How many drafts of each guess were accepted, and how many refused."""

    def __init__(self, monkeypatch):
        self.accepted, self.refused = [], []
        count = Drafting.count

        def counted(drafting, right):
            self.accepted.append(right)
            self.refused.append(len(drafting.guess) - right)
            count(drafting, right)

        monkeypatch.setattr(Drafting, "count", counted)


def plain(model, texts, **settings):
    return [list(pion.generate(model, ids, **FIXED | settings)) for ids in texts]


def as_many_as_possible(texts, token, guess):
    return max(text.most for text in texts)


@often("daisy")  # the tests above have more families
def test_drafts_that_are_partly_right_change_no_text(family, monkeypatch):
    model = drawn(Family({**family.model, "draft": {"steps": 3}}).config())
    texts, each = prompts(TEXTS), TEXTS // len(SAMPLINGS)
    groups = [texts[begin : begin + each] for begin in range(0, TEXTS, each)]
    cases = list(zip(groups, SAMPLINGS, strict=True))
    expected = [plain(model, group, **sampling) for group, sampling in cases]
    every = [ids for group in expected for ids in group]
    monkeypatch.setattr(DraftBlock, "guess", partly_right(every))
    monkeypatch.setattr(LookUp, "draft", lambda self, ids, most: [])
    # A block is large next to models this small: none of its drafts would be expected to pay.
    monkeypatch.setattr(drafting, "best_number", as_many_as_possible)
    counts = Counts(monkeypatch)
    for (group, sampling), wanted in zip(cases, expected, strict=True):
        assert plain(model, group, drafts=3, **sampling) == wanted
        assert together(model, group, rows=16, drafts=3, **FIXED, **sampling) == wanted
    assert sum(counts.accepted) > 50
    assert sum(counts.refused) > 50


# ---------------------------------------------------------------- across the ends of segments

# A segment is shorter than a pass with drafts, so a pass fills one or two.
LEPTON = Family(
    {"slots": {"per_segment": 2, "segment": 3, "window": 2}, "draft": {"steps": 4, "ids": 40}}
)
LONG = {"stop_ids": (), "max_tokens": 36}
PROMPTS = [[5, 9, 7], [11], [3, 4, 5, 6, 7, 8], [21, 22, 23, 24, 25, 26, 27]]


def partly_right(plain):
    """Return what guesses the next tokens of known texts, of which 0, 1 … 4 are right in turn.

    A block that learned would take minutes.
    """
    calls = 0

    def guess(block, states, tokens, trunk, most):
        nonlocal calls
        calls += 1
        found = []
        for token in tokens.tolist():
            places = ((text, n) for text in plain for n, own in enumerate(text) if own == token)
            following = next((text[n + 1 : n + 1 + most] for text, n in places), [])
            right = [*following, *[0] * most][:most]
            found.append([id if n < calls % 5 else (id + 1) % VOCAB for n, id in enumerate(right)])
        return found

    return guess


@pytest.mark.parametrize(
    ("rows", "sampling"),
    [
        (3, {"seed": 7, "temperature": 0.9}),
        pytest.param(3, {"temperature": 0}, marks=pytest.mark.soak),
        pytest.param(1, {"temperature": 0}, marks=pytest.mark.soak),
        pytest.param(1, {"seed": 7, "temperature": 0.9}, marks=pytest.mark.soak),
    ],
)
def test_guesses_never_change_a_text_whether_none_or_some_are_right(rows, sampling, monkeypatch):
    monkeypatch.setattr(drafting, "best_number", as_many_as_possible)
    model = LEPTON.decoder()
    expected = plain(model, PROMPTS, **LONG, **sampling)
    assert all(len(ids) == 36 for ids in expected)
    assert together(model, PROMPTS, rows=rows, drafts=4, **LONG, **sampling) == expected
    counts = Counts(monkeypatch)
    monkeypatch.setattr(DraftBlock, "guess", partly_right(expected))
    assert together(model, PROMPTS, rows=rows, drafts=4, **LONG, **sampling) == expected
    # Some were cut back by a segment and more, and some passes kept the end of a segment.
    assert max(counts.refused) >= 3
    assert max(counts.accepted) >= 3
