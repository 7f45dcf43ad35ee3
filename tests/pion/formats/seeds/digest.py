"""The numbers by which the seeds' traces record a tensor."""

import torch
from torch import Tensor


def digest(tensor: Tensor) -> Tensor:
    """Return the three numbers by which a trace records a tensor."""
    x = tensor.detach().double().flatten()
    weights = torch.cos(0.37 * torch.arange(len(x), dtype=torch.float64) + 0.11)
    return torch.stack((x.sum(), x.norm(), (x * weights).sum()))
