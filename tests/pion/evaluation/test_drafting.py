"""The passes that a draft block saves are counted in texts that it does not change."""

import pytest
import torch

import pion
from pion.evaluation.drafting import NEW_TOKENS, drafted
from pion.model.decoder import Decoder
from pion.model.draft_block import DraftBlock
from tests.support.tiny_config import tiny_config


def model(**changes):
    torch.manual_seed(0)
    return Decoder(tiny_config(vocab_size=40, seq_len=128, init_std=0.2, **changes)).eval()


PROMPTS = [[5, 6, 7], [9, 3]]


@pytest.mark.parametrize(("right", "most"), [(True, 3.0), (False, 1.0)])
def test_tokens_of_a_pass_are_one_and_what_was_guessed_right(monkeypatch, right, most):
    trained = model(draft={"steps": 2})
    texts = {
        tuple(ids): list(
            pion.generate(trained, ids, stop_ids=(), temperature=0, max_tokens=NEW_TOKENS)
        )
        for ids in PROMPTS
    }
    passes = 0
    place = 0

    def guess(self, states, tokens, trunk, count):
        nonlocal place
        text = texts[tuple(PROMPTS[0])]
        place = place % len(text)
        found = text[place + 1 : place + 1 + count] if right else [39] * count
        place += 1 + (len(found) if right else 0)
        return [found]

    def count():
        nonlocal passes
        passes += 1

    monkeypatch.setattr(DraftBlock, "guess", guess)
    monkeypatch.setattr("pion.generation.drafts.LookUp.draft", lambda self, ids, most: [])
    monkeypatch.setattr("pion.generation.drafts.best_number", lambda *_: 2)
    found = drafted(trained, PROMPTS[:1], 0.0, 39, count)
    assert found["texts"] == 1
    assert found["tokens_per_pass"] == pytest.approx(most, abs=0.1 if right else 0.2)
    assert found["tokens_per_pass"] == pytest.approx((NEW_TOKENS - 1) / passes)
    assert found["tokens_per_pass_sem"] is None
    assert found["right"] == (1.0 if right else 0.0)


def test_a_model_without_a_block_or_a_text_without_room_has_no_result():
    assert drafted(model(), PROMPTS, 0.0, 40, lambda: None) is None
    full = [[1] * 127]
    assert drafted(model(draft={}), full, 0.0, 40, lambda: None) is None


def test_the_error_is_over_texts_that_are_drawn_independently():
    found = drafted(model(draft={"steps": 2}), PROMPTS[:1] * 4, 0.8, 40, lambda: None)
    assert found["texts"] == 4
    assert found["tokens_per_pass"] >= 1
    # Four times the same text would have the error 0.
    assert found["tokens_per_pass_sem"] > 0
