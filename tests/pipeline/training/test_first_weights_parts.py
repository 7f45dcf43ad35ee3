"""The first weights of a sharded stage: those of a whole model, read where they are needed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pion.model.decoder import Decoder
from pipeline.job import Job
from pipeline.job.model_section import Base
from pipeline.state.record_json import to_json
from pipeline.training.first_weights import first_model, first_parts
from tests.support.jobs import tiny_dict, tiny_job
from tests.support.tiny_config import tiny_config

MODULE = "pipeline.training.first_weights"


def same_start(context: Any, stage: str) -> None:
    """Check that a sharded stage starts from the bits of `first_model`, without having them."""
    whole, why = first_model(context, stage)
    model, saved, also_why = first_parts(context, stage)
    assert also_why == why
    assert saved is not None
    without = {name for name, tensor in model.state_dict().items() if tensor.is_meta}
    assert {"embed.weight", "blocks.1.attention.q_proj.weight"} <= without
    assert without <= saved.layout().keys()
    assert model.config == whole.config
    expected = whole.state_dict()
    for name, (shape, _) in saved.layout().items():
        found = saved.part(name, 0, shape.numel()).to(expected[name].dtype)
        assert torch.equal(found.view(shape), expected[name]), name
    for name in expected.keys() - saved.layout().keys():
        assert torch.equal(model.state_dict()[name], expected[name]), name


def context_of(job: Job) -> Any:
    return SimpleNamespace(job=job, run=SimpleNamespace(store=None), fetch=lambda bring: bring())


def test_random_weights_have_the_same_bits() -> None:
    same_start(context_of(tiny_job(sft=None)), "pretrain")


def test_the_weights_of_the_stage_before_are_read_from_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = tiny_job()
    config = job.model_config_resolved()
    (tmp_path / "config.json").write_text(to_json(config.to_dict()))
    save_file(Decoder(config).state_dict(), tmp_path / "model.safetensors")
    monkeypatch.setattr(f"{MODULE}._bring_trained", lambda run, stage: (stage, tmp_path))
    same_start(context_of(job), "sft")


def test_the_weights_of_a_base_are_fitted_to_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(seq_len=96)
    save_file(
        {name: tensor.bfloat16() for name, tensor in Decoder(config).state_dict().items()},
        tmp_path / "model.safetensors",
    )
    (tmp_path / "config.json").write_text(to_json(config.to_dict()))
    monkeypatch.setattr(f"{MODULE}.bring_base", lambda store, base_hash: tmp_path)
    base = Base("base", "a" * 64, "b" * 64, config.to_dict())
    values = tiny_dict(model={"from": "base"}, pretrain=None)
    del values["tokenizer"]
    same_start(context_of(Job.model_validate(values, context={"base": base})), "sft")
