"""The backward pass in Python: torch's gradients, on devices that are there and that are not."""

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from pion.model.loss import linear_cross_entropy
from pion.train.memory_trace.backward import root_of, run_backward


def two_losses_of(model, x):
    hidden = x + model(x)
    targets = torch.arange(len(x)) % 3
    head = torch.ones(5, x.shape[1]) * 0.1
    return linear_cross_entropy(hidden, head, targets) + hidden.square().mean()


def test_it_computes_the_gradients_of_torchs_engine():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 4)), torch.randn(6, 4)
    two_losses_of(model, x).backward()
    expected = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    loss = two_losses_of(model, x)
    run_backward([root_of(loss, torch.ones_like(loss))])
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert parameter.grad is not None
        assert gradient is not None
        torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=0)


def test_it_runs_on_a_card_that_is_not_there():
    with FakeTensorMode():
        weight = torch.zeros(4, 4, device="cuda", requires_grad=True)
        loss = (weight @ weight).sum()
        run_backward([root_of(loss, torch.ones_like(loss))])
        assert weight.grad.device.type == "cuda"
