"""The gradient of a bank, of which each recipe uses a few primitives.

Autograd would let each recipe write a gradient of the whole bank, and add these up. Here the
gradient of a recipe is that of its primitives only. It leaves the layer through an outlet, and is
added to the rows of one gradient of the bank: from the last recipe to the first, so that the sum is
the same in every run.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Outlet(torch.autograd.Function):
    """See `outlet_of`."""

    @staticmethod
    def forward(bank: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
        return bank.new_empty(()).expand(len(chosen), *bank.shape[1:]), bank.view_as(bank)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Any) -> None:
        ctx.save_for_backward(inputs[1])
        ctx.size = inputs[0].shape
        ctx.set_materialize_grads(False)  # zeros would be as large as the bank

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, None]:
        of_chosen, of_bank = gradients
        (chosen,) = ctx.saved_tensors
        if of_chosen is None:
            return of_bank, None
        if of_bank is None:  # of the last recipe
            of_bank = of_chosen.new_zeros(ctx.size)
            of_bank[chosen] = of_chosen
        else:
            # The outlet of the next recipe has made this gradient, and nothing else reads it. A
            # recipe has a primitive once, so no two rows are added to the same one.
            of_bank[chosen] += of_chosen
        return of_bank, None


class _LookedUp(torch.autograd.Function):
    """Returns the chosen rows of a bank. The outlet gets their gradient."""

    @staticmethod
    def forward(bank: Tensor, chosen: Tensor, outlet: Tensor) -> Tensor:
        return bank[chosen]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, Tensor]:
        return None, None, gradients[0]


def outlet_of(bank: Tensor, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Return an outlet for the gradient of the primitives `chosen` (k,), and the bank.

    The outlet has the shape of the chosen primitives (k, rank, width), no memory and no values. The
    bank (n, rank, width) is for the outlet of the next recipe, and nothing else.
    """
    outlet, rest = _Outlet.apply(bank, chosen)
    # Between two nodes that are written in Python there is one that is not: see
    # pion/train/memory_trace/backward.py.
    return outlet.view_as(outlet), rest.view_as(rest)


def looked_up(bank: Tensor, chosen: Tensor, outlet: Tensor) -> Tensor:
    """Return the primitives `chosen` of a bank, (k, rank, width).

    Their gradient goes to the outlet, and none to the bank.
    """
    rows: Tensor = _LookedUp.apply(bank.detach(), chosen, outlet)
    return rows
