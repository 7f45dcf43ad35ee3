from __future__ import annotations

import numpy as np

from pion.data.chat.conversation import Tokenized, Turn, marked_text, tokenize
from tests.support.tokenizer_kinds import tokenizer_of

GPT2 = tokenizer_of("gpt2")


def test_learned_tokens_are_between_brackets() -> None:
    turns = [Turn("user", "Hi"), Turn("assistant", "Yes é"), Turn("user", "a"), Turn("user", "b")]
    expected = "<|user|>\nHi\n<|assistant|>\n⟦Yes é\n<|endoftext|>⟧<|user|>\na\n<|user|>\nb\n"
    assert marked_text(GPT2, tokenize(GPT2, turns)) == expected


def test_what_is_learned_first_last_or_not_at_all_is_marked_so() -> None:
    ids = np.array(GPT2.encode("ab"), np.int32)
    assert len(ids) == 2
    masks = [(False, False), (True, False), (False, True), (True, True)]
    texts = [marked_text(GPT2, Tokenized(ids, np.array(mask))) for mask in masks]
    assert texts == ["ab", "⟦a⟧b", "a⟦b⟧", "⟦ab⟧"]
    assert marked_text(GPT2, Tokenized(ids[:0], np.zeros(0, np.bool_))) == ""


def test_a_long_conversation_is_cut_and_can_not_control_the_terminal() -> None:
    turns = [Turn("assistant", "\x1b[2J\u202e" + "a\tb " * 500)]
    found = tokenize(GPT2, turns)
    text = marked_text(GPT2, found, most=50)
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert text.endswith(f"⟧\n… ({len(found.ids) - 50:,} more tokens)")
