"""A step that can't be computed as planned begins again from its first row by a smaller plan."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pion.config.lora import Lora
from pion.errors import BadInput, PlanFailed
from pion.model.attention import masks
from pion.model.decoder import Decoder
from pion.model.lora_projections import add_lora
from pion.train import hardware, smaller_plan
from pion.train.settings import AS_MANY_AS_FIT
from pion.train.smaller_plan import StepDown, StepTooLarge, step_down
from pion.train.trainer import ComputePlan, Trainer, TrainSettings
from tests.pion.train.conftest import CONFIG, compile_with

STEPS = 2
PLAN = ComputePlan(micro_batch=6, threads=1)
Tensors = dict[str, Tensor]


class SmallMemory(Decoder):
    """A decoder whose memory holds `room` rows for the backward pass; recomputed rows count half.

    It runs out only in the second pass of a step, so that some gradients are there already.
    """

    room = 100.0
    passes = 0

    def losses(self, tokens, targets, **rest):
        self.passes += 1
        needed = len(tokens) / (2 if rest["options"].recompute else 1)
        if needed > self.room and self.passes % 2 == 0:
            raise torch.OutOfMemoryError("Tried to allocate 2.00 GiB")
        return super().losses(tokens, targets, **rest)


def trainer(stream, plan, room=100.0, lora=None, rows=12):
    torch.manual_seed(0)
    model = SmallMemory(CONFIG)
    model.room = room
    if lora is not None:
        add_lora(model, lora, seed=0)
    return Trainer(model, stream, TrainSettings(steps=9, global_batch=rows, lr=1e-2), plan)


def trained(training) -> tuple[Tensors, list[Any], list[StepDown]]:
    """Return weights and moments after some steps, rows and losses, and changes of the plan."""
    changes = []
    training.on_step_down = changes.append
    for _ in range(STEPS):
        assert training.train_step()
    state = training.state()
    rows = [[row["rows"], row["loss"]] for row in training.drain_metrics()]
    training.close()
    return {**state.model, **state.optimizer}, rows, changes


def said(changes):
    return [change.changes for change in changes]


SMALLER = ["micro_batch 6 → 3", "micro_batch 3 → 2", "micro_batch 2 → 1", "recompute false → true"]


@pytest.mark.slow
@pytest.mark.parametrize(("lora", "room", "steps"), [(None, 2, 2), (Lora(rank=4), 0.5, 4)])
def test_after_running_out_of_memory_training_equals_that_with_the_smaller_plan(
    lora, room, steps, text
):
    training = trainer(text, PLAN, room, lora)
    tensors, rows, changes = trained(training)
    assert said(changes) == SMALLER[:steps]
    small = dataclasses.replace(PLAN, micro_batch=2 if steps == 2 else 1, recompute=steps == 4)
    assert training.plan == small
    assert training.state().meta["plan"] == small.to_dict()
    expected, expected_rows, _ = trained(trainer(text, small, lora=lora))
    assert rows == expected_rows
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    assert all(tensors[name].any() for name in tensors if name.endswith("lora_b"))


@pytest.mark.slow
def test_if_even_that_does_not_fit_the_run_ends_with_bad_input(text):
    training = trainer(text, PLAN, room=0.1)
    with pytest.raises(StepTooLarge, match="Use a larger GPU") as error:
        training.train_step()
    assert isinstance(error.value, BadInput)
    assert "Tried to allocate 2.00 GiB" in str(error.value)
    training.close()


@pytest.mark.parametrize(
    ("several", "advice"),
    [({}, False), ({"world_size": 2}, True), ({"world_size": 2, "sharded": True}, False)],
)
def test_ranks_that_have_the_whole_model_each_may_divide_it(several, advice):
    plan = ComputePlan(micro_batch=1, recompute=True, **several)
    full = torch.OutOfMemoryError("Tried to allocate 2.00 GiB")
    with pytest.raises(StepTooLarge) as error:
        step_down(plan, full, may_divide=plan.world_size == 1)  # one rank has nobody to do it with
    assert ("or set hardware.fsdp: true" in str(error.value)) == advice


def test_ranks_divide_a_model_that_does_not_fit_otherwise_as_the_last_step():
    plan, changes = ComputePlan("cuda", micro_batch=3, world_size=2), []
    error = torch.OutOfMemoryError("Tried to allocate 2.00 GiB")
    while not plan.sharded:
        change = step_down(plan, error, may_divide=True)
        changes.append(change.changes)
        plan = change.plan
    assert changes[:3] == ["micro_batch 3 → 2", "micro_batch 2 → 1", "recompute false → true"]
    assert "sharded false → true" in changes[3]
    # How many rows fit next to a part of the model is found out again.
    assert (plan.micro_batch, plan.recompute) == (AS_MANY_AS_FIT, False)


def compiler_that_fails(*_) -> Callable[..., Any]:
    raise RuntimeError("no C compiler\nand many more\nlines")


def fails_with_combo_kernels(graph, _) -> Callable[..., Any]:
    from torch._inductor import config

    if config.combo_kernels:
        raise RuntimeError("a combo kernel has too many arguments")
    return graph.forward


@pytest.mark.slow
@pytest.mark.parametrize(
    ("compiler", "combines", "expected"),
    [
        (compiler_that_fails, False, ["compile true → false"]),
        (fails_with_combo_kernels, True, ["combo_kernels true → false"]),
        pytest.param(
            compiler_that_fails,
            True,
            ["combo_kernels true → false", "compile true → false"],
            marks=pytest.mark.soak,
        ),
    ],
)
def test_combo_kernels_are_given_up_first_and_compiling_only_if_this_does_not_help(
    compiler, combines, expected, text, monkeypatch
):
    """A card combines kernels, and a CPU does not. Here, a CPU passes for a card."""
    for module in (hardware, smaller_plan):
        monkeypatch.setattr(module, "combines_kernels", lambda plan: combines & plan.combo_kernels)
    compile_with(monkeypatch, compiler)
    training = trainer(text, dataclasses.replace(PLAN, compile=True))
    tensors, _, changes = trained(training)
    assert said(changes) == expected
    why = "no C compiler" if compiler is compiler_that_fails else "too many arguments"
    assert all(why in change.why and "many more" not in change.why for change in changes)
    assert training.plan.compile == (compiler is fails_with_combo_kernels)
    assert training.state().meta["plan"] == training.plan.to_dict()
    assert ComputePlan.from_dict(training.plan.to_dict()) == training.plan
    eager, *_ = trained(trainer(text, PLAN))
    apart = 0 if not training.plan.compile else 1e-6
    assert all(torch.allclose(tensors[name], eager[name], 0, apart) for name in eager)


def failed_compilation():
    return torch._dynamo.exc.BackendCompilerFailed("inductor", RuntimeError("no kernel"), [])


@pytest.mark.parametrize(("uses_flex", "before_eager"), [(False, []), (True, ["flex_attention"])])
def test_on_a_card_a_compiler_that_always_fails_gives_up_one_thing_after_the_other(
    uses_flex, before_eager
):
    plan = ComputePlan("cuda", compile=True)
    given_up = []
    while (change := step_down(plan, failed_compilation(), uses_flex=uses_flex)) is not None:
        assert "no kernel" in change.why
        given_up.append(change.changes)
        plan = change.plan
    order = ["combo_kernels", *before_eager, "compile"]
    assert given_up == [f"{name} true → false" for name in order]


def test_an_eager_step_whose_flex_attention_does_not_compile_attends_without_it():
    change = step_down(ComputePlan("cuda"), failed_compilation(), uses_flex=True)
    assert change.changes == "flex_attention true → false"
    assert step_down(change.plan, failed_compilation(), uses_flex=True) is None


def test_a_plan_without_flex_attention_masks_rows_by_booleans():
    config = dataclasses.replace(CONFIG, softcap=30.0, head_dim=32)
    tokens = torch.zeros(1, 8, dtype=torch.int64)
    try:
        for flex in (True, False):
            hardware.configure(dataclasses.replace(PLAN, flex_attention=flex))
            assert masks.flexible(config, "cuda") == flex
    finally:
        hardware.configure(PLAN)
    assert masks.build_masks(config, tokens, 8, None)["full"].allowed is not None


def test_a_plan_from_before_these_steps_is_recorded_as_it_was():
    record = ComputePlan("cuda", compile=True).to_dict()
    assert not {"combo_kernels", "flex_attention"} & record.keys()
    plan = ComputePlan.from_dict(record)
    assert plan.combo_kernels
    assert plan.flex_attention


def test_weights_that_are_partly_updated_are_not_updated_again(text, monkeypatch):
    training = trainer(text, PLAN)
    step = training.optimizer.step

    def out_of_memory_after_a_part(plan):
        step(plan)
        raise torch.OutOfMemoryError("no room for Newton–Schulz")

    monkeypatch.setattr(training.optimizer, "step", out_of_memory_after_a_part)
    with pytest.raises(PlanFailed) as failed:
        training.train_step()
    assert failed.value.plan["micro_batch"] == 3
    assert training.step == 0
    training.close()


@pytest.mark.parametrize(
    "error", [ValueError("a bug"), RuntimeError("CUDA error: an illegal memory access")]
)
def test_another_error_is_not_taken_for_a_lack_of_memory(error):
    assert step_down(dataclasses.replace(PLAN, compile=True), error) is None


def test_with_several_ranks_all_of_them_must_start_again(text):
    training = trainer(text, PLAN, room=1, rows=24)
    training.plan = dataclasses.replace(PLAN, world_size=2)  # the others would wait for this one
    with pytest.raises(PlanFailed) as failed:
        training.train_step()
    assert failed.value.plan["micro_batch"] == 3
    training.close()


def test_the_abandoned_step_leaves_no_gradient(text):
    training = trainer(text, PLAN, room=3)
    seen = []
    training.on_step_down = lambda change: seen.append(
        all(parameter.grad is None for parameter in training.model.parameters())
    )
    for _ in range(STEPS):
        assert training.train_step()
    training.close()
    assert seen == [True]
