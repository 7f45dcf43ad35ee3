"""The norm and the linear projection that all parts are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from pion.config.model_config import ModelConfig


class RMSNorm(nn.Module):
    """Computes x / sqrt(mean(x²) + eps) · gain · scale over the last dimension, in fp32 (Zhang and
    Sennrich 2019).

    The gain is the weight, or with an `offset` 1 + weight, as in Gemma. A weight may be None.
    """

    def __init__(
        self, width: int, eps: float, gain: bool = True, offset: bool = False, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.width, self.eps, self.offset, self.scale = width, eps, offset, scale
        first = torch.full((width,), 0.0 if offset else 1.0)
        self.weight = nn.Parameter(first) if gain else None
        self.bias: nn.Parameter | None = None

    @classmethod
    def of(cls, config: ModelConfig, width: int) -> RMSNorm:
        """Return a norm of a model, of this width."""
        return cls(width, config.norm_eps, config.norm_gain, config.norm_offset)

    def gain(self) -> Tensor | None:
        """Return the gain (width,) in fp32, without the scale; None: there is none."""
        if self.weight is None:
            return None
        return self.weight.float() + 1 if self.offset else self.weight.float()

    def forward(self, x: Tensor, *, learned: bool = True) -> Tensor:
        """Map (…, width) of any dtype to (…, width) in fp32. The gain and the bias get gradients if
        they are `learned`."""
        gain, bias = (
            each if learned or each is None else each.detach() for each in (self.gain(), self.bias)
        )
        result = self._normed(x.float(), gain, bias)
        return result if self.scale == 1 else result * self.scale

    def _normed(self, x: Tensor, gain: Tensor | None, bias: Tensor | None) -> Tensor:
        return nn.functional.rms_norm(x, (self.width,), gain, self.eps)


class LayerNorm(RMSNorm):
    """Computes ((x − mean(x)) / sqrt(variance(x) + eps) · gain + bias) · scale over the last
    dimension, in fp32 (Ba et al. 2016, "Layer normalization"). A bias may be None."""

    def __init__(self, *of_rms: Any, bias: bool) -> None:
        super().__init__(*of_rms)
        self.bias = nn.Parameter(torch.zeros(self.width)) if bias else None

    def _normed(self, x: Tensor, gain: Tensor | None, bias: Tensor | None) -> Tensor:
        return nn.functional.layer_norm(x, (self.width,), gain, bias, self.eps)


def norm_of(config: ModelConfig, scale: float = 1.0) -> RMSNorm:
    """Return a norm of a model's hidden states (…, d_model)."""
    arguments = config.d_model, config.norm_eps, config.norm_gain, config.norm_offset, scale
    if config.norm == "rms":
        return RMSNorm(*arguments)
    return LayerNorm(*arguments, bias=config.norm == "layer" and config.norm_gain)


def compute_dtype(x: Tensor, weight: Tensor) -> torch.dtype:
    """Return the dtype of products of x with a weight: autocast's if it is on, else the weight's.

    Casting x once serves several projections; autocast would cast x for each projection.
    """
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype


# ---------------------------------------------------------------- projections

# In bf16 on a CPU, products with up to this many tokens are computed as weight · xᵀ. With a weight
# of (3584, 640) and 16 tokens this takes 0.60 ms instead of 0.82, and with one token no longer.
FEW_TOKENS = 32


class Projection(nn.Linear):
    """Computes x · weightᵀ, plus a bias if it has one: (…, in) -> (…, out)."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = False) -> None:
        super().__init__(inputs, outputs, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, in) to (…, out)."""
        return project(x, self.weight, self.bias)


def project(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x · weightᵀ + bias for `weight` (out, in), `bias` (out): (…, in) -> (…, out).

    The product has the dtype of `weight`, or autocast's. A bias has fp32 in a model of another
    dtype, and is rounded to that of the product.
    """
    if weight.dtype == torch.bfloat16 and weight.device.type == "cpu":
        width = x.shape[-1]
        if width < x.numel() <= FEW_TOKENS * width:
            result = (weight @ x.reshape(-1, width).T).T.view(*x.shape[:-1], -1)
            return result if bias is None else result + bias.to(result.dtype)
    return linear(x, weight, None if bias is None else bias.to(weight.dtype))


def project_together(x: Tensor, projections: Sequence[nn.Linear]) -> Sequence[Tensor]:
    """Return the result of each projection of x.

    In a compiled block on CUDA one product computes all of them, and one product makes the gradient
    of x, which is then written and read once. Each weight still has its gradient.
    Projections that compute more than x · weightᵀ + bias are computed one by one.
    """
    plain = all(type(projection).forward is Projection.forward for projection in projections)
    if plain and x.is_cuda and torch.compiler.is_compiling():
        return in_one_product(x, projections)
    return [projection(x) for projection in projections]


def in_one_product(x: Tensor, projections: Sequence[nn.Linear]) -> Sequence[Tensor]:
    """Return x · weightᵀ + bias of each projection, as parts of one product."""
    dtype = compute_dtype(x, projections[0].weight)
    weight = torch.cat([projection.weight.to(dtype) for projection in projections])
    biases: list[Tensor] = [each.bias for each in projections if each.bias is not None]
    result = project(x, weight, torch.cat(biases) if biases else None)
    return result.split([projection.out_features for projection in projections], dim=-1)


def join(projections: Sequence[nn.Linear]) -> tuple[Tensor, Tensor | None]:
    """Return projections of one input as one weight (sum of outs, in), and one bias or None.

    The projections then share the memory of the weight, so this is for models that are not trained.
    All of them have a bias, or none. Raises ValueError for a projection that computes more than
    x · weightᵀ + bias.
    """
    if any(type(projection).forward is not Projection.forward for projection in projections):
        raise ValueError("projections with additions can't be joined: merge them first")
    joined = torch.cat([projection.weight.detach() for projection in projections])
    biases = [projection.bias.detach() for projection in projections if projection.bias is not None]
    parts = joined.split([projection.out_features for projection in projections])
    for projection, part in zip(projections, parts, strict=True):
        projection.weight = nn.Parameter(part, requires_grad=False)
    return joined, torch.cat(biases) if biases else None
