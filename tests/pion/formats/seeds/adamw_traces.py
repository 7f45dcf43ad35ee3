"""The numbers by which the seeds' traces record a tensor, and the training of Pion and Tachyon."""

from typing import NamedTuple

import torch

from pion.model.loss import IGNORED


def losses_of(model, reference):
    """Return the losses as the seeds have them: means over targets and over rows."""
    targets = reference["labels"].roll(-1, dims=1)
    targets[:, -1] = IGNORED
    losses = model.losses(reference["input_ids"], targets)
    return losses._replace(ce=losses.ce / (targets != IGNORED).sum(), aux=losses.aux / len(targets))


class Step(NamedTuple):
    """The losses before a step, with and without the cross-entropy, and the gradient's norm."""

    total: float
    aux: float
    grad_norm: float


def four_steps(model, reference):
    """Train for four steps as the seeds did; yield after each."""
    decayed = [p for name, p in model.named_parameters() if "norm" not in name]
    kept = [p for name, p in model.named_parameters() if "norm" in name]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": kept, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), eps=1e-8)
    for _ in range(4):
        losses = losses_of(model, reference)
        total = losses.ce + losses.aux
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield Step(total.item(), losses.aux.item(), norm.item())


def gradient_norms(model, reference):
    losses = losses_of(model, reference)
    (losses.ce + losses.aux).backward()
    return sorted(p.grad.norm().item() for p in model.parameters() if p.grad is not None)


def digest(tensor):
    """Return the three numbers by which a trace records a tensor."""
    x = tensor.detach().double().flatten()
    weights = torch.cos(0.37 * torch.arange(len(x), dtype=torch.float64) + 0.11)
    return torch.stack((x.sum(), x.norm(), (x * weights).sum()))
