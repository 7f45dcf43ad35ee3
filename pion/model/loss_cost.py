"""What the loss of loss.py takes in memory."""

from __future__ import annotations

from dataclasses import dataclass

from pion.model.loss import (
    COLUMN_MULTIPLE,
    COMPILED_CHUNK_BYTES,
    CPU_CHUNK_BYTES,
    CUDA_CHUNK_BYTES,
    divisor_near,
    rows_per_chunk,
)
from pion.model.pass_kind import PassKind

# What CUDA's allocator takes for a scalar.
SCALAR_BYTES = 512


@dataclass(frozen=True)
class LossShape:
    """What decides the memory of a loss with its gradients."""

    rows: int  # hidden states, one for each token
    d_model: int
    vocab: int  # rows of the head
    capped: bool
    learned: bool = True  # whether the head has a gradient
    stored: int = 4  # bytes of an element of the head


def loss_bytes(shape: LossShape, at: PassKind) -> int:
    """Return the most bytes at once in `linear_cross_entropy`, in addition to its arguments.

    All the time: the gradient of the hidden states in fp32, and their copy in the dtype of
    products. The other functions add the rest.
    """
    states = shape.rows * shape.d_model
    always = 4 * states + (at.width * states if at.width == 2 else 0)
    if at.compiled:
        return always + _compiled_bytes(shape, at)
    head = shape.vocab * shape.d_model
    always += 4 * head if shape.learned else 0  # its gradient
    always += at.width * head if at.width != shape.stored else 0  # its copy
    always += 2 * 8 * shape.rows  # the indices of the rows, and their targets
    if at.device == "cpu":
        # Half chunks: the logits, and a product or a gradient. A cap keeps its derivative.
        halves = 5 if shape.capped else 3
        return always + min(CPU_CHUNK_BYTES, 4 * shape.rows * shape.vocab) * halves // 2
    # The hidden states are indexed in fp32. In bf16 that copy is gone once they are cast.
    indexed = 4 * states
    chunk = _plain_chunk_bytes(shape, at)
    return always + (max(indexed, chunk) if at.width == 2 else indexed + chunk)


def _plain_chunk_bytes(shape: LossShape, at: PassKind) -> int:
    """Return the most bytes at once that belong to one chunk of logits in `_plain`, on CUDA.

    First come the logits, and the product before its copy to fp32. Then the gradient, which in fp32
    takes the place of the logits, and the products with it. A cap has two more tensors in fp32, and
    keeps one. What the chunk before had at its end is still there until the gradient is made.
    """
    chunk = rows_per_chunk(shape.rows, shape.vocab, CUDA_CHUNK_BYTES)
    logits, several = 4 * chunk * shape.vocab, shape.rows > chunk
    states = chunk * shape.d_model
    products = max((4 + at.width) * states, at.width * (states + shape.d_model * shape.vocab))
    product = logits * at.width // 4
    gradient = product if at.width == 2 else 0
    slope = logits if shape.capped else 0
    before = slope + gradient + at.width * states if several else 0
    making = 2 * logits if shape.capped else product
    numbers = 64 * chunk  # a few for each row: its target, its sum …
    return numbers + max(logits + making + before, logits + slope + gradient + products)


def _compiled_bytes(shape: LossShape, at: PassKind) -> int:
    """Return the most bytes at once of the head and of one chunk of logits in `_compiled`.

    There are the head with its padding, its gradient, and of each chunk the logits in fp32 and
    their gradient. While a chunk is computed, the gradient of the chunk before is still there.
    Then the last and the next sum of the head's gradient are there.
    """
    columns = -(-shape.vocab // COLUMN_MULTIPLE) * COLUMN_MULTIPLE
    most = rows_per_chunk(shape.rows, columns, COMPILED_CHUNK_BYTES)
    chunk = divisor_near(shape.rows, most)
    logits, head = chunk * columns, columns * shape.d_model
    several = shape.rows > chunk
    copy = at.width * head if at.width != shape.stored or columns > shape.vocab else 0
    gradient = 4 * head if shape.learned else 0
    sums = gradient if several else 0
    before = at.width * logits if several else 0
    in_chunk = 4 * logits + at.width * logits + before + sums
    in_product = at.width * logits + gradient + sums
    sums_of_chunks = SCALAR_BYTES * (2 + -(-shape.rows // chunk))
    padding = at.width * shape.vocab * shape.d_model  # the head before it is padded
    return copy + sums_of_chunks + max(in_chunk, in_product, padding)
