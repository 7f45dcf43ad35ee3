"""What a rank trains, and how it computes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from pion.config.lora import Lora, lora_cost
from pion.config.model_config import ModelConfig
from pion.model.feedforward.expert_products import product_path
from pion.model.params_and_flops import TokenFlops, token_flops
from pion.train.hardware import torch_dtype
from pion.train.optimizers import OptimizerName

# GPUs with and without kernels for grouped products of experts. Nothing else of a GPU decides what
# a step needs. An unknown GPU counts as one with them, because they need more.
WITH_GROUPED, WITHOUT_GROUPED = (9, 0), (8, 6)


@dataclass(frozen=True)
class Workload:
    """What a rank trains and how it computes, apart from the micro-batch."""

    config: ModelConfig
    seq_len: int  # tokens in a row
    dtype: Literal["float32", "bfloat16"]
    optimizer: OptimizerName
    device: str  # "cpu" or "cuda"; they differ in their kernels and in the chunks of the loss
    documents: bool  # whether rows hold several documents, as those of conversations do
    compile: bool = False  # whether the blocks are compiled
    residual: Literal["float32", "bfloat16"] = "float32"  # of the hidden states between blocks
    lora: Lora | None = None  # what LoRA adds to a frozen model; None: all weights are trained
    only_apart: bool = False  # whether all that is trained changes nothing in the model
    # Of the GPU. It decides how experts are computed; None: unknown, so the way that needs more.
    capability: tuple[int, int] | None = None
    # The most answers in a row, if a loss compares answers; 0: each target token is learned.
    sequences: int = 0
    # Bytes of what samples answers, next to training.
    sampling: int = 0
    # Ranks divide Muon's arithmetic (pion/train/optimizer/divided_muon.py).
    ranks: int = 1
    # Whether ranks divide the weights, gradients and moments, too (pion/train/sharding.py).
    sharded: bool = False

    @property
    def entries(self) -> int:
        """The entries in a row that blocks compute: its tokens, and those of parts."""
        return self.config.entries(self.seq_len)

    @property
    def width(self) -> int:
        """The bytes of an element in matrix products."""
        return 2 if self.dtype == "bfloat16" else 4

    @property
    def stored_width(self) -> int:
        """The bytes of an element of the weights that products read.

        Whether bfloat16 has the exact values of LoRA's base is seen only when the base is loaded.
        """
        wants_bf16 = self.lora is not None and self.lora.base_dtype == "bfloat16"
        return 2 if wants_bf16 and self.width == 2 else 4

    def flops(self) -> TokenFlops:
        """Return the FLOPs of training on a token."""
        additions = None if self.lora is None else lora_cost(self.config, self.lora).params
        return token_flops(self.config, self.seq_len, additions, only_apart=self.only_apart)

    def traced(self) -> Workload:
        """Return the workload with the fields at their defaults that a micro-batch does not see."""
        path = product_path(self.device, self.capability or WITH_GROUPED, torch_dtype(self.dtype))
        grouped = self.config.experts is not None and path == "grouped"
        return replace(
            self,
            optimizer="adamw",
            compile=self.compile and self.device == "cuda",
            capability=WITH_GROUPED if grouped else WITHOUT_GROUPED,
            sampling=0,
            ranks=1,
        )
