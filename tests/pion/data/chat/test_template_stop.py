"""A model that learns a template's answers stops at the end of its turn, and not before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import pion
from pion.data.chat.template import ChatTemplate
from pion.data.records.layouts import read_conversation
from pion.data.tokens.special_tokens import read_special_tokens
from pion.data.tokens.tokenizer import Tokenizer
from pion.model.decoder import Decoder
from tests.support.chat_templates import TEMPLATES
from tests.support.in_process_renderer import InProcessRenderer
from tests.support.tiny_config import tiny_config
from tests.support.tokenizer_kinds import write_files

TALKS = {"Hi": "Hello", "Bye": "Until the next time"}


@pytest.mark.parametrize("name", ["SmolLM2", pytest.param("Llama 3.2", marks=pytest.mark.soak)])
def test_a_fine_tuned_model_answers_and_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("pion.data.chat.template.Renderer", InProcessRenderer)
    kind, source = TEMPLATES[name]
    write_files(kind, tmp_path, source)
    tokenizer = Tokenizer.from_file(tmp_path / "tokenizer.json")
    template = ChatTemplate(tmp_path, tokenizer)
    talks = [[{"role": "user", "content": ask}] for ask in TALKS]
    model = fine_tuned(tokenizer, template, talks)
    stops = read_special_tokens(tmp_path, tokenizer, template.end_of_turn).stop_ids
    for talk, answer in zip(talks, TALKS.values(), strict=True):
        prompt = template.prompt_ids(talk)
        options = {"temperature": 0.0, "max_tokens": 64, "vocab_size": tokenizer.vocab_size}
        new = list(pion.generate(model, prompt, stop_ids=stops, **options))
        assert tokenizer.decode(new) == answer
        endless = list(pion.generate(model, prompt, stop_ids=[], **options))
        assert endless[: len(new) + 1] == [*new, template.end_of_turn]
        assert len(endless) == 64


def fine_tuned(
    tokenizer: Tokenizer, template: ChatTemplate, talks: list[list[dict[str, str]]]
) -> Decoder:
    """Return a model that has learned the answers of TALKS by heart."""
    torch.manual_seed(0)
    model = Decoder(tiny_config(vocab_size=tokenizer.vocab_size, seq_len=192))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    records = [
        {"messages": [*talk, {"role": "assistant", "content": answer}]}
        for talk, answer in zip(talks, TALKS.values(), strict=True)
    ]
    found = template.tokenize_batch([read_conversation(record, "x") for record in records])
    examples = [example for one in found for example in one.tokenized]
    for _ in range(60):
        for example in examples:
            ids = torch.from_numpy(example.ids).long()
            learned = torch.from_numpy(example.learned)[1:]
            loss = F.cross_entropy(model(ids[None, :-1])[0][learned], ids[1:][learned])
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()
