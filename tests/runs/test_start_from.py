"""Training that starts from an existing model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.cli import main
from tests.support.whole_runs import ends_with, finish, head_of, start, write_job


def first_weights(folder: Path, stage: str) -> dict[str, torch.Tensor]:
    """Return the weights after the single step that these jobs train."""
    entry = next(e for e in head_of(folder).checkpoints if e.stage == stage)
    return load_file(folder / "runs/tiny" / entry.key / "model.safetensors")


@pytest.fixture
def pretrained(whole: Callable[..., Path]) -> Path:
    return whole(sft=None)


def distance(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def a_run(pretrained: Path, folder: Path) -> str:
    return str(pretrained / "runs" / "tiny")


def a_seeds_checkpoint(pretrained: Path, folder: Path) -> str:
    weights = first_weights(pretrained, "pretrain")
    seed = {"step": 20, "model": {seeds_name(n): w for n, w in weights.items()}, "config": None}
    torch.save(seed, folder / "seed.pt")
    return "seed.pt"


@pytest.mark.parametrize("model", [a_run, a_seeds_checkpoint])
def test_a_run_continues_another_model_with_a_fresh_schedule(tmp_path, pretrained, model):
    job = write_job(
        tmp_path,
        sft=None,
        pretrain__steps=1,
        pretrain__warmup_steps=0,
        pretrain__lr=1e-6,
        pretrain__min_lr=1e-6,
        pretrain__init_from=model(pretrained, tmp_path),
    )
    assert "starts from" in finish(job)
    moved = distance(first_weights(tmp_path, "pretrain"), first_weights(pretrained, "pretrain"))
    assert 0 < moved < 1e-5


def test_an_sft_only_job_needs_no_pretraining_text(tmp_path: Path, pretrained: Path) -> None:
    checkpoint = next((pretrained / "runs/tiny/checkpoints/pretrain").glob("20-*"))
    tokenizer = str(checkpoint / "tokenizer.json")
    job = write_job(
        tmp_path,
        pretrain=None,
        data={"seq_len": 32, "shard_rows": 64, "held_out": 0.2},
        tokenizer={"file": tokenizer},
        model__vocab_size=320,
        sft__init_from=str(checkpoint),
        sft__lr=1e-6,
        sft__min_lr=0,
        evaluate__ngram_order=0,
    )
    finish(job)
    moved = distance(first_weights(tmp_path, "sft"), first_weights(pretrained, "pretrain"))
    assert 0 < moved < 1e-4


WITH_EXPERTS = {"model__experts": {"n": 4, "d_shared": 16}, "sft": None}


def test_a_model_of_another_shape_without_experts_is_refused_with_both_shapes(tmp_path, pretrained):
    source = str(pretrained / "runs" / "tiny")
    job = write_job(tmp_path, **WITH_EXPERTS, model__d_ff=64, pretrain__init_from=source)
    output = ends_with(2, start(job))
    assert f"init_from {source}: that model differs from the job's model" in output
    assert "d_ff: job 64, model 48" in output
    assert "experts.n: job 4, model (not set)" in output
    assert "experts.d_shared: job 16, model (not set)" in output
    assert "Traceback" not in output
    assert not list((tmp_path / "runs").rglob("*.safetensors"))


def test_a_fork_does_not_continue_with_other_parts(tmp_path, pretrained, capsys):
    store = tmp_path / "runs"
    assert main(["fork", str(pretrained / "runs" / "tiny"), f"{store}/fork"]) == 0
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    job = write_job(tmp_path, **WITH_EXPERTS, name="fork")
    assert main(["run", str(job)]) == 2
    error = capsys.readouterr().err
    assert "model.experts.n: (not set) → 4" in error
    assert "Traceback" not in error
    assert {path: path.read_bytes() for path in store.rglob("*") if path.is_file()} == before


def seeds_name(name: str) -> str:
    """Return the Pion seed's name of one of our tensors."""
    for ours, seeds in (
        ("blocks.", "layers."),
        ("attention_norm", "norm1"),
        ("feedforward_norm", "norm2"),
        ("feedforward.gate_proj", "ffn.w1"),
        ("feedforward.up_proj", "ffn.w3"),
        ("feedforward.down_proj", "ffn.w2"),
        ("attention.", "attn."),
    ):
        name = name.replace(ours, seeds)
    return name


def test_a_start_that_is_not_there_is_found_out_before_anything_begins(tmp_path: Path) -> None:
    job = write_job(tmp_path, sft=None, pretrain__init_from="no/such/model.pt")
    output = ends_with(2, start(job))
    assert "no/such/model.pt" in output
    assert not (tmp_path / "runs").exists()
