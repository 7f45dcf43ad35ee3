"""Muon: its orthogonalization compared with the Daisy seed's, and its update computed by hand."""

import pytest
import torch
from torch import nn

from pion.train.optimizer import muon
from pion.train.optimizer.muon import Muon, orthogonalize
from tests.paths import SEEDS


def params(*shapes):
    torch.manual_seed(0)
    named = {f"w{i}": nn.Parameter(torch.randn(shape)) for i, shape in enumerate(shapes)}
    for param in named.values():
        param.grad = torch.randn_like(param)
    return named


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_wide_and_tall_matrices_are_orthogonalised_as_the_daisy_seed_does(dtype):
    reference = torch.load(SEEDS / "daisy_muon_ref.pt", weights_only=True)
    wide = orthogonalize(reference["G_batched"], dtype).float()
    assert (wide - reference["NS_batched"]).abs().max() <= 2e-2
    tall = orthogonalize(reference["G_tall"][None], dtype)[0].float()
    assert (tall - reference["NS_tall"]).abs().max() <= 2e-2


@pytest.mark.parametrize("shape", [(2, 16, 40), (2, 40, 16)])
def test_singular_values_end_up_near_one_whatever_the_scale(shape):
    torch.manual_seed(0)
    for scale in (1e-6, 1.0, 1e6):
        values = torch.linalg.svdvals(orthogonalize(torch.randn(shape) * scale, torch.float32))
        assert values.min() > 0.5
        assert values.max() < 1.3


def test_a_gradient_of_zero_leaves_the_weights_finite():
    assert torch.equal(orthogonalize(torch.zeros(1, 8, 8)), torch.zeros(1, 8, 8).bfloat16())


def test_an_update_is_the_published_formula():
    """Two updates are made, so that momentum and the Nesterov-like look-ahead both matter."""
    lr, beta, wd = 0.02, 0.95, 0.1
    named = params((40, 16))
    weight, momentum = named["w0"].detach().clone(), torch.zeros(40, 16)
    optimizer = Muon(named, weight_decay=wd, dtype=torch.float32)
    for _ in range(2):
        grad = named["w0"].grad
        optimizer.step(lr, beta)
        momentum = beta * momentum + (1 - beta) * grad
        update = orthogonalize((beta * momentum + (1 - beta) * grad)[None], torch.float32)[0]
        weight = weight * (1 - lr * wd) - lr * (40 / 16) ** 0.5 * update
        torch.testing.assert_close(named["w0"].detach(), weight, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(optimizer.momentum["w0"], momentum)


def test_matrices_of_one_shape_do_not_mix(monkeypatch):
    shapes = ((8, 16), (16, 8), (8, 16), (8, 16))
    together = params(*shapes)
    Muon(together, weight_decay=0.0, dtype=torch.float32).step(0.1, 0.9)
    monkeypatch.setattr(muon, "BATCH_ELEMENTS", 1)
    alone = params(*shapes)
    Muon(alone, weight_decay=0.0, dtype=torch.float32).step(0.1, 0.9)
    for name in together:
        torch.testing.assert_close(together[name], alone[name])


def test_a_small_update_is_not_lost_to_bf16_when_the_weights_are_fp32():
    named = params((8, 8))
    before = named["w0"].detach().clone()
    Muon(named, weight_decay=0.0, dtype=torch.bfloat16).step(1e-5, 0.95)
    assert (named["w0"].detach() != before).float().mean() > 0.9


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (16, 16)])
def test_the_flops_of_an_orthogonalization_are_those_that_torch_counts(shape):
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        orthogonalize(torch.randn(1, *shape), torch.float32)
    assert muon.newton_schulz_flops(*shape) == counter.get_total_flops()
