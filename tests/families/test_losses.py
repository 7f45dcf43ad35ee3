"""The losses of a step: the same however its rows are computed, and nothing of padding."""

import pytest
import torch

from pion.model.forward_pass import StepOptions
from tests.families.families import SEQ_LEN, VOCAB, each_family

TOKENS = torch.randint(0, VOCAB, (3, SEQ_LEN), generator=torch.Generator().manual_seed(0))
TARGETS = TOKENS.roll(-1, dims=1)


@each_family
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_recomputed_blocks_have_the_same_gradients(family, dtype):
    gradients = []
    for recompute in (False, True):
        model = family.decoder()
        options = StepOptions(recompute=recompute, residual=dtype)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            losses = model.losses(TOKENS, TARGETS, options=options)
        (losses.ce + losses.aux).backward()
        named = model.named_parameters()
        gradients.append({name: weight.grad for name, weight in named if weight.grad is not None})
    kept, recomputed = gradients
    assert kept.keys() == recomputed.keys()
    for name, gradient in kept.items():
        assert torch.equal(gradient, recomputed[name]), name


@each_family
def test_the_auxiliary_loss_of_rows_is_that_of_each_row_alone(family):
    model = family.decoder()
    together = model.losses(TOKENS, TARGETS).aux
    alone = [model.losses(TOKENS[[row]], TARGETS[[row]]).aux for row in range(len(TOKENS))]
    torch.testing.assert_close(together, torch.stack(alone).sum())


@each_family
def test_padding_is_in_no_loss_and_no_report(family):
    model = family.decoder()
    real = torch.arange(SEQ_LEN) < torch.tensor([[40], [48], [29]])
    given = {"positions": torch.arange(SEQ_LEN).expand(3, -1), "documents": real.long() - 1}
    targets = TARGETS.where(real, -100)
    losses, again = (
        model.losses(tokens, targets, **given)
        for tokens in (TOKENS, TOKENS.where(real, (TOKENS + 1) % VOCAB))
    )
    torch.testing.assert_close(again, losses)
