"""How a forward pass is computed, as far as this decides what it keeps for the backward pass."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ForwardPass:
    """One forward pass of training over rows of `tokens` tokens.

    Attributes:
        width: the bytes of an element in matrix products: 2 in bf16, 4 in fp32.
        tokens: the tokens in a row.
        device: "cpu" or "cuda"; each has its own kernels.
        documents: whether the rows hold several documents, so that each row has its own mask.
    """

    width: int
    tokens: int
    device: str = "cpu"
    documents: bool = False
