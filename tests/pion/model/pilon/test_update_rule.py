"""Each primitive of a bank is updated for itself, and only if some layer chose it."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from pion.model.pilon.update_rule import PrimitiveWise
from pion.train.settings import TrainSettings
from tests.support.operations import Operations

SHAPE = (6, 4, 10)  # primitives, rank, width
STEPS, LR = 12, 3e-3


def settings(decay=0.0):
    return TrainSettings(steps=STEPS, global_batch=1, lr=LR, primitive_weight_decay=decay)


def factors():
    return 0.1 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))


def gradients():
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(SHAPE, generator=generator) for _ in range(STEPS)]


def adamw(weights, decay) -> tuple[nn.Parameter, torch.optim.AdamW]:
    param = nn.Parameter(weights.clone())
    optimizer = torch.optim.AdamW([param], lr=LR, betas=(0.9, 0.95), eps=1e-8, weight_decay=decay)
    return param, optimizer


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_it_is_adamw_if_all_primitives_are_chosen_in_each_step(decay):
    ours = factors()
    theirs, optimizer = adamw(ours, decay)
    primitives = PrimitiveWise(ours, settings(decay))
    for gradient in gradients():
        theirs.grad = gradient.clone()
        optimizer.step()
        primitives.step(gradient.clone(), LR)
        assert (ours - theirs).abs().max() <= 1e-7


def test_a_run_of_very_many_steps_needs_no_table_of_them(monkeypatch):
    """With a table of 8 corrections, steps after the eighth are corrected as the eighth."""
    monkeypatch.setattr("pion.model.pilon.update_rule.MOST_COUNTED", 8)
    ours, theirs = factors(), factors()
    few = PrimitiveWise(ours, replace(settings(), steps=10**12, beta1=0.01, beta2=0.02))
    every = PrimitiveWise(theirs, replace(settings(), beta1=0.01, beta2=0.02))
    for gradient in gradients():
        few.step(gradient.clone(), LR)
        every.step(gradient.clone(), LR)
    assert torch.equal(few.state["counts"], torch.full((SHAPE[0],), STEPS))
    assert torch.equal(ours, theirs)


def test_a_primitive_counts_only_the_steps_in_which_it_was_chosen():
    """Primitive p is chosen in every (p+1)-th step: as if its other steps did not exist."""
    ours = factors()
    primitives = PrimitiveWise(ours, settings(decay=0.1))
    alone = [adamw(weights, decay=0.1) for weights in factors()]
    for step, gradient in enumerate(gradients(), 1):
        chosen = [p for p in range(SHAPE[0]) if step % (p + 1) == 0]
        for p in chosen:
            param, optimizer = alone[p]
            param.grad = gradient[p].clone()
            optimizer.step()
        masked = torch.zeros_like(gradient)
        masked[chosen] = gradient[chosen]
        primitives.step(masked, LR)
    assert primitives.state["counts"].tolist() == [STEPS // (p + 1) for p in range(SHAPE[0])]
    for p, (param, _) in enumerate(alone):
        assert (ours[p] - param).abs().max() <= 1e-7


def test_a_primitive_that_no_layer_chose_keeps_every_bit():
    ours = factors()
    primitives = PrimitiveWise(ours, settings(decay=0.5))
    for gradient in gradients():
        gradient[2] = 0
        primitives.step(gradient, LR)
    assert torch.equal(ours[2], factors()[2])
    assert not torch.equal(ours[3], factors()[3])
    assert all(tensor[2].count_nonzero() == 0 for tensor in primitives.state.values())


def test_the_update_takes_at_most_twelve_operations():
    """On a GPU, each operation that computes starts a kernel. Views start none."""
    primitives = PrimitiveWise(factors(), settings())
    (gradient, *_) = gradients()
    with Operations() as seen:
        primitives.step(gradient, LR)
    computing = [operation.name for operation in seen.calls if not operation.func.is_view]
    assert len(computing) <= 12, computing
