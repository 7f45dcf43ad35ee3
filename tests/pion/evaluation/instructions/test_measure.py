"""A model is asked in its own chat format, and its answers are what it would write alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

import pion
from pion.data.chat.chat_format import ChatFormat
from pion.errors import BadInput
from pion.evaluation.instructions.measure import measure, room
from pion.evaluation.instructions.prompts import instructions
from pion.model.decoder import Decoder
from tests.support.finished_run import tiny_model, tiny_tokenizer

ASKED = instructions(24)


@pytest.fixture
def chat_format(tmp_path: Path) -> ChatFormat:
    tokenizer = tiny_tokenizer()
    tokenizer.save(tmp_path / "tokenizer.json")
    return ChatFormat(tmp_path / "tokenizer.json", tokenizer)


def model_of(chat_format: ChatFormat, seq_len: int = 256) -> Decoder:
    """Return a model some of whose answers end by themselves, and some never do."""
    model = tiny_model(chat_format.tokenizer.vocab_size, seq_len, init_std=0.3)
    with torch.no_grad():
        model.embed.weight[chat_format.end_of_turn] *= 1.5
    return model


def prompt_ids(chat_format: ChatFormat) -> list[list[int]]:
    return [chat_format.prompt_ids([{"role": "user", "content": one.prompt}]) for one in ASKED]


def test_answers_are_what_the_model_writes_alone_with_its_likeliest_tokens(
    chat_format: ChatFormat,
) -> None:
    model, counts = model_of(chat_format), list[int]()
    found = measure(model, chat_format, ASKED, counts.append)
    assert counts == list(range(1, 25))
    assert found.most_tokens == 256 - max(map(len, prompt_ids(chat_format)))
    for item, ids in zip(found.items, prompt_ids(chat_format), strict=True):
        alone = list(
            pion.generate(
                model,
                ids,
                stop_ids=chat_format.stop_ids,
                vocab_size=chat_format.tokenizer.vocab_size,
                max_tokens=found.most_tokens,
                temperature=0,
            )
        )
        assert item.answer == chat_format.tokenizer.decode(alone)
        assert item.finished == (len(alone) < found.most_tokens)
    assert {item.finished for item in found.items} == {True, False}


@pytest.mark.soak
def test_the_same_model_gets_the_same_score_again(chat_format: ChatFormat) -> None:
    model = model_of(chat_format)
    one, other = (measure(model, chat_format, ASKED, lambda _: None) for _ in range(2))
    assert one == other


def test_an_answer_that_fills_the_context_is_unfinished(chat_format: ChatFormat) -> None:
    longest = max(map(len, prompt_ids(chat_format)))
    model = tiny_model(chat_format.tokenizer.vocab_size, longest + 64)
    with torch.no_grad():  # the model never ends
        model.embed.weight[list(chat_format.stop_ids)] = 0
    found = measure(model, chat_format, ASKED, lambda _: None)
    assert found.most_tokens == 64
    assert found.met.unfinished == 1
    assert found.at_chance


def test_a_context_without_room_for_answers_is_refused_before_any_work(
    chat_format: ChatFormat,
) -> None:
    longest = max(map(len, prompt_ids(chat_format)))
    model = tiny_model(chat_format.tokenizer.vocab_size, longest + 63)
    with pytest.raises(BadInput, match=f"longest prompt has {longest} .* least {longest + 64} "):
        measure(model, chat_format, ASKED, lambda _: pytest.fail("the model was asked"))


@pytest.mark.parametrize(
    ("seq_len", "longest", "most"), [(2048, 60, 256), (316, 60, 256), (315, 60, 255), (124, 60, 64)]
)
def test_answers_have_256_tokens_or_what_the_context_leaves(
    seq_len: int, longest: int, most: int
) -> None:
    assert room(seq_len, longest) == most


def test_a_model_that_predicts_nan_has_no_score(chat_format: ChatFormat) -> None:
    model = model_of(chat_format)
    with torch.no_grad():
        model.embed.weight[:] = torch.nan
    with pytest.raises(BadInput, match="NaN or infinity"):
        measure(model, chat_format, ASKED, lambda _: None)


@pytest.mark.soak
def test_the_prompts_are_in_the_form_of_the_models_own_template(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = (
        "{% for message in messages %}[{{ message.role }}] {{ message.content }}{% endfor %}"
        "{% if add_generation_prompt %} [assistant] {% endif %}"
    )
    tokenizer = tiny_tokenizer()
    tokenizer.save(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    texts: list[str] = []

    def asked_of(
        model: Decoder, prompts: Sequence[Sequence[int]], **settings: Any
    ) -> Iterator[tuple[int, None]]:
        texts.extend(tokenizer.decode(ids, specials=True) for ids in prompts)
        return ((number, None) for number in range(len(prompts)))

    monkeypatch.setattr("pion.evaluation.likeliest.generate_batch", asked_of)
    with closing(ChatFormat(tmp_path / "tokenizer.json", tokenizer)) as chat_format:
        model = tiny_model(tokenizer.vocab_size, 256)
        found = measure(model, chat_format, ASKED, lambda _: None)
    assert texts == [f"[user] {one.prompt} [assistant] " for one in ASKED]
    assert found.met.strict.share == found.met.unfinished == 0
