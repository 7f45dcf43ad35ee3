"""The tokenizer of an export: the files of others stay as they are, and stops are a list."""

import json

import pytest
import torch

from pion.data.chat.conversation import chat_template, response_template
from pion.data.tokens.special_tokens import read_special_tokens
from pion.data.tokens.tokenizer import Tokenizer
from pion.errors import PionError
from pion.formats.export import export_model
from pion.formats.huggingface.tokenizer_files import (
    ModelTokenizer,
    copy_tokenizer,
    exported_tokenizer,
    write_tokenizer,
)
from pion.formats.target_folder import is_export
from pion.formats.verify import verify_export
from pion.model.decoder import Decoder
from tests.support.chat_templates import TEMPLATES
from tests.support.finished_run import tiny_tokenizer
from tests.support.in_process_renderer import InProcessRenderer
from tests.support.tiny_config import tiny_config
from tests.support.tokenizer_kinds import write_files

KEPT = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
IM_START, IM_END = "<|im_start|>", "<|im_end|>"
TEXTS = ["Return the 12 items.\n\n  e\u0301 <|im_end|> <think> isn't"]


def original(folder, name, **changes):
    kind, template = TEMPLATES[name]
    write_files(kind, folder, template)
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("{{ 1 }}")
    (folder / "model.safetensors").write_text("not the tokenizer's")
    special = read_special_tokens(folder, Tokenizer.from_file(folder / "tokenizer.json"))
    return ModelTokenizer(folder, special.stop_ids, special.pad, **changes)


def model_for(tokenizer):
    size = Tokenizer.from_file(tokenizer.folder / "tokenizer.json").vocab_size
    torch.manual_seed(0)
    return Decoder(tiny_config(vocab_size=size)).eval()


@pytest.mark.parametrize("name", ["SmolLM2", "Qwen 3", "Llama 3.2"])
def test_an_export_has_the_original_files_and_all_stops(tmp_path, name):
    from transformers import AutoTokenizer, GenerationConfig

    tokenizer = original(tmp_path / "original", name)
    decoder, out = model_for(tokenizer), tmp_path / "out"
    export_model(decoder, tokenizer, out)
    for file in (*KEPT, "additional_chat_templates/rag.jinja"):
        assert (out / file).read_bytes() == (tokenizer.folder / file).read_bytes()
    stops = json.loads((out / "generation_config.json").read_text())["eos_token_id"]
    assert stops == list(tokenizer.stop_ids) == GenerationConfig.from_pretrained(out).eos_token_id
    assert is_export(out)
    assert verify_export(out, decoder, tokenizer, TEXTS) < 1e-3
    stock = AutoTokenizer.from_pretrained(out)
    assert stock("a b")["input_ids"] == Tokenizer.from_file(out / "tokenizer.json").prompt("a b")
    export_model(decoder, tokenizer, out)  # an earlier export is replaced, its folders too


def test_a_class_that_leaves_out_the_first_token_stays(tmp_path):
    tokenizer = original(tmp_path / "original", "Llama 3.2")
    path = tokenizer.folder / "tokenizer_config.json"
    of_llama = {"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": False}
    path.write_text(json.dumps(json.loads(path.read_text()) | of_llama))
    export_model(model_for(tokenizer), tokenizer, tmp_path / "out")
    written = json.loads((tmp_path / "out/tokenizer_config.json").read_text())
    assert written.items() >= of_llama.items()


@pytest.mark.parametrize("named", ["LlamaTokenizerFast", "GPT2Tokenizer", None])
def test_an_export_has_the_ids_of_tokenizer_json_whatever_class_is_named(tmp_path, named):
    """As DeepSeek V3 and GPT-4o, whose classes in transformers split words in another way."""
    from transformers import AutoTokenizer

    tokenizer = original(tmp_path / "original", "Llama 3.2")
    path = tokenizer.folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": named}))
    decoder, out = model_for(tokenizer), tmp_path / "out"
    export_model(decoder, tokenizer, out)
    verify_export(out, decoder, tokenizer, TEXTS)
    (out / "config.json").unlink()
    expected = Tokenizer.from_file(out / "tokenizer.json").prompt("It isn't 12345\n\n  é")
    assert AutoTokenizer.from_pretrained(out)("It isn't 12345\n\n  é")["input_ids"] == expected


def test_a_model_of_others_keeps_its_ids_and_its_way_to_sample(tmp_path, monkeypatch):
    from transformers import AutoTokenizer

    monkeypatch.setattr("pion.data.chat.template.Renderer", InProcessRenderer)
    original(tmp_path / "base", "SmolLM2")
    settings = {"bos_token_id": 1, "pad_token_id": 2, "eos_token_id": 2, "top_p": 0.95}
    both = ("tokenizer_config.json", "special_tokens_map.json")
    named = {file: {"eos_token": IM_START} for file in both}
    files = {"generation_config.json": settings, **named}
    for name, changes in files.items():
        path = tmp_path / "base" / name
        old = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(old | changes))
    tokenizer = exported_tokenizer(tmp_path / "base" / "tokenizer.json", imported=True)
    decoder, out = model_for(tokenizer), tmp_path / "out"
    export_model(decoder, tokenizer, out)
    written = json.loads((out / "generation_config.json").read_text())
    assert written == {**settings, "eos_token_id": [2], "max_new_tokens": 128}
    config = json.loads((out / "config.json").read_text())
    assert (config["bos_token_id"], config["pad_token_id"]) == (1, 2)
    eos = AutoTokenizer.from_pretrained(out).eos_token
    assert eos == IM_END, "the base named a token at which it does not stop"


def test_a_template_in_place_of_the_models_own_is_the_only_one(tmp_path):
    from transformers import AutoTokenizer

    tokenizer = original(tmp_path / "original", "Qwen 3", template="{{ 'ours' }}")
    config = tokenizer.folder / "tokenizer_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "chat_template": "theirs"}))
    out = tmp_path / "out"
    out.mkdir()
    write_tokenizer(out, tokenizer, 64, chat=True)
    assert (out / "chat_template.jinja").read_text() == "{{ 'ours' }}"
    assert "theirs" not in "".join(path.read_text() for path in out.iterdir())
    assert not (out / "additional_chat_templates").exists()
    stock = AutoTokenizer.from_pretrained(out)
    assert stock.apply_chat_template([{"role": "user", "content": ""}], tokenize=False) == "ours"


def test_a_tokenizer_of_our_own_exports_keeps_its_first_token(tmp_path):
    tokenizer = original(tmp_path / "original", "Llama 3.2")
    decoder, path = model_for(tokenizer), tokenizer.folder / "tokenizer.json"
    export_model(decoder, path, tmp_path / "out")
    verify_export(tmp_path / "out", decoder, path, TEXTS)
    settings = json.loads((tmp_path / "out" / "tokenizer.json").read_text())
    settings["post_processor"] = None
    (tmp_path / "out" / "tokenizer.json").write_text(json.dumps(settings))
    with pytest.raises(PionError, match="does not put its first token"):
        verify_export(tmp_path / "out", decoder, path, TEXTS)


def test_files_that_the_model_lacks_are_not_there_and_others_are_not_copied(tmp_path):
    tokenizer = original(tmp_path / "original", "SmolLM2")
    for name in ("special_tokens_map.json", "chat_template.jinja"):
        (tokenizer.folder / name).unlink()
    out = tmp_path / "out"
    out.mkdir()
    write_tokenizer(out, tokenizer, 64, chat=True)
    names = {path.name for path in out.iterdir()}
    assert names == {"tokenizer.json", "tokenizer_config.json", "additional_chat_templates"}


# ---------------------------------------------------------------- where an answer is


def own_files(folder, *, chat=True):
    source, out = folder / "source", folder / "out"
    source.mkdir()
    out.mkdir()
    tiny_tokenizer().save(source / "tokenizer.json")
    write_tokenizer(out, source / "tokenizer.json", 64, chat=chat)
    return out


@pytest.mark.parametrize("end", ["\n<|endoftext|>", "<|endoftext|>", "\n", ""])
def test_transformers_finds_our_answers_whole_and_streamed(tmp_path, end):
    from transformers import AutoTokenizer
    from transformers.utils.chat_parsing import ResponseParser

    stock = AutoTokenizer.from_pretrained(own_files(tmp_path))
    question = [{"role": "user", "content": "Say <|assistant|>\nno"}]
    prompt = stock.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    answer = "One.\n\nTwo <|assistant|>"
    parsed = stock.parse_response(answer + end, prefix=prompt)
    assert parsed["role"] == "assistant"
    assert parsed["content"].strip() == answer
    parser = ResponseParser(stock.response_template, prefix=prompt)
    events = [event for letter in answer + end for event in parser.feed(letter)]
    events += parser.finalize()[1]
    shown = "".join(e["text"] for e in events if e["type"] == "region_chunk")
    assert shown == answer + ("" if "<" in end else end)


def test_a_base_model_has_no_answers(tmp_path):
    out = own_files(tmp_path, chat=False)
    assert "response_template" not in json.loads((out / "tokenizer_config.json").read_text())


def test_a_model_of_others_has_our_answers_only_with_our_template(tmp_path):
    source = original(tmp_path / "original", "SmolLM2").folder
    own = Tokenizer.from_file(source / "tokenizer.json")
    (tmp_path / "ours").mkdir()
    copy_tokenizer(source, tmp_path / "ours", template=chat_template(own))
    ours = json.loads((tmp_path / "ours" / "tokenizer_config.json").read_text())
    assert ours["response_template"] == response_template(own)
    # The next run trains a template of its own from it: our marks go.
    (tmp_path / "next").mkdir()
    copy_tokenizer(tmp_path / "ours", tmp_path / "next", template=TEMPLATES["SmolLM2"][1])
    theirs = json.loads((tmp_path / "next" / "tokenizer_config.json").read_text())
    assert "response_template" not in theirs


def test_the_marks_of_others_stay_when_a_job_changes_their_template(tmp_path):
    source = original(tmp_path / "original", "SmolLM2").folder
    path = source / "tokenizer_config.json"
    marks = {"start_anchor": "<|im_start|>assistant\n", "fields": {"content": {}}}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"response_template": marks}))
    (tmp_path / "out").mkdir()
    copy_tokenizer(source, tmp_path / "out", template="{# changed #}" + TEMPLATES["SmolLM2"][1])
    kept = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert kept["response_template"] == marks
