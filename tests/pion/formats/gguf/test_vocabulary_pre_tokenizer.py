"""A tokenizer is written by the name under which llama.cpp gives its ids, or refused."""

from __future__ import annotations

from typing import Any

import pytest

from pion.errors import BadInput
from pion.formats.gguf.vocabulary import pre_tokenizer
from tests.support.tokenizer_kinds import ALL_BYTES, BYTES, added, sequence, settings_of, split


@pytest.mark.parametrize(
    ("kind", "name"),
    [("gpt2", "gpt-2"), ("smollm2", "smollm"), ("llama3", "llama-bpe"), ("qwen", "qwen2")],
)
def test_a_known_tokenizer_has_a_name(kind: str, name: str) -> None:
    assert pre_tokenizer(settings_of(kind)) == name


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"pre_tokenizer": None}, "no such pre-tokenizer: none"),
        ({"pre_tokenizer": {**BYTES, "add_prefix_space": True}}, "no such pre-tokenizer"),
        ({"pre_tokenizer": sequence(split("[a-z]+"), ALL_BYTES)}, "Split, ByteLevel"),
        ({"normalizer": {"type": "Lowercase"}}, r"does not normalize a text.*\(Lowercase\)"),
        ({"normalizer": {"type": "NFKC"}}, r"does not normalize a text.*\(NFKC\)"),
        ({"added_tokens": [{**added("<m>", 0), "lstrip": True}]}, "token '<m>' has lstrip"),
    ],
)
def test_any_other_tokenizer_is_refused_with_the_reason(
    changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(BadInput, match=f"GGUF can't express this tokenizer: .*{reason}"):
        pre_tokenizer(settings_of("gpt2", **changes))


@pytest.mark.parametrize(("key", "value"), [("dropout", 0.1), ("end_of_word_suffix", "</w>")])
def test_an_option_of_bpe_that_llama_cpp_lacks_is_refused(key: str, value: Any) -> None:
    settings = settings_of("gpt2")
    settings["model"][key] = value
    with pytest.raises(BadInput, match=f"key model.{key} is set"):
        pre_tokenizer(settings)


@pytest.mark.parametrize(("kind", "whole"), [("gpt2", True), ("llama3", False)])
def test_taking_whole_pieces_must_be_as_llama_cpp_does(kind: str, whole: bool) -> None:
    settings = settings_of(kind)
    settings["model"]["ignore_merges"] = whole
    with pytest.raises(BadInput, match=r"key model\.ignore_merges is (true|false)"):
        pre_tokenizer(settings)
