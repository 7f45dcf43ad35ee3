"""`pion export`: a folder for transformers, or a GGUF file for llama.cpp."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.support.finished_run import make_run


def test_export_writes_a_folder_that_pion_and_transformers_load(here, pion):
    make_run(here / "runs")
    code, out, _ = pion("export", "demo", "out", "--stage", "pretrain")
    assert code == 0
    assert "demo (pretrain, step 20); loaded again with transformers" in out
    assert pion("generate", "./out", "--prompt", "Return", "--max-tokens", "2")[0] == 0


def test_an_architecture_can_be_asked_for_and_is_refused_if_it_does_not_fit(here, pion):
    make_run(here / "runs")
    code, out, err = pion("export", "demo", "out", "--as", "qwen3_moe")
    assert code == 2
    assert "the model can't be exported as qwen3_moe: Qwen3Moe needs experts" in out + err
    assert not (here / "out").exists()
    assert pion("export", "demo", "out", "--as", "pion")[0] == 0
    assert (here / "out" / "modeling_pion.py").is_file()
    assert pion("generate", "./out", "--prompt", "Return", "--max-tokens", "2")[0] == 0


def test_rows_of_token_ids_can_be_exported_in_half_the_bytes(here, pion):
    make_run(here / "runs")
    assert pion("export", "demo", "whole")[0] == 0
    code, out, _ = pion("export", "demo", "small", "--embeddings", "bfloat16")
    assert code == 0
    assert "loaded again with transformers" in out
    whole, small = (load_file(Path(folder, "model.safetensors")) for folder in ("whole", "small"))
    table = "model.embed_tokens.weight"
    assert torch.equal(small[table].float(), whole[table].bfloat16().float())
    assert {str(tensor.dtype) for name, tensor in small.items() if name != table} == {
        "torch.float32"
    }
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


def test_four_bits_without_llama_cpp_are_refused_before_anything_is_written(
    here, pion, monkeypatch
):
    make_run(here / "runs")
    monkeypatch.setenv("PATH", str(here))
    code, out, err = pion("export", "demo", "demo.gguf", "--type", "q4_k_m")
    assert code == 2
    assert "pion export demo demo-f16.gguf" in out + err
    assert [path.name for path in here.iterdir()] == ["runs"]


def test_a_model_that_gguf_can_not_express_is_refused_before_anything_is_written(here, pion):
    make_run(here / "runs", softcap=15.0)
    code, out, err = pion("export", "demo", "out.gguf")
    assert code == 2
    assert "GGUF can't express this model" in out + err
    assert "Qwen3 does not support softcap 15.0" in out + err
    assert "pion export MODEL FOLDER" in out + err
    assert [path.name for path in here.iterdir()] == ["runs"]


def test_a_type_is_for_gguf_files_alone(here, pion):
    make_run(here / "runs")
    code, out, err = pion("export", "demo", "out", "--type", "q8_0")
    assert code == 2
    assert "Name a file such as out.gguf" in out + err
    assert not (here / "out").exists()
