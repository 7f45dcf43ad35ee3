"""The entries of a tokenizer in a GGUF file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pion.errors import BadInput
from pion.formats.gguf.vocabulary import Kind, vocabulary
from tests.support.tokenizer_kinds import settings_of, write_files


def entry(entries: dict[str, object], name: str) -> object:
    return entries[f"tokenizer.ggml.{name}"]


def test_llama_3_has_its_first_token_and_both_stops(tmp_path: Path) -> None:
    folder = write_files("llama3", tmp_path)
    ids = {t["content"]: t["id"] for t in settings_of("llama3")["added_tokens"]}
    entries = vocabulary(folder, 380)
    assert entry(entries, "bos_token_id") == ids["<|begin_of_text|>"]
    assert entry(entries, "add_bos_token") is True
    assert entry(entries, "eos_token_id") == ids["<|end_of_text|>"]
    assert entry(entries, "eot_token_id") == ids["<|eot_id|>"]


def test_rows_without_a_token_are_unused(tmp_path: Path) -> None:
    folder = write_files("gpt2", tmp_path)
    size = len(settings_of("gpt2")["model"]["vocab"])
    entries = vocabulary(folder, size + 2)
    tokens, kinds = entry(entries, "tokens"), entry(entries, "token_type")
    assert isinstance(tokens, list)
    assert isinstance(kinds, list)
    assert tokens[size:] == [f"[PAD{size}]", f"[PAD{size + 1}]"]
    assert kinds[size:] == [Kind.UNUSED] * 2
    assert kinds[0] == Kind.CONTROL
    assert kinds[1] == Kind.NORMAL


def test_a_missing_or_damaged_tokenizer_is_named(tmp_path: Path) -> None:
    path = write_files("gpt2", tmp_path) / "tokenizer.json"
    half = json.dumps({**settings_of("gpt2"), "added_tokens": [{"id": 0}]}).encode()
    for damaged in (half, b"\xff"):
        path.write_bytes(damaged)
        with pytest.raises(BadInput, match=r"tokenizer\.json"):
            vocabulary(path.parent, 380)
    path.unlink()
    with pytest.raises(BadInput, match=r"tokenizer\.json"):
        vocabulary(path.parent, 380)


def test_more_stops_than_a_file_has_room_for_are_refused(tmp_path: Path) -> None:
    folder = write_files("llama3", tmp_path)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2, 3, 4]}))
    with pytest.raises(BadInput, match="4 ids end an answer"):
        vocabulary(folder, 380)
