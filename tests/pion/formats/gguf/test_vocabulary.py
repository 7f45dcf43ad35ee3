"""The entries of a tokenizer in a GGUF file, and the tokenizers that llama.cpp lacks."""

import json

import pytest

from pion.errors import BadInput
from pion.formats.gguf.vocabulary import Kind, pre_tokenizer, vocabulary
from tests.support.tokenizer_kinds import (
    ALL_BYTES,
    BYTES,
    added,
    sequence,
    settings_of,
    split,
    write_files,
)


def entry(entries, name):
    return entries[f"tokenizer.ggml.{name}"]


def test_llama_3_has_its_first_token_and_both_stops(tmp_path):
    folder = write_files("llama3", tmp_path)
    ids = {t["content"]: t["id"] for t in settings_of("llama3")["added_tokens"]}
    entries = vocabulary(folder, 380)
    assert entry(entries, "bos_token_id") == ids["<|begin_of_text|>"]
    assert entry(entries, "add_bos_token") is True
    assert entry(entries, "eos_token_id") == ids["<|end_of_text|>"]
    assert entry(entries, "eot_token_id") == ids["<|eot_id|>"]


def test_rows_without_a_token_are_unused(tmp_path):
    folder = write_files("gpt2", tmp_path)
    size = len(settings_of("gpt2")["model"]["vocab"])
    entries = vocabulary(folder, size + 2)
    tokens, kinds = entry(entries, "tokens"), entry(entries, "token_type")
    assert tokens[size:] == [f"[PAD{size}]", f"[PAD{size + 1}]"]
    assert kinds[size:] == [Kind.UNUSED] * 2
    assert kinds[0] == Kind.CONTROL
    assert kinds[1] == Kind.NORMAL


def test_a_missing_or_damaged_tokenizer_is_named(tmp_path):
    path = write_files("gpt2", tmp_path) / "tokenizer.json"
    half = json.dumps({**settings_of("gpt2"), "added_tokens": [{"id": 0}]}).encode()
    for damaged in (half, b"\xff"):
        path.write_bytes(damaged)
        with pytest.raises(BadInput, match=r"tokenizer\.json"):
            vocabulary(path.parent, 380)
    path.unlink()
    with pytest.raises(BadInput, match=r"tokenizer\.json"):
        vocabulary(path.parent, 380)


def test_more_stops_than_a_file_has_room_for_are_refused(tmp_path):
    folder = write_files("llama3", tmp_path)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2, 3, 4]}))
    with pytest.raises(BadInput, match="4 ids end an answer"):
        vocabulary(folder, 380)


# ---------------------------------------------------------------- the names of pre-tokenizers


@pytest.mark.parametrize(
    ("kind", "name"),
    [("gpt2", "gpt-2"), ("smollm2", "smollm"), ("llama3", "llama-bpe"), ("qwen", "qwen2")],
)
def test_a_known_tokenizer_has_a_name(kind, name):
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
def test_any_other_tokenizer_is_refused_with_the_reason(changes, reason):
    with pytest.raises(BadInput, match=f"GGUF can't express this tokenizer: .*{reason}"):
        pre_tokenizer(settings_of("gpt2", **changes))


@pytest.mark.parametrize(("key", "value"), [("dropout", 0.1), ("end_of_word_suffix", "</w>")])
def test_an_option_of_bpe_that_llama_cpp_lacks_is_refused(key, value):
    settings = settings_of("gpt2")
    settings["model"][key] = value
    with pytest.raises(BadInput, match=f"key model.{key} is set"):
        pre_tokenizer(settings)


def test_taking_whole_pieces_must_be_as_llama_cpp_does():
    settings = settings_of("gpt2")
    settings["model"]["ignore_merges"] = True
    with pytest.raises(BadInput, match=r"key model\.ignore_merges is true"):
        pre_tokenizer(settings)
    assert [pre_tokenizer(settings_of(kind)) for kind in ("llama3", "deepseek")] == [
        "llama-bpe",
        "dbrx",
    ]
