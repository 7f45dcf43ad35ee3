"""Which format a model talks in, found by the files next to its tokenizer.json."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pion.data.chat.chat_format import ChatFormat
from pion.data.chat.conversation import Turn, chat_template, tokenize
from pion.data.tokens.tokenizer import Tokenizer
from tests.support.chat_templates import CHATML
from tests.support.in_process_renderer import InProcessRenderer
from tests.support.tokenizer_kinds import write_files

ASKED = [{"role": "user", "content": "Hi"}]


@pytest.fixture(autouse=True)
def quick_renderer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pion.data.chat.template.Renderer", InProcessRenderer)


def found(folder: Path) -> ChatFormat:
    return ChatFormat(folder / "tokenizer.json", Tokenizer.from_file(folder / "tokenizer.json"))


def test_the_template_of_a_model_gives_prompts_and_the_stop(tmp_path: Path) -> None:
    write_files("smollm2", tmp_path, CHATML)
    talks = found(tmp_path)
    assert not talks.own
    ids = talks.prompt_ids(ASKED)
    text = talks.tokenizer.decode(ids, specials=True)
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    end = talks.tokenizer.special_ids["<|im_end|>"]
    assert talks.end_of_turn == end
    assert end in talks.stop_ids
    talks.close()


def test_without_a_template_and_with_pions_it_is_pions_own_format(tmp_path: Path) -> None:
    write_files("smollm2", tmp_path, CHATML)
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    config = tmp_path / "tokenizer_config.json"
    settings = json.loads(config.read_text())
    settings.pop("chat_template", None)
    config.write_text(json.dumps(settings))
    bare = found(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(chat_template(bare.tokenizer))
    for talks in (bare, found(tmp_path)):
        assert talks.own
        turns = [Turn("user", "Hi")]
        expected = tokenize(talks.tokenizer, turns, add_generation_prompt=True).ids.tolist()
        assert talks.prompt_ids(ASKED) == expected
        assert talks.end_of_turn == talks.tokenizer.end_of_text
        assert talks.end_of_turn in talks.stop_ids
        talks.close()
