"""A run of a model with slots, whose fine-tuning stage trains LoRA's additions."""

import json

import pytest
import torch
from safetensors.torch import load_file

from pipeline.cli import main
from pipeline.models.find import find_model
from pipeline.models.load import load_model
from tests.support.whole_runs import final_weights, head_of

JOB = {
    "model__slots": {"per_segment": 2, "segment": 8, "window": 2},
    "sft__lora": {"rank": 4},
    "sft__lr": 1e-2,
    "publish": {"to": "out"},
    "hardware__threads": 1,
}


@pytest.mark.soak
def test_lora_trains_the_projections_and_leaves_the_slots_alone(whole):
    folder = whole(**JOB)
    run = f"{folder}/runs/tiny"
    merged, base = (
        load_model(find_model(f"{run}@{stage}")).state_dict() for stage in ("sft", "pretrain")
    )
    assert torch.equal(merged["slots.weight"], base["slots.weight"])
    changed = {name for name in base if not torch.equal(merged[name], base[name])}
    assert changed
    assert all(".attention." in name or ".feedforward." in name for name in changed)
    key = head_of(folder).stages["sft"].checkpoint
    saved = load_file(folder / "runs/tiny" / key / "model.safetensors")
    assert all(name.endswith((".lora_a", ".lora_b")) for name in saved)


def test_the_folder_has_its_own_code_and_no_gguf_is_written(whole, tmp_path, capsys):
    folder = whole(**JOB)
    published = folder / "out"
    assert (published / "modeling_pion.py").is_file()
    card = (published / "README.md").read_text()
    assert "2 after each 8 tokens, seen by all later tokens" in card
    assert "at most the last 16 tokens" in card
    config = json.loads((published / "config.json").read_text())
    assert "PionForCausalLM" in config["architectures"]
    for model in (str(published), f"{folder}/runs/tiny"):
        capsys.readouterr()
        code = main(["export", model, str(tmp_path / "model.gguf")])
        error = capsys.readouterr().err
        assert code == 2, error
        assert "GGUF can't express this model: llama.cpp has only stock architectures" in error
        assert "Qwen3 does not support slots" in error
        assert "`pion export MODEL FOLDER`" in error
        assert "Traceback" not in error
        assert list(tmp_path.iterdir()) == []
    code = main(["export", f"{folder}/runs/tiny", str(tmp_path / "stock"), "--as", "qwen3"])
    assert code == 2
    assert "can't be exported as qwen3: Qwen3 does not support slots" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.soak
def test_a_whole_row_can_be_one_document(whole):
    """Its segments count from its start, so slots learn from other tokens."""
    short = {**JOB, "publish": None, "sft": None, "data__seq_len": 48}
    of_documents = whole(**short)
    of_rows = whole(**short, data__documents=False)
    assert final_weights(of_documents) != final_weights(of_rows)
