"""What a job calls a model to start from is found, and named by its content."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pion.data.tokens.tokenizer import Tokenizer
from pion.errors import BadInput, PionError
from pipeline.base.find import find_base, read_config
from pipeline.models.find import find_model
from pipeline.models.load import load_model
from tests.pipeline.base.conftest import export_base
from tests.support.finished_run import make_run
from tests.support.hub_server import hub_server
from tests.support.published_models import PUBLISHED, REPOSITORIES, config_of


def files_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def complaint(source, folder):
    with pytest.raises(BadInput) as refused:
        find_base(source, folder)
    return str(refused.value)


def test_a_folder_is_named_by_its_content_and_not_by_its_path(base, tmp_path):
    found = find_base("base", tmp_path)
    shutil.copytree(base, tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "notes.txt").write_text("of mine")
    (tmp_path / "elsewhere" / "README.md").write_text("another card")
    copied = find_base(str(tmp_path / "elsewhere"), Path("/"))
    assert copied.base.hash == found.base.hash
    assert "notes.txt" not in copied.files
    assert found.base.model_config.seq_len == 128
    other = find_base(str(export_base(tmp_path / "other", seed=1)), tmp_path)
    assert other.base.hash != found.base.hash
    assert other.base.tokenizer == found.base.tokenizer


def test_the_same_model_has_the_same_name_on_the_hub_and_only_small_files_are_read_there(
    base, tmp_path, monkeypatch
):
    with hub_server() as hub:
        commit = hub.add_repo("someone/tiny", "model", files_of(base))
        hub.use(monkeypatch, tmp_path / "hf")
        found = find_base("someone/tiny", tmp_path)
        assert not hub.count("resolve/.*safetensors")
        hub.add_repo("someone/tiny", "model", {"README.md": b"A new card."})
        assert find_base("someone/tiny", tmp_path).base.hash == found.base.hash
        first = find_base(f"hf://someone/tiny@{commit}", tmp_path)
    assert (found.base.commit, first.base.commit) == (commit, commit)
    assert first.base.hash == found.base.hash == find_base("base", tmp_path).base.hash


def test_a_separator_that_only_the_tokenizers_settings_name_is_found_on_the_hub(
    base, tmp_path, monkeypatch
):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (base / name).read_text()
        assert "<|endoftext|>" in text
        (base / name).write_text(text.replace("<|endoftext|>", "<|stop|>"))
    with hub_server() as hub:
        hub.add_repo("someone/tiny", "model", files_of(base))
        hub.use(monkeypatch, tmp_path / "hf")
        found = find_base("someone/tiny", tmp_path)
    assert Tokenizer.from_file(found.bring("tokenizer.json")).end_of_text_token == "<|stop|>"


def test_a_run_is_a_model_to_start_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs")
    found = find_base("demo@pretrain", tmp_path)
    assert set(found.files) == {"config.json", "model.safetensors", "tokenizer.json"}
    assert load_file(found.bring("model.safetensors")).keys()
    assert find_base("demo", tmp_path).base.hash != found.base.hash


# The Pion seed's names of our tensors, by parts of names.
OF_SEEDS = {
    "blocks.": "layers.",
    "attention_norm": "norm1",
    "feedforward_norm": "norm2",
    "feedforward.gate_proj": "ffn.w1",
    "feedforward.up_proj": "ffn.w3",
    "feedforward.down_proj": "ffn.w2",
    "attention.": "attn.",
}


def seeds_name(name):
    for ours, seeds in OF_SEEDS.items():
        name = name.replace(ours, seeds)
    return name


def test_a_seeds_file_is_converted_so_no_pickle_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    make_run(tmp_path / "runs")
    checkpoint = find_model(str(tmp_path / "runs" / "demo@pretrain"))
    weights = load_model(checkpoint).state_dict()
    seed = {"step": 20, "model": {seeds_name(n): w for n, w in weights.items()}, "config": None}
    torch.save(seed, tmp_path / "seed.pt")
    assert "pion import-seed" in complaint("seed.pt", tmp_path)
    shutil.copy(checkpoint.tokenizer, tmp_path / "tokenizer.json")
    found = find_base("seed.pt", tmp_path)
    assert set(found.files) == {"config.json", "model.safetensors", "tokenizer.json"}
    assert torch.equal(
        load_file(found.bring("model.safetensors"))["norm.weight"], weights["norm.weight"]
    )


def test_weights_in_several_files_are_kept_with_their_index(base, tmp_path):
    names = split_weights(base)
    found = find_base("base", tmp_path)
    assert set(names) <= found.files.keys()
    assert "model.safetensors.index.json" in found.files
    (base / names[1]).unlink()
    assert f"but not its file {names[1]}" in complaint("base", tmp_path)


def split_weights(folder):
    """Split a model's weights over two files; return their names."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = [f"model-0000{part}-of-00002.safetensors" for part in (1, 2)]
    in_order = sorted(tensors)
    weight_map = {}
    for number, name in enumerate(names):
        some = in_order[number::2]
        save_file({key: tensors[key] for key in some}, folder / name)
        weight_map |= dict.fromkeys(some, name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return names


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda folder: edit(folder, model_type="gptj"), "model_type is 'gptj'"),
        (lambda folder: edit(folder, intermediate_size=5), "the model's settings need (5, "),
        (lambda folder: edit(folder, vocab_size=5), "m.resize_token_embeddings("),
        (
            lambda folder: edit(folder, "generation_config.json", eos_token_id=10**6),
            "generation_config.json: key eos_token_id: 1,000,000 is none",
        ),
        (lambda folder: edit(folder, quantization={"bits": 4}), "its weights are quantized"),
    ],
)
def test_a_model_that_can_not_be_used_is_refused_by_name(base, tmp_path, change, expected):
    change(base)
    text = complaint("base", tmp_path)
    assert expected in text
    assert "base" in text


def edit(folder, name="config.json", **fields):
    config = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(config | fields))


def test_an_adapter_of_a_quantized_base_is_told_which_name_to_write(base, tmp_path):
    edit(base, quantization_config={"quant_method": "bitsandbytes"})
    (tmp_path / "adapter").mkdir()
    save_file({}, tmp_path / "adapter/adapter_model.safetensors")
    settings = {"peft_type": "LORA", "base_model_name_or_path": str(base), "r": 4}
    (tmp_path / "adapter/adapter_config.json").write_text(json.dumps(settings))
    text = complaint("adapter", tmp_path)
    assert "its weights are quantized ('bitsandbytes')" in text
    assert "under base_model_name_or_path in adapter_config.json" in text


def test_a_pad_that_is_no_token_is_noted(base, tmp_path):
    assert find_base("base", tmp_path).base.note == ""
    edit(base, "tokenizer_config.json", pad_token="[MISSING]")
    assert find_base("base", tmp_path).base.note.startswith("its pad_token '[MISSING]' is no")


@pytest.mark.parametrize(
    ("constant", "away"), [("ENDPOINT", "http://127.0.0.1:9"), ("HF_HUB_OFFLINE", True)]
)
def test_what_the_hubs_cache_has_is_a_model_while_the_hub_is_away(
    constant, away, base, tmp_path, monkeypatch
):
    with hub_server() as hub:
        hub.add_repo("someone/tiny", "model", files_of(base))
        hub.use(monkeypatch, tmp_path / "hf")
        before = find_base("someone/tiny", tmp_path)
        weights = find_model("someone/tiny").folder / "model.safetensors"
    monkeypatch.setattr(f"huggingface_hub.constants.{constant}", away)
    found = find_base("someone/tiny", tmp_path)
    assert (found.base, found.files) == (before.base, before.files)
    weights.unlink()
    with pytest.raises(PionError, match=r"can't be reached.*Nothing is lost"):
        find_base("someone/tiny", tmp_path)


def test_an_index_can_not_name_files_elsewhere(base, tmp_path):
    split_weights(base)
    index = {"weight_map": {"a": "../secret.safetensors"}}
    (base / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "must be the name of a " in complaint("base", tmp_path)


# ---------------------------------------------------------------- config.json


@pytest.mark.parametrize("repo", REPOSITORIES)
def test_the_settings_of_published_models_are_read(repo, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config_of(repo)))
    fields = PUBLISHED[REPOSITORIES[repo][0]][1]
    assert read_config(path).d_model == fields["hidden_size"]
    # Some files leave this out, and some have it as null.
    for architectures in ({}, {"architectures": None}):
        spelled = {k: v for k, v in config_of(repo).items() if k != "architectures"}
        path.write_text(json.dumps(spelled | architectures))
        assert read_config(path).seq_len == fields["max_position_embeddings"]


def test_a_repository_with_a_copy_of_transformers_class_is_read_as_this_class(tmp_path):
    path = tmp_path / "config.json"
    fields = config_of("HuggingFaceTB/SmolLM2-135M")
    for prefix in ("", "someone/model--"):
        code = {"AutoModelForCausalLM": f"{prefix}modeling_llama.LlamaForCausalLM"}
        path.write_text(json.dumps(fields | {"auto_map": code}))
        assert read_config(path).d_model == fields["hidden_size"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("architectures", "LlamaForCausalLM"),
        ("architectures", []),
        ("architectures", 3),
        ("architectures", ["LlamaForCausalLM2"]),
        ("auto_map", {"AutoModel": ["evil.Evil", None]}),
        ("auto_map", {"AutoModelForCausalLM": 3}),
        ("auto_map", {"AutoModelForCausalLM": "modeling_llama.FastLlamaForCausalLM"}),
        ("quantization_config", {}),
        ("quantization_config", "fp8"),
        ("model_type", 3),
    ],
)
def test_a_field_that_says_something_else_is_refused_by_its_name(field, value, tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config_of("HuggingFaceTB/SmolLM2-135M") | {field: value}))
    with pytest.raises(BadInput, match=f"config.json: {field}"):
        read_config(path)
