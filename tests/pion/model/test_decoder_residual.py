"""The hidden states between blocks in bfloat16: every family learns the same up to rounding."""

import pytest
import torch

from pion.errors import BadInput
from pion.model.forward_pass import LayerInput, StepOptions
from pion.train.settings import ComputePlan
from tests.families.families import FAMILIES, SEQ_LEN, VOCAB, each_family

BFLOAT16 = StepOptions(residual=torch.bfloat16)


def losses(model, options):
    """Return the losses of two random rows, computed in bf16, after their backward pass."""
    rows = torch.randint(0, VOCAB, (2, SEQ_LEN + 1), generator=torch.Generator().manual_seed(1))
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        found = model.losses(rows[:, :-1], rows[:, 1:], options=options)
    (found.ce / rows.numel() + found.aux).backward()
    return found


def gradients(model):
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@each_family
def test_between_blocks_hidden_states_are_in_bfloat16(family):
    model, seen = family.decoder(), set()
    for block in model.layers:
        block.register_forward_hook(
            lambda block, given, result: seen.update((given[0].dtype, result[0].dtype))
        )
    losses(model, BFLOAT16)
    assert seen == {torch.bfloat16}
    seen.clear()
    losses(model, StepOptions())
    assert seen == {torch.float32}


@each_family
def test_losses_and_gradients_are_those_of_float32_up_to_rounding(family):
    model = family.decoder()
    exact = losses(model, StepOptions())
    expected = gradients(model)
    rounded = losses(model, BFLOAT16)
    assert rounded.ce.dtype == torch.float32
    torch.testing.assert_close(rounded.ce, exact.ce, rtol=2e-3, atol=0)
    found = gradients(model)
    assert found.keys() == expected.keys()
    ours, theirs = (torch.cat([g.flatten() for g in each.values()]) for each in (found, expected))
    assert ours.isfinite().all()
    # Ternary weights and activations are rounded to a few values, which may flip.
    apart = 0.3 if family is FAMILIES["ternary"] else 0.08
    assert (ours - theirs).norm() < apart * theirs.norm()


def test_the_sum_of_a_layers_inputs_is_rounded_once():
    x, skipped, x0 = torch.randn(3, 1, 4, 64).bfloat16()
    gate, kept, start = torch.tensor([0.3, 1.7, -0.6])
    before = LayerInput((gate, skipped), (kept, start, x0))
    exact = kept * (x.float() + gate * skipped.float()) + start * x0.float()
    assert torch.equal(before.into(x), exact.bfloat16())


def test_generation_and_evaluation_keep_float32():
    model = FAMILIES["pion"].decoder()
    tokens = torch.zeros(1, 8, dtype=torch.int64)
    with torch.no_grad():
        assert torch.equal(model.hidden(tokens, options=BFLOAT16), model.hidden(tokens))


def test_a_plan_in_float32_has_no_residual_stream_in_bfloat16():
    with pytest.raises(BadInput, match="residual = 'bfloat16': must be float32 if dtype is"):
        ComputePlan(dtype="float32", residual="bfloat16")
    with pytest.raises(BadInput, match="residual = 'half': must be one of"):
        ComputePlan(residual="half")


def test_a_plan_of_before_has_float32():
    before = ComputePlan(dtype="bfloat16").to_dict()
    assert "residual" not in before
    assert ComputePlan.from_dict(before) == ComputePlan(dtype="bfloat16", residual="float32")
    plan = ComputePlan(dtype="bfloat16", residual="bfloat16")
    assert ComputePlan.from_dict(plan.to_dict()) == plan
