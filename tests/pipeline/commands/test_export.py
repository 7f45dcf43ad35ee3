"""`pion export`: a folder for transformers, or a GGUF file for llama.cpp."""

import pytest
import torch
from safetensors.torch import load_file

from tests.support.finished_run import make_run


def test_export_writes_a_folder_that_pion_and_transformers_load(here, pion):
    make_run(here / "runs")
    code, out, _ = pion("export", "demo", "out", "--stage", "pretrain")
    assert code == 0
    assert "demo (pretrain, step 20); loaded again with transformers" in out
    assert pion("generate", "./out", "--prompt", "Return", "--max-tokens", "2")[0] == 0


@pytest.mark.parametrize(
    ("model", "arguments", "words"),
    [
        ({}, "out --as qwen3_moe", "the model can't be exported as qwen3_moe: Qwen3Moe does not"),
        ({}, "out --type q8_0", "Name a file such as out.gguf"),
        ({}, "demo.gguf --type q4_k_m", "pion export demo demo-f16.gguf"),  # without llama.cpp
        ({"softcap": 15.0}, "out.gguf", "GGUF can't express this model"),
        ({"softcap": 15.0}, "out.gguf", "Qwen3 does not support softcap 15.0"),
        ({"softcap": 15.0}, "out.gguf", "pion export MODEL FOLDER"),
    ],
)
def test_what_can_not_be_exported_is_refused_before_anything_is_written(
    here, pion, monkeypatch, model, arguments, words
):
    make_run(here / "runs", **model)
    monkeypatch.setenv("PATH", str(here))
    code, out, err = pion("export", "demo", *arguments.split())
    assert code == 2
    assert words in out + err
    assert [path.name for path in here.iterdir()] == ["runs"]


def test_an_architecture_can_be_asked_for(here, pion):
    make_run(here / "runs")
    assert pion("export", "demo", "out", "--as", "pion")[0] == 0
    assert (here / "out" / "modeling_pion.py").is_file()
    assert pion("generate", "./out", "--prompt", "Return", "--max-tokens", "2")[0] == 0


def test_rows_of_token_ids_can_be_exported_in_half_the_bytes(here, pion):
    make_run(here / "runs")
    code, out, _ = pion("export", "demo", "small", "--embeddings", "bfloat16")
    assert code == 0
    assert "loaded again with transformers" in out
    small = load_file(here / "small" / "model.safetensors")
    assert small.pop("model.embed_tokens.weight").dtype is torch.bfloat16
    assert {tensor.dtype for tensor in small.values()} == {torch.float32}
    assert pion("generate", "./small", "--prompt", "Return", "--max-tokens", "2")[0] == 0


def test_a_target_that_ends_in_gguf_is_a_file_for_llama_cpp(here, pion):
    make_run(here / "runs")
    code, out, _ = pion("export", "demo", "out/demo.gguf", "--stage", "pretrain")
    assert code == 0
    assert "demo (pretrain, step 20); f16 for the architecture qwen3 of llama.cpp" in out
    assert "all 24 tensors are the model's within the rounding of f16" in out
    assert [path.name for path in (here / "out").iterdir()] == ["demo.gguf"]
    code, out, _ = pion("export", "demo", "out/demo.gguf", "--type", "q8_0")
    assert code == 0
    assert "f16 instead of q8_0: 2 matrices whose rows are no multiple of 32" in out
