from __future__ import annotations

from pathlib import Path

import pytest

from pion.data.chat.chat_format import ChatFormat
from pion.data.preference.layouts import parse_preference
from pion.data.preference.rendering import Usable, marked_preference, preference_format
from pion.data.tokens.tokenizer import Tokenizer
from tests.support.chat_templates import QWEN25
from tests.support.in_process_renderer import InProcessRenderer
from tests.support.tokenizer_kinds import write_files


@pytest.fixture
def chat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ChatFormat:
    monkeypatch.setattr("pion.data.chat.template.Renderer", InProcessRenderer)
    path = write_files("qwen", tmp_path, QWEN25) / "tokenizer.json"
    return ChatFormat(path, Tokenizer.from_file(path))


def usable(chat: ChatFormat, record: dict[str, object]) -> Usable:
    (found,) = preference_format(chat, 1000, 500).outcomes([parse_preference(record, "f:1")])
    assert isinstance(found, Usable)
    return found


START = (
    "prompt: <|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    "<|im_start|>assistant\n"
)


def test_the_prompt_is_shown_once_and_what_is_learned_is_marked(chat: ChatFormat) -> None:
    record = {"system": "Be brief.", "prompt": "Hi", "chosen": "Hello", "rejected": "Hello\x1b you"}
    assert marked_preference(chat.tokenizer, usable(chat, record)) == [
        START,
        "chosen: ⟦Hello<|im_end|>⟧",
        "rejected: ⟦Hello\N{REPLACEMENT CHARACTER} you<|im_end|>⟧",
    ]


def test_later_questions_of_answers_that_differ_early_are_not_marked(chat: ChatFormat) -> None:
    user, later = {"role": "user", "content": "Hi"}, {"role": "user", "content": "And?"}
    a, b = ({"role": "assistant", "content": text} for text in "ab")
    record = {"chosen": [user, a, later, b], "rejected": [user, b]}
    _, chosen, rejected = marked_preference(chat.tokenizer, usable(chat, record))
    assert chosen == (
        "chosen: ⟦a<|im_end|>⟧\n<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n"
        "⟦b<|im_end|>⟧"
    )
    assert rejected == "rejected: ⟦b<|im_end|>⟧"


@pytest.mark.parametrize(("label", "name"), [(True, "desired"), (False, "undesired")])
def test_a_labelled_answer_says_its_label(chat: ChatFormat, label: bool, name: str) -> None:
    record = {"system": "Be brief.", "prompt": "Hi", "completion": "Hello", "label": label}
    found = usable(chat, record)
    assert marked_preference(chat.tokenizer, found) == [START, f"{name}: ⟦Hello<|im_end|>⟧"]


def test_a_long_answer_is_cut_where_it_is_shown(chat: ChatFormat) -> None:
    found = usable(chat, {"prompt": "Hi", "chosen": "a " * 90, "rejected": "b"})
    *_, chosen, rejected = marked_preference(chat.tokenizer, found, most=4)
    assert chosen.startswith("chosen: ⟦a")
    assert "more tokens)" in chosen
    assert rejected == "rejected: ⟦b<|im_end|>⟧"
