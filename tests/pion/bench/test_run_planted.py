"""The checks find what they are for: each mistake here is planted on the card's side only."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pion.bench import speed
from pion.bench.correctness import compiler, kernels, outputs, recovery
from pion.bench.models import Bench, PlanChanged, check_model
from pion.bench.models import twin as true_twin
from pion.bench.results import Outcome
from pion.generation.fixed_step import FixedStep
from pion.model import decoder, loss
from pion.model.attention import masks
from pion.model.attention.cache import LayerCache, Place
from pion.model.block import Block
from pion.model.decoder import Decoder
from pion.train import trainer
from pion.train.gradients import Gradients
from pion.train.optimizer.optimizer import Optimizer
from pion.train.smaller_plan import StepDown
from pion.train.trainer import ComputePlan, Trainer, TrainState

# By default, test_run_tiny.py runs each kind of check.
pytestmark = pytest.mark.soak

TINY = Bench(torch.device("cpu"), tiny=True)

Change = Callable[[Decoder], None]


def plant(monkeypatch: pytest.MonkeyPatch, module: Any, change: Change) -> None:
    """Change every model that the check moves to the card."""

    def twin(model: Decoder, device: torch.device) -> Decoder:
        there = true_twin(model, device)
        change(there)
        return there

    monkeypatch.setattr(module, "twin", twin)


@torch.no_grad()
def wrong_weight(model: Decoder) -> None:
    model.norm.weight[0] *= 1.01


def wrong_scale(model: Decoder) -> None:
    """Attention with a scale that is one percent off."""
    block: Any = model.blocks[0]
    block.attention.scale = 1.01 * model.config.head_dim**-0.5


def nan_after(model: Decoder) -> None:
    model.norm.register_forward_hook(lambda module, args, out: out * float("nan"))


def is_wrong(outcome: Outcome) -> bool:
    return outcome.verdict == "wrong"


# ---------------------------------------------------------------- the compiler


def test_a_compiler_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_kernel(*_: Any) -> Any:
        raise torch._dynamo.exc.BackendCompilerFailed(no_kernel, RuntimeError("no kernel"), [])

    monkeypatch.setattr(decoder, "_compiled_block", lambda: no_kernel)
    found = compiler.check_compiler(TINY, "pion")
    assert is_wrong(found)
    assert "no kernel" in found.words
    assert "training uses compile true → false" in found.words


@pytest.mark.parametrize(
    ("family", "weight", "factor"),
    [
        ("pion", "feedforward.down_proj", 0.0),
        ("pion", "attention.q_proj", 1.01),
        ("pilon", "attention.q_proj", 0.0),
        ("pilon", "attention.q_proj", 1.1),
    ],
)
def test_a_compiler_that_computes_wrong_gradients(
    monkeypatch: pytest.MonkeyPatch, family: str, weight: str, factor: float
) -> None:
    def run(block: Block, *rest: Any) -> Any:
        block.get_submodule(weight).weight.register_hook(lambda gradient: gradient * factor)
        return decoder._run_block(block, *rest)

    monkeypatch.setattr(decoder, "_compiled_block", lambda: run)
    assert is_wrong(compiler.check_compiler(TINY, family))


# ---------------------------------------------------------------- logits and losses


@pytest.mark.parametrize("family", ["pion", "pilon"])
@pytest.mark.parametrize("change", [wrong_weight, wrong_scale, nan_after])
def test_logits(monkeypatch: pytest.MonkeyPatch, change: Change, family: str) -> None:
    plant(monkeypatch, outputs, change)
    assert is_wrong(outputs.check_logits(TINY, family))


def test_rounding_to_few_values_hides_nothing_of_a_models_logits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A PILON rounds. Weights that differ by a rounding error are right nevertheless."""

    @torch.no_grad()
    def nudge(model: Decoder) -> None:
        for weight in model.parameters():
            weight.mul_(1 + 1e-7 * torch.randn_like(weight))

    plant(monkeypatch, outputs, nudge)
    assert outputs.check_logits(TINY, "pilon").verdict == "right"


def test_logits_of_documents_that_see_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def one_document(model: Decoder) -> None:
        run = model.forward
        model.forward = lambda tokens, documents: run(tokens)  # type: ignore[method-assign]

    plant(monkeypatch, outputs, one_document)
    found = outputs.check_logits(TINY, "pion")
    assert is_wrong(found)
    assert found.measures["text"] == 0.0


def wrong_gradient(model: Decoder) -> None:
    model.embed.weight.register_hook(lambda grad: -grad)


@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.soak)])
def test_losses_of_a_wrong_backward_pass(monkeypatch: pytest.MonkeyPatch, dtype: Any) -> None:
    plant(monkeypatch, outputs, wrong_gradient)
    assert is_wrong(outputs.check_losses(TINY, "pion", dtype))


# ---------------------------------------------------------------- masks and generation


def test_a_mask_that_shows_one_block_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    def generous(numbers: Tensor, count: int, block: int) -> tuple[Tensor, Tensor]:
        return true_blocks(numbers, count + 1, block)

    true_blocks = kernels.visited_blocks
    monkeypatch.setattr(kernels, "visited_blocks", generous)
    found = kernels.check_masks(TINY)
    assert is_wrong(found)
    assert "windows (long)" in found.words
    assert "documents (full)" not in found.words


def test_a_mask_that_forgets_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    true_mask = kernels.block_mask
    monkeypatch.setattr(
        kernels, "block_mask", lambda tokens, _, device: true_mask(tokens, None, device)
    )
    found = kernels.check_masks(TINY)
    assert "documents (full)" in found.words


@pytest.mark.parametrize("kind", outputs.KINDS)
def test_generation_with_a_cache_that_loses_a_key(
    monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    extend = LayerCache.extend

    def forgetful(
        self: LayerCache, keys: Tensor, values: Tensor, place: Place
    ) -> tuple[Tensor, Tensor]:
        all_keys, all_values = extend(self, keys, values, place)
        return all_keys.index_fill(2, torch.tensor(all_keys.shape[2] - 2), 0.0), all_values

    monkeypatch.setattr(LayerCache, "extend", forgetful)
    assert is_wrong(outputs.check_generation(TINY, kind))


def in_a_wrong_position(monkeypatch: pytest.MonkeyPatch) -> None:
    compute = FixedStep.compute

    def moved(self: FixedStep) -> tuple[Tensor, Tensor]:
        self._given = self._given + torch.tensor([[0], [1]])
        return compute(self)

    monkeypatch.setattr(FixedStep, "compute", moved)


def with_all_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attend to entries that no text has, too."""
    monkeypatch.setattr(masks, "_mask_by_positions", lambda *_: masks.Mask())


@pytest.mark.parametrize("mistake", [in_a_wrong_position, with_all_entries])
def test_graphs(
    monkeypatch: pytest.MonkeyPatch, mistake: Callable[[pytest.MonkeyPatch], None]
) -> None:
    monkeypatch.setattr(outputs, "FAMILIES", ["pion"])
    assert outputs.check_graphs(TINY).verdict == "right"
    mistake(monkeypatch)
    assert is_wrong(outputs.check_graphs(TINY))


def test_a_card_that_refuses_graphs_that_it_should_have(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outputs, "FAMILIES", ["pion"])
    monkeypatch.setattr(outputs, "why_without", lambda model: None)
    assert is_wrong(outputs.check_graphs(TINY))


# ---------------------------------------------------------------- resume


def test_a_resume_that_loses_an_optimizer_state(monkeypatch: pytest.MonkeyPatch) -> None:
    load = Trainer.load

    def forgetful(self: Trainer, state: TrainState | None) -> None:
        assert state is not None
        zeros = {name: torch.zeros_like(tensor) for name, tensor in state.optimizer.items()}
        load(self, TrainState(state.model, zeros, state.meta))

    monkeypatch.setattr(Trainer, "load", forgetful)
    found = recovery.compare_resume(TINY, "pion")
    assert is_wrong(found)
    assert "tensors differ" in found.words


def test_a_resume_one_bit_off(monkeypatch: pytest.MonkeyPatch) -> None:
    load = Trainer.load

    @torch.no_grad()
    def careless(self: Trainer, state: TrainState | None) -> None:
        load(self, state)
        weight = self.model.embed.weight
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(1.0))

    monkeypatch.setattr(Trainer, "load", careless)
    assert is_wrong(recovery.compare_resume(TINY, "pion"))


@pytest.mark.soak
def test_one_process_compares_the_resumes_of_several_families() -> None:
    companion = recovery.Companion(TINY)  # on a card, to be deterministic
    try:
        for family in ("pion", "pilon"):
            assert companion.ask(family).verdict == "right"
        with pytest.raises(RuntimeError, match="ended with 1: KeyError: 'nobody'"):
            companion.ask("nobody")
    finally:
        companion.end()


# ---------------------------------------------------------------- step-down


def test_a_step_down_that_keeps_the_gradients_of_the_failed_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Optimizer, "zero_grad", lambda self: None)
    assert is_wrong(recovery.check_step_down(TINY))


def test_a_step_down_that_skips_a_rung(monkeypatch: pytest.MonkeyPatch) -> None:
    true_step_down = trainer.step_down

    def hasty(plan: ComputePlan, error: BaseException, **_: bool) -> StepDown | None:
        return true_step_down(dataclasses.replace(plan, micro_batch=1), error)

    monkeypatch.setattr(trainer, "step_down", hasty)
    found = recovery.check_step_down(TINY)
    assert is_wrong(found)
    assert found.words.startswith("recompute false → true;")


def test_a_row_does_not_measure_a_smaller_plan_than_it_says(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def too_large(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("Tried to allocate 2.00 GiB")

    monkeypatch.setattr(Gradients, "add", too_large)
    config = check_model("pion", tiny=True)
    with pytest.raises(PlanChanged, match=r"memory ran out.* micro_batch 4 → 2"):
        speed.measure_training(TINY, "tiny-pion", config, compiled=False)


# ---------------------------------------------------------------- kernels


def test_a_loss_whose_gradient_is_a_little_off(monkeypatch: pytest.MonkeyPatch) -> None:
    true_loss = kernels.linear_cross_entropy

    def careless(hidden: Tensor, weight: Tensor, targets: Tensor, cap: float | None) -> Tensor:
        total = true_loss(hidden, weight, targets, cap)
        return total + 1e-4 * (hidden - hidden.detach()).sum()

    monkeypatch.setattr(kernels, "linear_cross_entropy", careless)
    assert is_wrong(kernels.check_loss(TINY))


def test_a_compiled_loss_whose_gradient_is_a_little_off(monkeypatch: pytest.MonkeyPatch) -> None:
    true_gradient = loss._gradient_of_logits

    def careless(*arguments: Any) -> tuple[Tensor, ...]:
        total, gradient, *rest = true_gradient(*arguments)
        return total, gradient * 1.0001, *rest

    monkeypatch.setattr(loss, "_compiled_gradient_of_logits", lambda: careless)
    assert is_wrong(kernels.check_compiled_loss(TINY))


def test_experts_that_swap_two_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    true_mixture = kernels.mix_experts

    def careless(x: Tensor, *rest: Any) -> Tensor:
        result = true_mixture(x, *rest)
        swapped = torch.arange(len(x))
        swapped[:2] = torch.tensor([1, 0])
        return result[swapped]

    monkeypatch.setattr(kernels, "mix_experts", careless)
    assert is_wrong(kernels.check_experts(TINY))


def test_without_a_mistake_the_same_checks_are_right() -> None:
    assert outputs.check_logits(TINY, "pion").verdict == "right"
    assert kernels.check_loss(TINY).verdict == "right"
