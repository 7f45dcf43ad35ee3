"""Predict the memory of a training step: its parts, and the phase that needs the most."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from pion.config.draft import draft_d_ff
from pion.config.lora import Lora, LoraCost, lora_cost
from pion.config.model_config import ModelConfig
from pion.model.attention.attention import inside_kernels
from pion.model.attention.masks import mask_bytes
from pion.model.attention.rope import rotation_bytes
from pion.model.feedforward.expert_products import product_path
from pion.model.loss import LossShape, loss_bytes
from pion.model.params_and_flops import (
    TokenFlops,
    backward_bytes,
    copied_bytes,
    cost_of,
    kept_around_blocks,
    kept_by_draft,
    kept_bytes_per_token,
    kept_if_recomputed,
    matrix_shapes,
    shared_table_bytes,
    token_flops,
)
from pion.model.pass_kind import PassKind
from pion.train.hardware import torch_dtype
from pion.train.moments import each_matrix, moment_bytes
from pion.train.muon import step_bytes
from pion.train.shared_muon import shared_step_bytes
from pion.train.shared_weights import exchange_bytes

# The memory of a process without a model. On a GPU: the CUDA context, cuBLAS' workspaces and NCCL's
# buffers. On a CPU: the libraries.
RUNTIME_BYTES = 600 * 2**20

# CUDA's allocator rounds up to a multiple of this. It matters for gains and scalars.
ROUNDED_TO = 512


@dataclass(frozen=True)
class Workload:
    """What a rank trains and how it computes, apart from the micro-batch."""

    config: ModelConfig
    seq_len: int  # tokens in a row
    dtype: Literal["float32", "bfloat16"]
    optimizer: Literal["adamw", "muon"]
    device: str  # "cpu" or "cuda"; they differ in their kernels and in the chunks of the loss
    documents: bool  # whether rows hold several documents, as those of conversations do
    compile: bool = False  # whether the blocks are compiled
    lora: Lora | None = None  # what LoRA adds to a frozen model; None: all weights are trained
    only_draft: bool = False  # whether the draft block is all that is trained
    # Of the GPU. It decides how experts are computed; None: unknown, so the way that needs more.
    capability: tuple[int, int] | None = None
    ranks: int = 1  # that divide the moments and Muon's arithmetic (pion/train/ownership.py)

    @property
    def entries(self) -> int:
        """The entries in a row that blocks compute: its tokens, and its slots."""
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
        asked = self.lora is not None and self.lora.base_dtype == "bfloat16"
        return 2 if asked and self.width == 2 else 4

    def flops(self) -> TokenFlops:
        """Return the FLOPs of training on a token."""
        additions = None if self.lora is None else lora_cost(self.config, self.lora).params
        return token_flops(self.config, self.seq_len, additions, only_draft=self.only_draft)

    def pass_kind(self) -> PassKind:
        """Return the kind of the workload's forward passes."""
        capability = (9, 0) if self.capability is None else self.capability
        path = product_path(self.device, capability, torch_dtype(self.dtype))
        return PassKind(
            self.width,
            self.entries,
            self.device,
            self.documents,
            grouped=self.config.experts is not None and path == "grouped",
            compiled=self.compile and self.device == "cuda",
        )


@dataclass(frozen=True)
class Memory:
    """The predicted peak of a training step, in bytes.

    The first fields last for the whole step. Each of the others is the most that one phase of the
    step needs in addition. Phases follow each other, so the largest one counts.
    """

    # In float32 unless they are frozen, and the gradients of the learned ones: one set, also with
    # several ranks, whose buckets (buckets.py) are these gradients.
    weights: int
    optimizer: int  # the moments, and AdamW's counts of steps
    activations: int  # what the forward pass keeps for the backward pass
    loss: int  # the end of the forward pass: activations, copies of weights, and the loss
    backward: int
    update: int  # the optimizer's step
    reserve: int  # what is no tensor, see `_reserve`

    @property
    def counted(self) -> int:
        """The bytes of the tensors at the peak."""
        return self.weights + self.optimizer + max(self.loss, self.backward, self.update)

    @property
    def total(self) -> int:
        """The bytes of a training step, including the reserve."""
        return self.reserve + self.counted


def predict_memory(work: Workload, *, micro_batch: int, recompute: bool) -> Memory:
    """Return the peak bytes of a training step over micro-batches of `micro_batch` rows.

    `recompute` keeps only what each block reads for the backward pass.
    """
    weights, moments, update = _state(work)
    if work.only_draft:
        return _of_draft_alone(work, micro_batch, weights, moments)
    step = _MicroBatch(work, micro_batch, recompute)
    # On a CPU, what one phase frees is not all used again by the next.
    left = update if work.device == "cpu" else 0
    return Memory(
        weights=weights,
        optimizer=moments,
        activations=step.activations(),
        loss=step.end_of_forward() + left,
        backward=step.backward() + left,
        update=update,
        reserve=_reserve(work, micro_batch),
    )


def _of_draft_alone(work: Workload, rows: int, weights: int, moments: int) -> Memory:
    """Return the peak of a step that trains a draft block behind a model without gradients.

    First comes the model's forward pass, which keeps nothing: a block needs at most what it would
    keep and the copies of weights. Then the block's own passes have the hidden states of the model.
    """
    config, at, tokens = work.config, work.pass_kind(), rows * work.entries
    targets = rows * work.seq_len  # slots have none
    around = tokens * kept_around_blocks(config, at) + mask_bytes(config, at, rows)
    around += rotation_bytes(config, at, rows) + 4 * config.d_model * tokens
    copies = copied_bytes(config, at)
    block = tokens * max(kept_bytes_per_token(config, at)) + sum(copies)
    kept = targets * kept_by_draft(config, at)
    ids = config.draft.ids_of(config.vocab_size) if config.draft is not None else 0
    heads = [
        LossShape(targets, config.d_model, head, config.logit_cap is not None, learned=False)
        for head in (config.head_rows, ids)
    ]
    own_head = 4 * ids * config.d_model
    of_model, of_draft = (loss_bytes(shape, replace(at, compiled=False)) for shape in heads)
    loss = around + max(block, of_model, own_head + kept + of_draft)
    most = targets * _draft_gradients(config)
    return Memory(
        weights=weights,
        optimizer=moments,
        activations=around + kept,
        loss=loss,
        backward=around + own_head + kept + most,
        update=0,
        reserve=_reserve(work, rows),
    )


def _draft_gradients(config: ModelConfig) -> int:
    """Return the most bytes of a token that SwiGLU and the mixing of a draft block add backward."""
    return 4 * (4 * config.d_model + 3 * draft_d_ff(config.d_model))


def _state(work: Workload) -> tuple[int, int, int]:
    """Return the bytes of the weights with their gradients, of the moments, and of an update."""
    cost, ranks = cost_of(work.config), work.ranks
    rounding = ROUNDED_TO * cost.tensors
    if work.lora is not None:
        additions = lora_cost(work.config, work.lora)
        in_products = sum(cost.params[role] for role in ("matrix", "embedding", "head"))
        frozen = work.stored_width * in_products + 4 * (cost.all_params - in_products) + rounding
        each = ROUNDED_TO * additions.tensors
        moments = moment_bytes(additions.params, (), ranks) + 3 * each
        update = exchange_bytes(additions.params, ranks)
        return frozen + 8 * additions.params + 2 * each, moments, update
    if work.only_draft:
        learned = cost.params["draft"]
        moments = moment_bytes(learned, (), ranks) + 3 * rounding
        return 4 * (cost.all_params + learned) + 2 * rounding, moments, 0
    weights = 8 * cost.all_params + 2 * rounding
    if work.optimizer != "muon":
        moments = moment_bytes(cost.all_params, (), ranks) + 3 * rounding
        return weights, moments, exchange_bytes(cost.all_params, ranks)
    shapes = matrix_shapes(work.config)
    by_adamw = cost.all_params - cost.params["matrix"]
    moments = moment_bytes(by_adamw, each_matrix(shapes), ranks) + 3 * rounding
    if ranks == 1:
        return weights, moments, step_bytes(shapes, work.width)
    by_muon = shared_step_bytes(each_matrix(shapes), work.width, ranks)
    return weights, moments, max(by_muon, exchange_bytes(by_adamw, ranks))


def _reserve(work: Workload, micro_batch: int) -> int:
    """Return the bytes for what is no tensor: the runtime, and what kernels allocate inside.

    Attention's backward pass in one layer allocates the most. Fragmentation is not in the reserve:
    HEADROOM (micro_batch.py) is left for it.
    """
    inside = inside_kernels(work.pass_kind(), work.config)
    return RUNTIME_BYTES + micro_batch * work.entries * inside


@dataclass(frozen=True)
class _MicroBatch:
    """One micro-batch of `rows` rows, forward and backward, after others in the same step."""

    work: Workload
    rows: int
    recompute: bool

    @property
    def _at(self) -> PassKind:
        return self.work.pass_kind()

    @property
    def _tokens(self) -> int:
        return self.rows * self.work.entries

    @property
    def _targets(self) -> int:
        """The tokens that predict another one: slots do not."""
        return self.rows * self.work.seq_len

    @property
    def _states(self) -> int:
        """The bytes of hidden states in fp32."""
        return 4 * self.work.config.d_model * self._tokens

    @property
    def _copies(self) -> tuple[int, ...]:
        """The bytes of the copies of each block's weights in bf16."""
        of_base = copied_bytes(self.work.config, self._at)
        if self._additions is None:
            return of_base
        if self.work.stored_width == self._at.width:
            of_base = (0,) * len(of_base)
        if self._at.width == 4:
            return of_base
        added = (self._at.width * params for params, _ in self._additions.layer)  # their A and B
        return tuple(map(sum, zip(of_base, added, strict=True)))

    @property
    def _additions(self) -> LoraCost | None:
        lora = self.work.lora
        return None if lora is None else lora_cost(self.work.config, lora)

    def activations(self) -> int:
        """Return the bytes that the forward pass keeps for the backward pass."""
        return self._kept_by_model() + self._kept_by_draft()

    def _kept_by_model(self) -> int:
        return self._around_blocks() + self._kept_until(self.work.config.n_layers)

    def _kept_by_draft(self) -> int:
        """Return the bytes that a draft block keeps. It is frozen where LoRA trains the others."""
        frozen = self.work.lora is not None
        return 0 if frozen else self._targets * kept_by_draft(self.work.config, self._at)

    def end_of_forward(self) -> int:
        """Return the bytes while the loss is computed, in which its input is still there.

        Autocast keeps its copies of weights until the end of the forward pass, even if blocks are
        recomputed. Then only its copies are there: not those of compiled blocks, nor of the stacks
        of grouped products.
        """
        config = self.work.config
        capped = config.logit_cap is not None
        learned, stored = self.work.lora is None, self.work.stored_width
        shape = LossShape(
            self._targets, config.d_model, config.head_rows, capped, learned=learned, stored=stored
        )
        copies = self._copies
        if self.recompute and not learned:
            copies = ()  # autocast keeps no copies of frozen weights
        elif self.recompute:
            ungrouped = replace(self._at, grouped=False)
            copies = () if self._at.compiled else copied_bytes(config, ungrouped)
        most = self._states + loss_bytes(shape, self._at)
        if self._kept_by_draft():
            most = max(most, self._states + self._loss_of_draft())
        if self._additions is not None:  # in the last block
            # A projection's result, B A x, this scaled, and the sum, which is kept.
            most = max(most, 3 * self._at.width * self._additions.result * self._tokens)
        return self._kept_by_model() + sum(copies) + most

    def _loss_of_draft(self) -> int:
        """Return the bytes of a draft block's steps, forward and backward, after the model's loss.

        The model's loss has left the gradients of the hidden states and of the head.
        """
        config = self.work.config
        assert config.draft is not None
        ids = config.draft.ids_of(config.vocab_size)
        capped = config.logit_cap is not None
        shape = LossShape(self._targets, config.d_model, ids, capped, learned=False)
        head = 4 * config.d_model * ids
        most = max(loss_bytes(shape, self._at), self._targets * _draft_gradients(config))
        left = 4 * config.d_model * (self._targets + config.head_rows)
        return left + head + self._kept_by_draft() + most

    def backward(self) -> int:
        """Return the most bytes at once in the backward pass."""
        config = self.work.config
        additions = self._additions
        waiting = 0
        if additions is None:
            waiting = shared_table_bytes(config)
            if config.tie_embeddings:  # the head's gradient waits for that of the embedding
                waiting += 4 * config.head_rows * config.d_model
        copies = 0 if self.recompute else sum(self._copies)
        around = self._around_blocks() + copies + waiting
        kept = kept_bytes_per_token(config, self._at)
        # The last norm has the gradients of its result and of its input.
        phases = [around + self._kept_until(config.n_layers) + 2 * self._states]
        for layer, most in enumerate(backward_bytes(config, self._at, self._tokens)):
            own = 0
            if self.recompute:
                # The block's input is counted twice, and is there once.
                own = kept[layer] * self._tokens + self._copies[layer] - self._states
                own += self._kept_by_additions(layer + 1) - self._kept_by_additions(layer)
            if additions is not None:
                # The scaled gradient of a projection's result, and a gradient of its input next to
                # the base's.
                own += self._at.width * additions.widest * self._tokens
            phases.append(around + self._kept_until(layer + 1) + own + most)
        if additions is not None:
            return max(phases)
        # The embedding's gradient, and the sum of both where it is tied.
        table = 4 * config.vocab_size * config.d_model
        phases.append(around - copies + table * (2 if config.tie_embeddings else 1))
        return max(phases)

    def _around_blocks(self) -> int:
        """Return the bytes that are kept outside the blocks, and what all blocks read."""
        config, at = self.work.config, self._at
        shared = mask_bytes(config, at, self.rows) + rotation_bytes(config, at, self.rows)
        return self._tokens * kept_around_blocks(config, at) + shared

    def _kept_until(self, layers: int) -> int:
        """Return the bytes that the first blocks keep."""
        of_blocks = kept_if_recomputed if self.recompute else kept_bytes_per_token
        kept = self._tokens * sum(of_blocks(self.work.config, self._at)[:layers])
        return kept if self.recompute else kept + self._kept_by_additions(layers)

    def _kept_by_additions(self, layers: int) -> int:
        """Return the bytes that LoRA's additions keep in the first blocks: A x of each."""
        lora, additions = self.work.lora, self._additions
        if lora is None or additions is None:
            return 0
        projections = sum(projections for _, projections in additions.layer[:layers])
        return self._tokens * self._at.width * lora.rank * projections
