"""What written answers are like: how long they are, whether they end, and whether they repeat."""

import pytest
import torch

from pion.data.chat.chat_format import ChatFormat
from pion.data.tokens.tokenizer import train_bpe
from pion.evaluation.greedy_answers import (
    MOST_TOKENS,
    PROMPTS,
    askable,
    distinct_share,
    greedy_answers,
)
from pion.generation.generate import generate
from pion.model.decoder import Decoder
from tests.support.tiny_config import tiny_config


def test_a_loop_has_few_different_sequences():
    assert distinct_share(range(20)) == 1
    assert distinct_share([1, 2] * 20) == pytest.approx(2 / 37)
    assert distinct_share([7] * 20) == pytest.approx(1 / 17)
    assert distinct_share([1, 2, 3]) == distinct_share([]) == 1  # nothing is repeated


def test_all_answers_have_the_same_room_and_longer_prompts_are_left_out():
    asked, most = askable([[1] * n for n in (10, 33, 32, 5)], context=64)
    assert most == 32
    assert [len(ids) for ids in asked] == [10, 32, 5]
    assert askable([[1] * 10] * 100, 4096) == ([[1] * 10] * PROMPTS, MOST_TOKENS)


@pytest.fixture
def chat(tmp_path):
    tokenizer = train_bpe(["the cat sat on the mat. <|user|>\n<|assistant|>\n"], 270)
    tokenizer.save(tmp_path / "tokenizer.json")
    return ChatFormat(tmp_path / "tokenizer.json", tokenizer)


def test_answers_are_those_of_greedy_generation(chat):
    torch.manual_seed(3)
    size = chat.tokenizer.vocab_size
    model = Decoder(tiny_config(vocab_size=size, seq_len=48, init_std=0.5))
    prompts = [chat.tokenizer.encode(text) for text in ("the cat", "a mat", "on")]
    answered = []
    found = greedy_answers(model, chat, prompts, 12, lambda: answered.append(1))
    assert len(answered) == 3
    for number, prompt in enumerate(prompts):
        ids = [
            *generate(
                model, prompt, stop_ids=chat.stop_ids, vocab_size=size, max_tokens=12, temperature=0
            )
        ]
        assert found["tokens"][number] == len(ids)
        assert found["stopped"][number] == (len(ids) < 12)
        assert found["distinct"][number] == distinct_share(ids)
        assert found["texts"][number] == (chat.tokenizer.decode(prompt), chat.tokenizer.decode(ids))


def test_an_answer_that_ends_has_stopped_and_its_end_is_no_token_of_it(chat):
    size, (stop, *_) = chat.tokenizer.vocab_size, chat.stop_ids
    model = Decoder(tiny_config(vocab_size=size, seq_len=48))
    other = next(token for token in range(size) if token not in chat.stop_ids)
    endless = greedy_answers(_always(model, other), chat, [[5, 6]], 9, lambda: None)
    assert (endless["tokens"], endless["stopped"]) == ([9], [False])
    ended = greedy_answers(_always(model, stop), chat, [[5, 6]], 9, lambda: None)
    assert (ended["tokens"], ended["stopped"], ended["texts"][0][1]) == ([0], [True], "")


def _always(model, token):
    """Return the model, changed so that `token` is always the likeliest."""
    head = model.embed.weight if model.config.tie_embeddings else model.lm_head.weight
    with torch.no_grad():
        for block in model.blocks:
            for parameter in block.parameters():
                parameter.zero_()
        model.embed.weight.fill_(1.0)
        model.norm.weight.fill_(1.0)
        head.fill_(1.0)
        head[token] = 2.0
    return model
