"""What a compiled block needs, as the graph of the block says it. Torch's compiler is imported."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from pion.train.memory_trace.block_memory import ROWS
from pion.train.memory_trace.compiled_block import MANY_ROWS, measure_compiled_block
from pion.train.memory_trace.live_bytes import LiveBytes

pytestmark = pytest.mark.soak

TOKENS, WIDTH = 512, 128  # of a row


def product(weights: list[Tensor], given: list[Tensor]) -> list[Tensor]:
    """Return a product in fp32: its gradient is rounded to bf16, and products read a view of it."""
    flat = given[0].view(-1, WIDTH) @ weights[0]
    return [flat.view(given[0].shape).float()]


def test_what_a_product_reads_through_a_view_is_in_memory() -> None:
    """A product is not fused with what comes before it, so what it reads is in memory."""
    with FakeTensorMode(), LiveBytes("cpu", {}) as live:
        weight = torch.empty(WIDTH, WIDTH, dtype=torch.bfloat16, requires_grad=True)
        given = torch.empty(MANY_ROWS, TOKENS, WIDTH, dtype=torch.bfloat16, requires_grad=True)
        result = torch.empty(MANY_ROWS, TOKENS, WIDTH, requires_grad=True)
        measured = measure_compiled_block(live, product, [weight], [given], [result])
    for rows, found in zip(ROWS, measured, strict=True):
        assert found.backward[0] == 2 * rows * TOKENS * WIDTH  # the gradient in bf16
