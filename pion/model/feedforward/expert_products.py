"""The feed-forward maths of many experts, each on the tokens that chose it.

The choices of all tokens are sorted by expert: expert e has the choices [ends[e − 1], ends[e]).
There are two ways to compute the experts, see `product_path`:

  * grouped: three grouped matrix products, each one kernel. They need bf16 and a GPU of capability
    9.x or 10.x (H100, H200, B200). Nothing waits for the GPU.
  * sliced: a loop over experts inside one custom operation. A GPU has to tell where the slices end,
    which is one wait a layer. On a CPU this loop takes half the time of grouped products.

The custom operation is opaque to torch.compile, so a block with experts compiles without a break.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.functional import pad, silu

# Torch has kernels for grouped products only for these major capabilities. On other GPUs, 12.0
# included (RTX 5090), torch would read where the groups end inside each product.
GROUPED_MAJORS = (9, 10)
# Torch 2.9 has no public grouped product: there, every GPU computes slices.
_grouped_mm: Any = getattr(functional, "grouped_mm", None)
# On a CPU, the rows of an expert are padded to a multiple of this.
ROW_MULTIPLE = {torch.bfloat16: 128, torch.float32: 16}
# An export has a copy of this file. Where both are imported, each registers its own operations.
_NAMESPACE = re.sub(r"\W", "_", __name__)


def product_path(
    device_type: str, capability: tuple[int, int] | None, dtype: torch.dtype
) -> Literal["grouped", "sliced"]:
    """Return how products of experts are computed on a device; `capability` is a GPU's."""
    supported = _grouped_mm is not None and device_type == "cuda" and dtype == torch.bfloat16
    capable = capability is not None and capability[0] in GROUPED_MAJORS
    return "grouped" if supported and capable else "sliced"


def mix_experts(
    x: Tensor, matrices: list[Tensor], weights: Tensor, order: Tensor, ends: Tensor
) -> Tensor:
    """Return Σ_j w_j · down_e(silu(gate_e x) ⊙ up_e x) for each token, where e is its j-th expert.

    `x` is (tokens, d_model), and so is the result. The `matrices` gate and up are (E, d_ff,
    d_model), and down is (E, d_model, d_ff). `weights` is (tokens, top_k). Choice t · top_k + j is
    the j-th of token t: `order` (tokens · top_k,) has the choices sorted by expert, and `ends` (E,)
    int32 where each expert's end. All products are in the dtype of `x`.
    """
    capability = torch.cuda.get_device_capability(x.device) if x.is_cuda else None
    weights = weights.to(x.dtype)
    if product_path(x.device.type, capability, x.dtype) == "grouped":
        return _grouped_mixture(x, matrices, weights, order, ends)
    result: Tensor = _sliced_mixture(x, matrices, weights, order, ends)[0]
    return result


def _grouped_mixture(
    x: Tensor, matrices: list[Tensor], weights: Tensor, order: Tensor, ends: Tensor
) -> Tensor:
    rows: Tensor = _RowsOfChoices.apply(x, order, weights.shape[1])
    gate, up, down = (matrix.to(x.dtype) for matrix in matrices)
    gated = _grouped_mm(rows, gate.mT, offs=ends)
    raised = _grouped_mm(rows, up.mT, offs=ends)
    parts = _grouped_mm(silu(gated) * raised, down.mT, offs=ends)
    parts = _InOrderOfTokens.apply(parts, order).view(*weights.shape, -1)
    return (parts * weights[..., None]).sum(dim=1)


class _RowsOfChoices(torch.autograd.Function):
    """Takes the token of each choice in `order`.

    The gradient of a token is the sum over its choices, whose rows are known. Autograd would add
    each row up where it belongs, which is slow on a GPU and not deterministic.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, top_k: int) -> Tensor:
        ctx.save_for_backward(order)
        ctx.top_k = top_k
        return x.index_select(0, order // top_k)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (order,) = ctx.saved_tensors
        return _sum_of_choices(grad, order, ctx.top_k), None, None


class _InOrderOfTokens(torch.autograd.Function):
    """Brings the rows of `order` back into the order of the tokens; the gradient goes to `order`.

    Both are gathers.
    """

    @staticmethod
    def forward(ctx: Any, parts: Tensor, order: Tensor) -> Tensor:
        ctx.save_for_backward(order)
        return parts.index_select(0, _row_of(order))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (order,) = ctx.saved_tensors
        return grad.index_select(0, order), None


def _row_of(order: Tensor) -> Tensor:
    """Return the place in `order` of each choice."""
    places = torch.arange(len(order), device=order.device)
    return torch.empty_like(order).index_put_((order,), places)


@torch.library.custom_op(f"{_NAMESPACE}::sliced_mixture", mutates_args=())
def _sliced_mixture(
    x: Tensor, matrices: list[Tensor], weights: Tensor, order: Tensor, ends: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the result, each choice's products with gate and up, and `ends` on the host."""
    products, parts = _products(x, matrices, order), _room(x, order, x.shape[1])
    on_host = ends.cpu().clone()
    d_ff = matrices[0].shape[1]
    for part in _slices(x, weights, order, on_host):
        gate_up, down = _matrices(matrices, part.expert, x.dtype)
        # Padding is written where the next expert's rows will be.
        both = torch.mm(x.index_select(0, part.tokens), gate_up.T, out=products[part.rows])
        hidden = silu(both[:, :d_ff]).mul_(both[:, d_ff:])
        torch.mm(hidden, down.T, out=parts[part.rows]).mul_(part.weights)
    return _sum_of_choices(parts, order, weights.shape[1]), products, on_host


@_sliced_mixture.register_fake
def _(
    x: Tensor, matrices: list[Tensor], weights: Tensor, order: Tensor, ends: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(x), _products(x, matrices, order), torch.empty_like(ends, device="cpu")


@torch.library.custom_op(f"{_NAMESPACE}::sliced_mixture_backward", mutates_args=())
def _sliced_mixture_backward(
    grad: Tensor,
    x: Tensor,
    matrices: list[Tensor],
    weights: Tensor,
    kept: list[Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of `x`, of gate, up and down, and of `weights`."""
    order, products, ends = kept
    parts, grad_weights = _room(x, order, x.shape[1]), torch.empty_like(weights)
    grad_gate, grad_up, grad_down = (_zeros_if_idle(matrix, ends) for matrix in matrices)
    d_ff = matrices[0].shape[1]
    for part in _slices(x, weights, order, ends):
        gate_up, down = _matrices(matrices, part.expert, x.dtype)
        inputs, own_grad = x.index_select(0, part.tokens), grad.index_select(0, part.tokens)
        gated, raised = products[part.rows].split(d_ff, dim=1)
        activated = silu(gated)
        hidden = activated * raised
        grad_hidden = own_grad @ down  # of the hidden states times their weights
        by_choice = (grad_hidden * hidden).sum(dim=1)
        grad_weights.view(-1)[part.choices] = by_choice[: len(part.choices)]
        # Weights are multiplied into rows of d_model where possible: they are the shorter ones.
        grad_down[part.expert] = own_grad.mul_(part.weights).T @ hidden
        grad_hidden.mul_(part.weights)
        grad_both = torch.empty_like(products[part.rows])
        torch.mul(activated, grad_hidden, out=grad_both[:, d_ff:])
        torch.ops.aten.silu_backward.grad_input(
            grad_hidden.mul_(raised), gated, grad_input=grad_both[:, :d_ff]
        )
        grad_gate_up = grad_both.T @ inputs
        grad_gate[part.expert], grad_up[part.expert] = grad_gate_up[:d_ff], grad_gate_up[d_ff:]
        torch.mm(grad_both, gate_up, out=parts[part.rows])
    grad_x = _sum_of_choices(parts, order, weights.shape[1])
    return grad_x, grad_gate, grad_up, grad_down, grad_weights


@_sliced_mixture_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    matrices: list[Tensor],
    weights: Tensor,
    kept: list[Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    gate, up, down = (torch.empty_like(matrix) for matrix in matrices)
    return torch.empty_like(x), gate, up, down, torch.empty_like(weights)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, matrices, weights, order, _ = inputs
    _, products, ends = output
    ctx.set_materialize_grads(False)  # zeros for `products` would be as large as they are
    ctx.save_for_backward(x, *matrices, weights, order, products, ends)


def _differentiate(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Any, ...]:
    x, gate, up, down, weights, *saved = ctx.saved_tensors
    grad_x, *grads, grad_weights = _sliced_mixture_backward(
        grad.contiguous(), x, [gate, up, down], weights, saved
    )
    return grad_x, grads, grad_weights, None, None


_sliced_mixture.register_autograd(_differentiate, setup_context=_keep)


def _products(x: Tensor, matrices: list[Tensor], order: Tensor) -> Tensor:
    """Return room for each choice's products with gate and, next to them, with up."""
    return _room(x, order, 2 * matrices[0].shape[1])


def _room(x: Tensor, order: Tensor, width: int) -> Tensor:
    """Return uninitialized rows for all choices, and for padding at the end."""
    return x.new_empty(len(order) + _row_multiple(x) - 1, width)


def _matrices(matrices: list[Tensor], expert: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return an expert's gate above its up, as one matrix, and its down."""
    gate, up, down = (matrix[expert] for matrix in matrices)
    gate_up = gate.new_empty(2 * len(gate), gate.shape[1], dtype=dtype)
    gate_up[: len(gate)], gate_up[len(gate) :] = gate, up
    return gate_up, down.to(dtype)


def _zeros_if_idle(matrix: Tensor, ends: Tensor) -> Tensor:
    """Return room for a gradient, with zeros for each expert that no token chose."""
    grad = torch.empty_like(matrix)
    for expert, count in enumerate(ends.diff(prepend=ends.new_zeros(1)).tolist()):
        if count == 0:
            grad[expert] = 0.0
    return grad


def _sum_of_choices(parts: Tensor, order: Tensor, top_k: int) -> Tensor:
    """Return the sum of the parts of each token; `parts` has the rows of `order`.

    Adding rows up where they belong would not be deterministic on a GPU.
    """
    first, *others = _row_of(order).view(-1, top_k).unbind(dim=1)
    total = parts.index_select(0, first)
    for rows in others:
        total += parts.index_select(0, rows)
    return total


class _Slice(NamedTuple):
    """The choices of one expert, and the tokens that chose it, with their weights (…, 1).

    `rows` is where the expert's products are. Padding is token 0 with weight 0, see
    `_row_multiple`.
    """

    expert: int
    choices: Tensor
    rows: slice
    tokens: Tensor
    weights: Tensor


def _slices(x: Tensor, weights: Tensor, order: Tensor, ends: Tensor) -> Iterator[_Slice]:
    """Yield each expert that has tokens."""
    flat, top_k = weights.flatten(), weights.shape[1]
    for expert, (start, stop) in enumerate(pairwise([0, *ends.tolist()])):
        if stop > start:
            padding = (start - stop) % _row_multiple(x)
            choices, rows = order[start:stop], slice(start, stop + padding)
            tokens = pad(choices // top_k, (0, padding))
            yield _Slice(expert, choices, rows, tokens, pad(flat[choices], (0, padding))[:, None])


def _row_multiple(x: Tensor) -> int:
    """Return the number that the rows of each expert are a multiple of, in products with `x`.

    In bf16 on a CPU, oneDNN compiles and keeps code for every shape, and experts have other numbers
    of tokens in each step. In fp32, products of fewer than 16 rows have other last bits: a change
    in one document would move the last bits of the documents that share its experts.
    """
    return ROW_MULTIPLE.get(x.dtype, 1) if x.device.type == "cpu" else 1
