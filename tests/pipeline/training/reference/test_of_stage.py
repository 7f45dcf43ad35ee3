"""A stage computes its reference with the model that it starts from. A stage that resumes has the
numbers it has learned with, and says what differs."""

from types import SimpleNamespace

import pytest
import torch

from pion.config.lora import Adapter, BaseModel, Lora
from pion.errors import PionError
from pion.model.lora_projections import adapted, additions, merge
from pion.train.settings import ComputePlan
from pipeline.console.messages import Note
from pipeline.training.reference.compute import make_reference
from pipeline.training.reference.of_stage import Start, name_of, with_reference
from tests.support.reference_world import make_world, model_of_the_world

PLAN = ComputePlan(micro_batch=2, threads=1)


@pytest.fixture
def world(tmp_path):
    return make_world(tmp_path, pairs=12)


def resume(world, start):
    """Resume a stage; return what is said."""
    world.said.clear()
    with world.context() as context:
        with_reference(context, world.streams(), start, None, resumes=True)
    return [said.text for said in world.said if isinstance(said, Note)]


def bind(world, model=None):
    with world.context() as context:
        make_reference(context, world.streams(), world.start(model))


def by_lora(base, tensors=None):
    lora = Lora(rank=2)
    model = adapted(base, lora, seed=0, dtype=torch.float32, tensors=tensors)
    return Start(model, Adapter(lora, BaseModel("the base", "0" * 64)), PLAN)


def with_numbers(world, model, saved=None, *, resumes):
    """Return the streams of a stage without LoRA, and its numbers."""
    with world.context() as context:
        start = Start(model, None, PLAN)
        streams, bound, _ = with_reference(context, world.streams(), start, saved, resumes=resumes)
    return streams, bound


def test_a_stage_that_begins_makes_the_numbers_with_its_first_weights(world):
    model = model_of_the_world(1)
    streams, bound = with_numbers(world, model, resumes=False)
    with world.context("another") as context:
        named = make_reference(context, world.streams(), world.start(model))
    assert bound.record == named.record  # which has the hash of the weights in its key
    for split, stream in streams.items():
        places = list(stream.places())
        expected = [sum(bound.splits[split].of(stream.number_of(place))) for place in places]
        found = [float(stream.batch_at([place]).sequences.reference.sum()) for place in places]
        assert found == pytest.approx(expected)


def test_a_stage_that_resumes_has_the_numbers_of_its_checkpoint(world, tmp_path):
    """Else its trained weights would become its reference. Other ranks have no checkpoint."""
    _, first = with_numbers(world, model_of_the_world(), resumes=False)
    saved, trained = SimpleNamespace(folder=tmp_path), model_of_the_world(1)
    (tmp_path / "reference.json").write_bytes(first.record)
    for checkpoint in (saved, None):
        _, found = with_numbers(world, trained, checkpoint, resumes=True)
        assert found.record == first.record
    (tmp_path / "reference.json").write_bytes(b"{}")
    with pytest.raises(PionError, match="other numbers of a reference"):
        with_numbers(world, trained, saved, resumes=True)


@pytest.mark.parametrize(
    "start",
    [
        lambda: Start(model_of_the_world(), None, PLAN),
        lambda: Start(model_of_the_world(1), None, PLAN),  # trained: nobody has its first weights
        lambda: by_lora(model_of_the_world()),
    ],
    ids=["the same", "trained", "LoRA"],
)
def test_a_stage_resumes_with_its_numbers_without_a_word(world, start):
    bind(world)
    assert resume(world, start()) == []


@pytest.mark.parametrize(
    ("changes", "words", "back"),
    [
        (
            {"dtype": "bfloat16"},
            "hardware.dtype was float32 and is bfloat16",
            "hardware.dtype=float32",
        ),
        (
            {"dtype": "bfloat16", "residual": "bfloat16"},
            "is bfloat16, hardware.residual was float32 and is bfloat16",
            "hardware.dtype=float32 hardware.residual=float32",
        ),
    ],
)
def test_another_dtype_than_that_of_the_reference_is_said(world, changes, words, back):
    bind(world)
    plan = ComputePlan(micro_batch=2, threads=1, **changes)
    (said,) = resume(world, Start(model_of_the_world(), None, plan))
    assert said.startswith("warning: prefer resumes with a reference")
    assert words in said
    assert "stay as they are" in said
    assert said.endswith(f"continue with {back}")


def test_lora_does_not_resume_on_another_base(world):
    bind(world)
    with pytest.raises(PionError) as refused:
        resume(world, by_lora(model_of_the_world(1)))
    said = str(refused.value)
    assert "these reference numbers are not of these weights" in said
    assert "The checkpoints are safe" in said
    assert "--redo prefer" in said


def of_sft(base):
    """Return additions that change the model."""
    tensors = additions(by_lora(base)[0])
    draw = torch.Generator().manual_seed(3)
    return {name: 0.5 * torch.randn(one.shape, generator=draw) for name, one in tensors.items()}


def test_lora_that_begins_with_additions_has_their_model_as_its_reference(world):
    tensors = of_sft(model_of_the_world())
    model, adapter, *_ = by_lora(model_of_the_world(), tensors)
    with world.context() as context:
        with_reference(context, world.streams(), Start(model, adapter, PLAN), None, resumes=False)
    again = by_lora(model_of_the_world(), tensors)
    assert resume(world, again) == []
    with pytest.raises(PionError, match="these reference numbers are not of these weights"):
        resume(world, by_lora(model_of_the_world()))  # the base alone
    assert resume(world, by_lora(merge(model))) == []


def test_other_additions_have_another_reference(world):
    model, adapter, *_ = by_lora(model_of_the_world(), of_sft(model_of_the_world()))
    alone, *_ = by_lora(model_of_the_world())
    weights = {name_of(Start(one, adapter, PLAN)) for one in (model, alone)}
    assert len(weights) == 2
    assert "0" * 64 in weights  # as before there were such additions


def test_lora_in_another_dtype_may_differ_by_more(world):
    bind(world)
    model, adapter, *_ = by_lora(model_of_the_world())
    (said,) = resume(world, Start(model, adapter, ComputePlan(micro_batch=2, dtype="bfloat16")))
    assert "hardware.dtype was float32" in said
