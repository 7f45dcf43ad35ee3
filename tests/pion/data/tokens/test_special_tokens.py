import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from pion.data.tokens.special_tokens import read_special_tokens
from pion.data.tokens.token_names import token_names
from pion.data.tokens.tokenizer import Tokenizer
from tests.support.tokenizer_kinds import write_files, write_json

# By kind: the stops and the pad.
EXPECTED = {
    "gpt2": (["<|endoftext|>"], "<|endoftext|>"),
    "smollm2": (["<|im_end|>"], "<|im_end|>"),
    "llama3": (["<|end_of_text|>", "<|eot_id|>"], "<|end_of_text|>"),
    "qwen": (["<|im_end|>", "<|endoftext|>"], "<|endoftext|>"),
}


def written(folder, kind, **files) -> tuple[Path, Tokenizer]:
    """Write a model's files, some replaced (None: absent); return the folder and the tokenizer."""
    write_files(kind, folder)
    for name, content in files.items():
        path = folder / f"{name}.json"
        path.unlink()
        if content is not None:
            path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder, Tokenizer.from_file(folder / "tokenizer.json")


@pytest.mark.parametrize("kind", EXPECTED)
def test_the_special_tokens_of_each_kind_are_found(tmp_path, kind):
    folder, tokenizer = written(tmp_path, kind)
    found = read_special_tokens(folder, tokenizer)
    stops, pad = EXPECTED[kind]
    assert list(found.stop_ids) == [tokenizer.special_ids[stop] for stop in stops]
    assert found.pad == tokenizer.special_ids[pad]


def test_the_end_of_a_turn_is_a_stop_and_no_stop_is_there_twice(tmp_path):
    folder, tokenizer = written(tmp_path, "llama3", generation_config={"eos_token_id": 361})
    end = tokenizer.special_ids["<|eot_id|>"]
    assert read_special_tokens(folder, tokenizer, end).stop_ids == (361, end)
    assert read_special_tokens(folder, tokenizer, 361).stop_ids == (361,)


def test_without_generation_settings_the_eos_token_stops_then_the_separator(tmp_path):
    folder, tokenizer = written(tmp_path, "qwen", generation_config=None)
    im_end = tokenizer.special_ids["<|im_end|>"]
    assert read_special_tokens(folder, tokenizer).stop_ids == (im_end,)
    for name in ("tokenizer_config", "special_tokens_map"):
        (folder / f"{name}.json").unlink()
    special = read_special_tokens(folder, tokenizer)
    assert special.stop_ids == (tokenizer.end_of_text,)
    assert special.pad == tokenizer.pad


@pytest.mark.parametrize("listed", [False, True])
def test_names_in_two_files_that_differ_are_read_as_transformers_reads_them(tmp_path, listed):
    folder, tokenizer = written(tmp_path, "llama3")
    write_json(folder / "special_tokens_map.json", {"eos_token": "<|end_of_text|>"})
    path, end = folder / "tokenizer_config.json", "<|eot_id|>"
    tokens = {"added_tokens_decoder": {tokenizer.special_ids[end]: {"content": end}}}
    write_json(path, json.loads(path.read_text()) | {"eos_token": end} | (tokens if listed else {}))
    theirs = AutoTokenizer.from_pretrained(folder).eos_token
    assert token_names(folder)["eos_token"] == theirs == (end if listed else "<|end_of_text|>")
