"""Whoever uses a model gets it from a checkpoint in parts as from a whole one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.base.find import find_base
from pipeline.models.find import find_model
from pipeline.models.load import load_model
from tests.pipeline.conftest import Pion
from tests.support.finished_run import make_run
from tests.support.parts import split_newest

Tensors = dict[str, torch.Tensor]


@pytest.fixture
def weights(here: Path) -> Tensors:
    """The weights of the newest checkpoint of the run `demo`, which has them in three parts."""
    run = make_run(here / "runs")
    before = load_model(find_model("demo")).state_dict()
    folder = split_newest(run, 3)
    assert len(list(folder.glob("model-*-of-3.safetensors"))) == 3
    return before


def same(found: Tensors, expected: Tensors) -> bool:
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], expected[name]) for name in expected
    )


def test_a_run_and_a_folder_in_parts_are_models(here: Path, weights: Tensors) -> None:
    found = find_model("demo")
    assert same(load_model(found).state_dict(), weights)
    assert same(load_model(find_model(str(found.folder))).state_dict(), weights)


def test_commands_read_verify_fork_and_export_parts(
    here: Path, weights: Tensors, pion: Pion
) -> None:
    code, out, _ = pion("checkpoints", "demo", "--verify", "--json")
    assert code == 0
    assert json.loads(out)
    code, _, err = pion("fork", "demo", "twin", "--at", "5")
    assert code == 0, err
    assert same(load_model(find_model("twin@sft")).state_dict(), weights)
    code, _, err = pion("export", "demo", str(here / "out"))
    assert code == 0, err
    exported = load_file(here / "out" / "model.safetensors")
    assert sum(each.numel() for each in exported.values()) > 0


def test_a_part_that_is_gone_or_changed_is_named(here: Path, weights: Tensors, pion: Pion) -> None:
    part = find_model("demo").folder / "model-2-of-3.safetensors"
    data = bytearray(part.read_bytes())
    data[-1] ^= 1
    part.write_bytes(data)
    code, out, _ = pion("checkpoints", "demo", "--verify")
    assert code == 1
    assert "model-2-of-3.safetensors has been altered" in out
    part.unlink()
    code, _, err = pion("generate", "demo", "--prompt", "a")
    assert code == 2
    assert "model-2-of-3.safetensors is missing" in err


def test_a_job_that_starts_from_parts_keeps_one_whole_file(here: Path, weights: Tensors) -> None:
    found = find_base("runs/demo", here)
    assert [name for name in found.files if name.endswith(".safetensors")] == ["model.safetensors"]
    assert same(load_file(found.bring("model.safetensors")), weights)
