"""A stage computes its reference with the model that it starts from, and never when it resumes."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from pion.model.decoder import Decoder
from pion.model.parameters import tensors_sha256
from pion.train.settings import ComputePlan
from pipeline.training.reference import of_stage
from pipeline.training.reference.of_stage import Start, with_reference
from tests.support.tiny_config import tiny_config

PLAN = ComputePlan()
STREAMS = {split: f"rows of {split}" for split in ("train", "held_out")}


def numbers(name):
    """Return the bound numbers of this name, as computed by PLAN."""
    splits = {
        split: SimpleNamespace(in_stream=lambda rows, split=split: f"{rows} with {name} {split}")
        for split in STREAMS
    }
    return SimpleNamespace(
        splits=splits, record=name.encode(), dtype=PLAN.dtype, residual=PLAN.residual
    )


def start_of_the_stage():
    torch.manual_seed(0)
    return Start(Decoder(tiny_config()), None, PLAN)


@pytest.fixture
def asked(monkeypatch):
    """What was asked for, in order: a pass with a model, the bound numbers, a comparison."""
    asked = []

    def make(context, streams, start):
        asked.append(start)
        return numbers("new")

    def bound(context, streams):
        asked.append("bound")
        return numbers("bound")

    def same(context, bound, folder):
        asked.append((bound.record, folder))

    monkeypatch.setattr(of_stage, "make_reference", make)
    monkeypatch.setattr(of_stage, "bound_reference", bound)
    monkeypatch.setattr(of_stage, "require_same", same)
    return asked


def test_a_stage_that_begins_makes_the_numbers_with_its_first_weights(asked):
    given = start_of_the_stage()
    streams, found, _ = with_reference(SimpleNamespace(), STREAMS, given, None, resumes=False)
    (start,) = asked
    assert (start.model, start.plan) == (given.model, PLAN)
    assert start.weights == tensors_sha256(given.model.state_dict())
    assert found.record == b"new"
    assert streams == {
        "train": "rows of train with new train",
        "held_out": "rows of held_out with new held_out",
    }


def test_a_stage_that_resumes_has_the_numbers_of_its_checkpoint(asked):
    """Else its trained weights would become its reference."""
    saved = SimpleNamespace(folder=Path("checkpoint"))
    given = start_of_the_stage()
    streams, *_ = with_reference(SimpleNamespace(), STREAMS, given, saved, resumes=True)
    assert asked == ["bound", (b"bound", Path("checkpoint"))]
    assert streams["train"] == "rows of train with bound train"


def test_a_rank_without_the_checkpoint_compares_nothing(asked):
    with_reference(SimpleNamespace(), STREAMS, start_of_the_stage(), None, resumes=True)
    assert asked == ["bound", (b"bound", None)]
