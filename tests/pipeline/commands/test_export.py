"""`pion export`: a folder for transformers."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.pipeline.conftest import Pion
from tests.support.finished_run import make_run


def test_export_writes_a_folder_that_pion_and_transformers_load(here: Path, pion: Pion) -> None:
    make_run(here / "runs")
    code, out, _ = pion("export", "demo", "out", "--stage", "pretrain")
    assert code == 0
    assert "demo (pretrain, step 20); loaded again with transformers" in out
    assert pion("generate", "./out", "--prompt", "Return", "--max-tokens", "2")[0] == 0


def test_an_architecture_can_be_asked_for_and_is_refused_if_it_does_not_fit(
    here: Path, pion: Pion
) -> None:
    make_run(here / "runs")
    code, out, err = pion("export", "demo", "out", "--as", "qwen3_moe")
    assert code == 2
    assert "the model can't be exported as qwen3_moe: Qwen3Moe needs experts" in out + err
    assert not (here / "out").exists()
    assert pion("export", "demo", "out", "--as", "pion")[0] == 0
    assert (here / "out" / "modeling_pion.py").is_file()
    assert pion("generate", "./out", "--prompt", "Return", "--max-tokens", "2")[0] == 0


def test_rows_of_token_ids_can_be_exported_in_half_the_bytes(here: Path, pion: Pion) -> None:
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
