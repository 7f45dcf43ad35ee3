"""The feed-forward maths of many experts, each on its own slice of the tokens.

The rows of `x` are sorted by expert: expert e has the rows [ends[e − 1], ends[e]). There are two
ways to compute them, see `product_path`:

  * grouped: three grouped matrix products, each one kernel. They need a GPU of capability 9.0 or
    newer and bf16. Nothing waits for the GPU.
  * sliced: a loop over experts inside one custom operation. A GPU has to tell where the slices end,
    which is one wait a layer. On a CPU this loop takes half the time of grouped products.

The custom operation is opaque to torch.compile, so a block with experts compiles without a break.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import grouped_mm, pad, silu

GROUPED_CAPABILITY = (9, 0)
ROW_MULTIPLE = 128


def product_path(
    device_type: str, capability: tuple[int, int] | None, dtype: torch.dtype
) -> Literal["grouped", "sliced"]:
    """Return how products of experts are computed on a device; `capability` is a GPU's."""
    new = capability is not None and capability >= GROUPED_CAPABILITY
    return "grouped" if device_type == "cuda" and new and dtype == torch.bfloat16 else "sliced"


def expert_swiglu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor, ends: Tensor) -> Tensor:
    """Return down_e(silu(gate_e x) ⊙ up_e x) for each row's expert e.

    `x` is (rows, d_model), `gate` and `up` are (E, d_ff, d_model), `down` is (E, d_model, d_ff),
    all of one dtype. `ends` (E,) int32 is where each expert's rows end. The result is
    (rows, d_model).
    """
    capability = torch.cuda.get_device_capability(x.device) if x.is_cuda else None
    if product_path(x.device.type, capability, x.dtype) == "grouped":
        gated = grouped_mm(x, gate.mT, offs=ends)
        raised = grouped_mm(x, up.mT, offs=ends)
        return grouped_mm(silu(gated) * raised, down.mT, offs=ends)
    result: Tensor = _sliced_swiglu(x, gate, up, down, ends)[0]
    return result


@torch.library.custom_op("pion::sliced_swiglu", mutates_args=())
def _sliced_swiglu(
    x: Tensor, gate: Tensor, up: Tensor, down: Tensor, ends: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the result, the products with `gate` and with `up`, and `ends` on the host."""
    result = torch.empty_like(x)
    gated, raised = (x.new_empty(len(x), gate.shape[1]) for _ in range(2))
    on_host = ends.cpu().clone()
    for expert, rows in _slices(on_host):
        count, own = rows.stop - rows.start, _padded(x[rows])
        own_gated, own_raised = own @ gate[expert].T, own @ up[expert].T
        gated[rows], raised[rows] = own_gated[:count], own_raised[:count]
        result[rows] = (silu(own_gated).mul_(own_raised) @ down[expert].T)[:count]
    return result, gated, raised, on_host


@_sliced_swiglu.register_fake
def _(
    x: Tensor, gate: Tensor, up: Tensor, down: Tensor, ends: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    hidden = x.new_empty(len(x), gate.shape[1])
    return (
        torch.empty_like(x),
        hidden,
        torch.empty_like(hidden),
        torch.empty_like(ends, device="cpu"),
    )


@torch.library.custom_op("pion::sliced_swiglu_backward", mutates_args=())
def _sliced_swiglu_backward(
    grad: Tensor,
    x: Tensor,
    weights: list[Tensor],
    products: list[Tensor],
    ends: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of `x` and of the `weights` gate, up and down."""
    gate, up, down = weights
    gated, raised = products
    grad_x = torch.empty_like(x)
    grad_gate, grad_up, grad_down = (torch.zeros_like(weight) for weight in weights)
    for expert, rows in _slices(ends):
        own, own_grad = _padded(x[rows]), _padded(grad[rows])
        own_gated, own_raised = _padded(gated[rows]), _padded(raised[rows])
        sigmoid = torch.sigmoid(own_gated)
        activated = own_gated * sigmoid
        grad_down[expert] = own_grad.T @ (activated * own_raised)
        grad_hidden = own_grad @ down[expert]
        grad_raised = grad_hidden * activated
        slope = sigmoid * (1 + own_gated * (1 - sigmoid))  # of silu
        grad_gated = grad_hidden * own_raised * slope
        grad_gate[expert], grad_up[expert] = grad_gated.T @ own, grad_raised.T @ own
        grad_own = (grad_gated @ gate[expert]).addmm_(grad_raised, up[expert])
        grad_x[rows] = grad_own[: rows.stop - rows.start]
    return grad_x, grad_gate, grad_up, grad_down


@_sliced_swiglu_backward.register_fake
def _(
    grad: Tensor, x: Tensor, weights: list[Tensor], products: list[Tensor], ends: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    gate, up, down = (torch.empty_like(weight) for weight in weights)
    return torch.empty_like(x), gate, up, down


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    x, gate, up, down, _ = inputs
    _, gated, raised, on_host = output
    ctx.save_for_backward(x, gate, up, down, gated, raised, on_host)


def _differentiate(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    x, gate, up, down, gated, raised, on_host = ctx.saved_tensors
    gradients = _sliced_swiglu_backward(
        grad.contiguous(), x, [gate, up, down], [gated, raised], on_host
    )
    return (*gradients, None)


_sliced_swiglu.register_autograd(_differentiate, setup_context=_keep)


def _padded(rows: Tensor) -> Tensor:
    """Return the rows, in bf16 on a CPU with rows of zeros up to a multiple of ROW_MULTIPLE.

    There, oneDNN compiles and keeps code for every shape, and experts have other numbers of rows in
    each step. Zeros change no product.
    """
    missing = -len(rows) % ROW_MULTIPLE
    if not missing or rows.device.type != "cpu" or rows.dtype != torch.bfloat16:
        return rows
    return pad(rows, (0, 0, 0, missing))


def _slices(ends: Tensor) -> list[tuple[int, slice]]:
    """Return each expert that has rows, with its rows."""
    borders = [0, *ends.tolist()]
    return [(e, slice(a, b)) for e, (a, b) in enumerate(pairwise(borders)) if b > a]
