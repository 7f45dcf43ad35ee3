"""What the model in training writes after the job's prompts."""

from __future__ import annotations

import pytest
import torch

import pion
from pion.data.chat.chat_format import ChatFormat
from pion.data.tokens.tokenizer import Tokenizer, train_bpe
from pion.errors import BadInput
from pion.model.decoder import Decoder
from pipeline.training.setup import SAMPLE_TOKENS, prompt_ids, sample_texts
from tests.support.tiny_config import tiny_config

TEXTS = ("", "plain", "words only and more words")


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(["plain words only"], 262)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Decoder:
    torch.manual_seed(0)
    return Decoder(tiny_config(vocab_size=tokenizer.vocab_size, seq_len=128))


def in_own_format(tokenizer: Tokenizer) -> ChatFormat:
    return ChatFormat("nowhere/tokenizer.json", tokenizer)


def test_prompts_are_continued_together_as_each_would_be_alone(
    model: Decoder, tokenizer: Tokenizer
) -> None:
    prompts = [prompt_ids(model, in_own_format(tokenizer), text, chat=False) for text in TEXTS]
    steps: list[None] = []
    texts = sample_texts(
        model, in_own_format(tokenizer), prompts, chat=False, on_token=lambda: steps.append(None)
    )
    end = tokenizer.end_of_text
    alone = [
        list(pion.generate(model, ids, stop_ids=[end], max_tokens=SAMPLE_TOKENS, seed=0))
        for ids in prompts
    ]
    assert texts == [tokenizer.decode(new) for new in alone]
    assert len(steps) == sum(len(new) for new in alone)


def test_an_empty_prompt_starts_from_end_of_text(model: Decoder, tokenizer: Tokenizer) -> None:
    assert prompt_ids(model, in_own_format(tokenizer), "", chat=False) == [tokenizer.end_of_text]


def test_a_prompt_that_is_too_long_is_refused_alone(model: Decoder, tokenizer: Tokenizer) -> None:
    with pytest.raises(BadInput, match="the model's context is 128 tokens"):
        prompt_ids(model, in_own_format(tokenizer), "a " * 200, chat=True)


def test_no_prompts_are_no_texts(model: Decoder, tokenizer: Tokenizer) -> None:
    assert sample_texts(model, in_own_format(tokenizer), [], chat=True, on_token=lambda: None) == []
