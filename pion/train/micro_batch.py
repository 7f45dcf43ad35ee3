"""Choose the micro-batch: predict the memory of a training step, and fit it to the machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pion.config import ModelConfig
from pion.errors import BadInput
from pion.model.cost import cost_of, kept_bytes_per_token, kept_if_recomputed
from pion.model.forward_pass import ForwardPass
from pion.model.loss import CPU_CHUNK_BYTES, CUDA_CHUNK_BYTES
from pion.model.masks import dense_mask_bytes
from pion.train.muon import BATCH_ELEMENTS

# The memory of a process without a model: libraries and, on a GPU, the CUDA context.
RUNTIME_BYTES = 600 * 2**20

# The share of the memory that stays free, for fragmentation and errors of the prediction.
HEADROOM = 0.1

# A micro-batch of more tokens than this is no faster.
USEFUL_TOKENS = {"cpu": 4096, "cuda": 65_536}


class DoesNotFit(BadInput):
    """A training step needs more memory than the `usable` bytes; `what` says how much."""

    def __init__(self, message: str, what: str, usable: int) -> None:
        self.what, self.usable = what, usable
        super().__init__(message)


@dataclass(frozen=True)
class Workload:
    """What a rank trains and how it computes, apart from the micro-batch."""

    config: ModelConfig
    seq_len: int  # tokens in a row
    dtype: Literal["float32", "bfloat16"]
    optimizer: Literal["adamw", "muon"]
    device: str  # "cpu" or "cuda"; they differ in their kernels and in the chunks of the loss
    documents: bool  # whether rows hold several documents, as those of conversations do


@dataclass(frozen=True)
class Memory:
    """The predicted peak of a training step, in bytes."""

    weights: int  # float32 weights and gradients, and the copies that bf16 products read
    optimizer: int
    activations: int  # what the forward pass keeps for the backward pass
    loss: int  # one chunk of logits, and the head's gradient in addition to its sum

    @property
    def total(self) -> int:
        """Return the bytes of a training step, including RUNTIME_BYTES."""
        return RUNTIME_BYTES + self.weights + self.optimizer + self.activations + self.loss


def predict_memory(work: Workload, *, micro_batch: int, recompute: bool) -> Memory:
    """Return the peak bytes of a training step over micro-batches of `micro_batch` rows.

    `recompute` keeps only what each block reads for the backward pass.
    """
    cost = cost_of(work.config)
    width = 2 if work.dtype == "bfloat16" else 4  # bytes per element in matrix products
    matrices, others = cost.params["matrix"], cost.all_params - cost.params["matrix"]

    weights = 8 * cost.all_params
    if work.dtype == "bfloat16":
        weights += 2 * cost.all_params
    if work.optimizer == "muon":
        batch = min(matrices, BATCH_ELEMENTS)
        moments = 4 * matrices + 8 * others + (8 + 3 * width) * batch
    else:
        moments = 8 * cost.all_params

    tokens = micro_batch * work.seq_len
    residual = 4 * work.config.d_model
    at = ForwardPass(width, work.seq_len, work.device, work.documents)
    blocks = kept_bytes_per_token(work.config, at)
    kept = kept_if_recomputed(work.config) + max(blocks) if recompute else sum(blocks)
    activations = tokens * (kept + 3 * residual)
    activations += dense_mask_bytes(work.config, at, micro_batch)

    chunk = CPU_CHUNK_BYTES if work.device == "cpu" else CUDA_CHUNK_BYTES
    rows = work.config.head_rows
    copies = 3 if work.config.logit_cap is None else 5  # half chunks; a cap keeps its derivative
    loss = min(chunk, 4 * tokens * rows) * copies // 2 + 4 * rows * work.config.d_model
    return Memory(weights=weights, optimizer=moments, activations=activations, loss=loss)


def choose_micro_batch(
    work: Workload, *, rows_per_rank: int, memory_bytes: int, recompute: bool | None = None
) -> tuple[int, bool]:
    """Return the micro-batch for a rank with `memory_bytes`, and whether to recompute activations.

    The rank's rows of a step are cut into the fewest micro-batches, of a power-of-two size that
    fits and is useful. Then the sizes are evened out. Recomputing activations costs a third more
    arithmetic, so activations are recomputed only if one row does not fit otherwise, or as
    `recompute` says.

    Raises DoesNotFit, a BadInput, if even one row does not fit.
    """
    available = int(memory_bytes * (1 - HEADROOM))
    useful = max(1, USEFUL_TOKENS[work.device] // work.seq_len)
    needed = 0
    for again in (False, True) if recompute is None else (recompute,):
        best, size = 0, 1
        while size <= min(useful, max(1, rows_per_rank)):
            needed = predict_memory(work, micro_batch=size, recompute=again).total
            if needed > available:
                break
            best, size = size, 2 * size
        if best:
            micro_batches = -(-rows_per_rank // best)
            return -(-rows_per_rank // micro_batches), again
    raise DoesNotFit(
        f"the model does not fit: training on one row of {work.seq_len} tokens needs "
        f"{needed / 2**30:.1f} GiB, and {available / 2**30:.1f} of this machine's "
        f"{memory_bytes / 2**30:.1f} GiB can be used. Use a larger machine, a smaller model or a "
        "shorter data.seq_len" + ("" if recompute in (None, True) else ", or allow recompute"),
        f"the model does not fit: training on one row of {work.seq_len} tokens needs "
        f"{needed / 2**30:.1f} GiB",
        available,
    )
