"""The kind of a forward pass: what of it decides the memory that a training step needs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PassKind:
    """How a forward pass of training over rows of `tokens` tokens is computed.

    Attributes:
        width: the bytes of an element in matrix products: 2 in bf16, 4 in fp32.
        tokens: the tokens in a row.
        device: "cpu" or "cuda"; each has its own kernels.
        documents: whether the rows hold several documents, so that each row has its own mask.
        grouped: whether experts compute grouped products (expert_products.py).
        compiled: whether blocks are compiled by torch.compile. Its partitioner then decides what a
            block keeps.
    """

    width: int
    tokens: int
    device: str = "cpu"
    documents: bool = False
    grouped: bool = False
    compiled: bool = False


def gradient_bytes(at: PassKind, weights: int) -> int:
    """Return the bytes of a new gradient of that many weights, before it is added to the sum.

    It has the dtype of the product, and is then cast to fp32.
    """
    return (4 if at.width == 4 else 4 + at.width) * weights
