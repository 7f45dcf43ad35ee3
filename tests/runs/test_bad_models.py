"""Models that can't be a start: `pion check` says why in one message, before anything is rented."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from pion.config.lora import Adapter, Lora
from pion.formats.export import export_model
from pion.formats.load import identify, load_decoder
from pion.formats.peft_folder import write_adapter_folder
from pion.model.lora_projections import add_lora, additions
from pipeline.cli import main
from tests.pipeline.base.conftest import export_base
from tests.support.finished_run import tiny_model, tiny_tokenizer
from tests.support.hub_server import READ_TOKEN, hub_server
from tests.support.jobs import write_tiny_data

SFT = {"steps": 2, "sources": [{"kind": "jsonl", "path": "talks.jsonl"}]}


def files_in(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def edited(files, name, **fields):
    return files | {name: json.dumps(json.loads(files[name]) | fields).encode()}


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    return files_in(export_base(tmp_path_factory.mktemp("honest") / "base"))


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, honest):
    """An adapter of someone/base, as peft writes it."""
    folder, base = tmp_path_factory.mktemp("adapter"), tmp_path_factory.mktemp("of") / "base"
    model = load_decoder(export_base(base))
    wanted = Lora(rank=2)
    add_lora(model, wanted, seed=0)
    start = identify(load_decoder(base), "someone/base")
    write_adapter_folder(folder, model.config, Adapter(wanted, start), additions(model))
    (folder / "adapter.json").unlink()  # which peft does not write
    return edited(files_in(folder), "adapter_config.json", base_model_name_or_path="someone/base")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_tiny_data(tmp_path)
    with hub_server() as server:
        server.use(monkeypatch, tmp_path / "hf", token=None)
        yield server


@pytest.fixture
def refusal(hub, capsys):
    """`refusal(source, **changes)`: why `pion check` refuses the job, in its only message."""

    def check(source="someone/model", **changes):
        job = {"name": "mine", "model": {"from": source}, "sft": SFT} | changes
        Path("job.yaml").write_text(yaml.safe_dump(job))
        assert main(["check", "job.yaml", "--json"]) == 2
        row, *others = json.loads(capsys.readouterr().out)
        assert all(other["ok"] for other in others), "the data are checked with any model"
        assert row["ok"] is False
        assert "nothing was started" in row["words"]
        assert "/hub/models--" not in row["words"], "a path of the cache says nothing"
        assert not Path("runs").exists()
        return str(row["words"])

    return check


# ---------------------------------------------------------------- who may read it


def test_a_gated_model_names_its_page_and_the_token_that_is_missing_or_has_no_access(
    hub, honest, refusal, tmp_path, monkeypatch
):
    hub.add_repo("someone/model", "model", honest, gated=True)
    words = refusal()
    assert "Accept its terms on https://huggingface.co/someone/model." in words
    assert "export HF_TOKEN=" in words
    hub.use(monkeypatch, tmp_path / "hf", token=READ_TOKEN)
    words = refusal()
    assert "The token from HF_TOKEN has no access" in words
    assert "on https://huggingface.co/someone/model with the account of that token" in words


def test_a_missing_model_may_be_misspelt_or_private(refusal):
    words = refusal("someone/modell")
    assert "Hub model someone/modell: there is no such repository; check its name" in words
    assert "If the repository is private" in words


# ---------------------------------------------------------------- what it is


def without_safetensors(files, name):
    return {n: c for n, c in files.items() if n != "model.safetensors"} | {name: b"weights"}


CODE = {"AutoModelForCausalLM": "modeling_odd.OddForCausalLM"}
KNOWN = "Pion reads qwen3, qwen3_moe, arcee, llama, qwen2, pion, mistral"
MODELS = {
    "only a pickle": (
        lambda files: without_safetensors(files, "pytorch_model.bin"),
        ["only as pytorch_model.bin, a pickle", "save_pretrained"],
    ),
    "only GGUF": (
        lambda files: without_safetensors(files, "model-q4.gguf"),
        ["only as model-q4.gguf", "Start from the model that it was made from"],
    ),
    "no weights": (
        lambda files: {"README.md": b"soon"},
        ["has no model.safetensors, so it is no model to start from"],
    ),
    "an unknown architecture": (
        lambda files: edited(files, "config.json", model_type="gemma4_text"),
        ["model_type is 'gemma4_text'; did you mean 'gemma3_text'?", KNOWN],
    ),
    "an unknown architecture with code": (
        lambda files: edited(files, "config.json", model_type="odd", auto_map=CODE),
        [KNOWN, "code of its own ('modeling_odd.OddForCausalLM'), which Pion never runs"],
    ),
    "a known architecture with code": (
        lambda files: edited(files, "config.json", auto_map=CODE),
        ["auto_map names code of its own", "another one than Qwen3ForCausalLM"],
    ),
    "a classifier": (
        lambda files: edited(files, "config.json", architectures=["Qwen3ForTokenClassification"]),
        ["['Qwen3ForTokenClassification']; only Qwen3ForCausalLM"],
    ),
    "quantized weights": (
        lambda files: edited(files, "config.json", quantization_config={"quant_method": "awq"}),
        ["quantized ('awq')", "Name the model that was quantized"],
    ),
    "no tokenizer.json": (
        lambda files: {n: c for n, c in files.items() if n != "tokenizer.json"},
        ["someone/model has no tokenizer.json"],
    ),
    "a tokenizer of SentencePiece": (
        lambda files: edited(
            files, "tokenizer.json", model={"type": "Unigram", "vocab": [["a", 0.0]], "unk_id": 0}
        ),
        ["tokenizer.json: a SentencePiece-style tokenizer", "such as SmolLM2, Qwen or Llama 3"],
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_that_can_not_be_trained_says_what_would_do(name, hub, honest, refusal):
    change, said = MODELS[name]
    hub.add_repo("someone/model", "model", change(honest))
    words = refusal()
    for expected in said:
        assert expected in words


# ---------------------------------------------------------------- what the job asks of it


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"sft": SFT | {"lora": {"targets": ["c_attn"]}}}, "no projection 'c_attn' that LoRA can"),
        ({"sft": SFT | {"lora": {"targets": ["qproj"]}}}, "; it has q_proj, k_proj, v_proj, o_pr"),
    ],
)
def test_a_projection_that_the_model_lacks_is_refused(changes, expected, hub, honest, refusal):
    hub.add_repo("someone/model", "model", honest)
    assert expected in refusal(**changes)


# ---------------------------------------------------------------- adapters


def test_an_adapter_whose_base_is_missing_names_both(hub, adapter, refusal):
    commit = hub.add_repo("someone/model", "model", adapter)
    words = refusal()
    assert f"hf://someone/model@{commit} is an adapter, and its base 'someone/base'" in words
    assert "Hub model someone/base: there is no such repository; check its name" in words


def test_an_adapter_of_another_base_names_the_tensor_that_does_not_fit(
    hub, adapter, refusal, tmp_path
):
    hub.add_repo("someone/model", "model", adapter)
    tokenizer = tmp_path / "tokenizer.json"
    tiny_tokenizer().save(tokenizer)
    torch.manual_seed(0)
    narrow = tiny_model(tiny_tokenizer().vocab_size, seq_len=128, d_ff=32)
    export_model(narrow, tokenizer, tmp_path / "narrow")
    hub.add_repo("someone/base", "model", files_in(tmp_path / "narrow"))
    words = refusal()
    assert "is an adapter, and can't be merged with its base hf://someone/base" in words
    assert "feedforward" in words


def test_a_pickled_adapter_says_how_to_save_it_again(hub, adapter, refusal):
    pickled = {"adapter_config.json": adapter["adapter_config.json"], "adapter_model.bin": b"x"}
    hub.add_repo("someone/model", "model", pickled)
    assert "without adapter_model.safetensors, and pickles are not read" in refusal()
