"""The decoder: embedding, blocks, and the head, with what connects them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding
from torch.utils.checkpoint import checkpoint

from pion.config.model_config import APART, PARTS, ModelConfig
from pion.config.parts import Role, Scales
from pion.errors import BadInput
from pion.model.attention.attention import Attention, kernels_of_any_length
from pion.model.attention.cache import KVCache, Place
from pion.model.block import Block, Compute
from pion.model.chunks_of_logits import compiled, product_in_fp32
from pion.model.draft_block import DraftBlock
from pion.model.feedforward.dense import FeedForward, Stats, SwiGLU, dense_layer
from pion.model.feedforward.experts import AUX, Experts
from pion.model.feedforward.gates import GATE, SEEN_BY_GATE, gate_loss
from pion.model.forward_pass import (
    AS_THE_MODEL,
    EMBEDDED,
    BlockInputs,
    Given,
    Pass,
    Passed,
    SharedPart,
    StepOptions,
)
from pion.model.loss import IGNORED, cap_logits, cap_of, linear_cross_entropy, linear_log_probs
from pion.model.norm_and_projection import (
    Projection,
    RMSNorm,
    compute_dtype,
    norm_of,
    project,
)
from pion.model.parameters import draw_weights, parameter_roles, require_fitting
from pion.model.pilon.shared_banks import SharedBanks
from pion.model.skips_and_value_tables import ValueTables, Wiring
from pion.model.slot_vectors import SlotVectors

# Weights of these roles keep fp32 in a model of another dtype.
ROLES_IN_FP32 = {
    *("vector", "gate"),
    *(role for kind in PARTS.values() if not kind.apart for role in kind.roles),
}

# The parts outside of blocks, by their names in the state dict, in this order: the field of
# ModelConfig with the settings of the part, and the part.
SHARED_PARTS: dict[str, tuple[str, type[SharedPart]]] = {
    "wiring": ("wiring", Wiring),
    "values": ("values", ValueTables),
    "bands": ("primitives", SharedBanks),
    "slots": ("slots", SlotVectors),
    "draft": ("draft", DraftBlock),
}

# The optimizers of stacks of matrices of a role, if AdamW and Muon do not fit them.
OWN_RULES = {role: rule for _, kind in SHARED_PARTS.values() for role, rule in kind.rules.items()}

# What computes the feed-forward layers of a model: see `ModelConfig.feedforward`.
FEEDFORWARD: dict[str, Callable[[ModelConfig], FeedForward]] = {
    "dense": dense_layer,
    "experts": Experts,
    **{field: kind.layer for field, kind in SHARED_PARTS.values() if kind.layer is not None},
}


def _run_block(
    block: Block, x: Tensor, inputs: BlockInputs, compute: Compute | None
) -> tuple[Tensor, Stats]:
    # What gathers the weights of a sharded model around a block can't be compiled.
    result: tuple[Tensor, Stats] = block(x, inputs, compute)
    return result


def _normed(norm: RMSNorm, x: Tensor) -> Tensor:
    return norm(x).to(x.dtype)


class Losses(NamedTuple):
    """What a training step needs of one forward pass.

    `ce` is the cross-entropy in nats, summed over targets, and `aux` the auxiliary losses of all
    layers, summed over rows: both are sums, and scalars in fp32. `stats` has what the layers and
    the shared parts report, without gradient, by name.
    """

    ce: Tensor
    aux: Tensor
    stats: Stats


class LogProbs(NamedTuple):
    """What a training step of preferences needs of one forward pass.

    `log_probs` (B, T) in fp32 are those of the targets, in nats. The rest is as in `Losses`.
    """

    log_probs: Tensor
    aux: Tensor
    stats: Stats


def _compiles_loss(hidden: Tensor, options: StepOptions) -> bool:
    # On a CPU, the plain loss is as fast.
    return options.compiled and hidden.is_cuda


class Decoder(nn.Module):
    """A causal language model. The same forward pass serves training, evaluation and generation.

    Tokens are (B, T) int64. `documents` (B, T) int64 is the number of each token's document: tokens
    attend only within their own document. `branches` (B, T) int64 part a document: all of it sees
    its branch 0, and of the other branches, each sees itself. `positions` (B, T) int64 replaces
    0 … T − 1, so that each packed document starts at 0. With a `cache`, the tokens continue the
    cached tokens and are added to the cache.

    A row of several documents may be longer than the context, if its `positions` are given, and
    are all below the context.
    """

    roles: ClassVar[dict[str, Role]] = {
        "lm_head.weight": "head",
        "positions.weight": "vector",
    }

    # Whether each rank has only a part of the weights (pion/train/sharding.py).
    sharded = False
    # What computes the blocks of `hidden_at`; None: they are computed as they are written.
    step: Compute | None = None
    # What continues texts, if not pion/generation/decoding.py: (model, rows, tokens) → Decoding.
    decoding: Any = None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        # nn.Embedding(…) would draw random weights. On the meta device this makes torch import its
        # compiler, and the import takes 4 s.
        self.embed = nn.Embedding.from_pretrained(
            torch.empty(config.vocab_size, config.d_model), freeze=False
        )
        self.positions = (
            nn.Embedding.from_pretrained(torch.empty(config.seq_len, config.d_model), freeze=False)
            if config.positions == "learned"
            else None
        )
        norm = partial(norm_of, config)
        normed = config.wiring is not None and config.wiring.embed_norm
        self.embed_norm = norm() if normed else None
        self._add_parts(last=False)
        self.blocks = nn.ModuleList(
            Block(config, layer, FEEDFORWARD[config.feedforward](config))
            for layer in range(config.n_layers)
        )
        self.scales = config.scales or Scales()
        # So the loss, gates and drafts, which read the norm's result, need not know of the scale.
        self.norm = norm(scale=self.scales.logits)
        if not config.tie_embeddings:
            self.lm_head = Projection(config.d_model, config.head_rows)
        self._add_parts(last=True)
        if not self.embed.weight.is_meta:
            draw_weights(self, config.init, config.init_std, tied=config.tie_embeddings)

    def _add_parts(self, *, last: bool) -> None:
        for name, (field, kind) in SHARED_PARTS.items():
            if getattr(self.config, field) is not None and kind.last == last:
                self.add_module(name, kind(self.config))

    @classmethod
    def from_state(
        cls,
        config: ModelConfig,
        state: dict[str, Tensor],
        dtype: torch.dtype = torch.float32,
    ) -> Decoder:
        """Return a decoder with these weights, copied, without drawing random weights.

        Matrices, embeddings and the head get `dtype`, in which their products are computed. Gains,
        scalars, routers and primitives get fp32, as in training. Raises BadInput naming the first
        tensor that is missing, unexpected or of the wrong shape.
        """
        with torch.device("meta"):
            decoder = cls(config)
        require_fitting(decoder, state)
        weights, roles = {}, parameter_roles(decoder)
        for name, expected in decoder.state_dict().items():
            # Copy fp32 tensors too. A tensor mapped from a file has a different alignment, and
            # matrix products may then differ in the last bit.
            stored_dtype = torch.float32 if roles.get(name, "vector") in ROLES_IN_FP32 else dtype
            if not expected.is_floating_point():
                stored_dtype = expected.dtype
            weights[name] = torch.empty(expected.shape, dtype=stored_dtype).copy_(state[name])
        decoder.load_state_dict(weights, assign=True)
        for part in decoder.shared_parts():
            part.check_weights(decoder.blocks, weights)
        return decoder

    def shared_parts(self) -> list[SharedPart]:
        """Return the parts outside of blocks, in the order of SHARED_PARTS."""
        return [part for part in self.children() if isinstance(part, SharedPart)]

    def joined(self) -> Decoder:
        """Return this model for generation: products of the same input are one product, so faster.

        Call this after the model is on its device. The new model can't be trained or moved, and its
        results differ by rounding. Both models share the memory of their weights, which stay as
        they are. Raises ValueError for projections with additions.
        """
        model = self.twin()
        for module, part in zip(self.modules(), model.modules(), strict=True):
            if isinstance(part, Attention | SwiGLU):
                part.join_projections()
                # One by one, so that only one part is in memory twice.
                for weight, shared in zip(module.parameters(), part.parameters(), strict=True):
                    weight.data = shared.data
        for shared_part in model.shared_parts():
            shared_part.join_projections(model.blocks, model.embed.weight.dtype)
        return model

    def with_gates(self, skip_above: float) -> Decoder:
        """Return this model for generation: tokens whose gate is surer than this skip a layer.

        The layer is the feed-forward layer. The new model shares the weights, and can't be trained.
        Raises BadInput for a model without gates or one that rounds by the largest of a batch, and
        for a confidence that is not from 0 to 1.
        """
        if not self.config.gates:
            raise BadInput(
                "this model has no gates, so no layer can be skipped. Leave out --skip-above, "
                "or train gates as in jobs/demo-gates.yaml"
            )
        if not 0 <= skip_above <= 1:
            raise BadInput(f"{skip_above} is no confidence of a gate; give a number from 0 to 1")
        for part in self.shared_parts():
            part.check_skipping()
        model = self.twin()
        for block in model.layers:
            assert block.gate is not None
            block.gate.skip_above = skip_above
        return model

    def twin(self) -> Self:
        """Return a model that shares this one's weights, and can't be trained."""
        shared: dict[int, Any] = {id(self.config): self.config}
        for module in self.modules():
            tensors = (*module.buffers(recurse=False), *vars(module).values())
            shared |= {id(tensor): tensor for tensor in tensors if isinstance(tensor, Tensor)}
        shared |= {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in self.parameters()}
        return copy.deepcopy(self, shared)

    def alone(self) -> Decoder:
        """Return the model without the parts that change nothing in it; both share the weights."""
        if self.config.alone == self.config:
            return self
        model = self.twin()
        model.config = model.config.alone
        for name in APART:
            model._modules.pop(name, None)
        return model

    @property
    def layers(self) -> list[Block]:
        """The blocks, in their order."""
        return [block for block in self.blocks if isinstance(block, Block)]

    def forward(
        self,
        tokens: Tensor,
        *,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Return logits (B, T, vocab_size). Raises BadInput for more tokens than the context."""
        return self.logits(
            self.hidden(tokens, positions=positions, documents=documents, cache=cache)
        )

    def logits(self, hidden: Tensor, vocab_size: int | None = None) -> Tensor:
        """Apply the head to hidden states: (…, d_model) -> (…, vocab_size).

        `vocab_size` is the number of ids to predict, by default all that have an embedding.
        """
        head = self.head()[: vocab_size or self.config.vocab_size]
        return self._capped(project(hidden.to(compute_dtype(hidden, head)), head))

    def logits_in_fp32(self, hidden: Tensor, vocab_size: int) -> Tensor:
        """Apply the head to hidden states (N, d_model): fp32 (N, vocab_size), also of a bf16 head.

        Rounded logits would tie.
        """
        head = self.head()[:vocab_size]
        return self._capped(product_in_fp32(hidden.to(head.dtype), head.T))

    def _capped(self, logits: Tensor) -> Tensor:
        cap = cap_of(self.config)
        return logits if cap is None else cap_logits(logits, cap)

    def loss(
        self,
        tokens: Tensor,
        targets: Tensor,
        *,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        reduction: Literal["mean", "sum"] = "mean",
        options: StepOptions = AS_THE_MODEL,
    ) -> Tensor:
        """Return the cross-entropy in nats over targets (B, T), a scalar in fp32.

        A target of −100 is ignored. The mean is over the other targets, and 0 if there are none.
        Raises BadInput for more tokens than the context.
        """
        total = self.losses(
            tokens, targets, positions=positions, documents=documents, options=options
        ).ce
        return total if reduction == "sum" else total / (targets != IGNORED).sum().clamp(min=1)

    def losses(
        self,
        tokens: Tensor,
        targets: Tensor,
        *,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        options: StepOptions = AS_THE_MODEL,
    ) -> Losses:
        """Return all losses of one forward pass, and the reports of the layers.

        Padding has a document number below 0 and is left out of auxiliary losses and reports. Gates
        learn, and skip nothing.
        Raises BadInput for more tokens than the context.
        """
        given = Given(tokens, positions, documents)
        return Losses(*self._of_targets(linear_cross_entropy, given, targets, options))

    def log_probs(
        self,
        tokens: Tensor,
        targets: Tensor,
        *,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        branches: Tensor | None = None,
        options: StepOptions = AS_THE_MODEL,
    ) -> LogProbs:
        """Return the log-probabilities of targets (B, T), and what else `losses` returns.

        A target of −100 has 0. Raises BadInput for more tokens than the context.
        """
        given = Given(tokens, positions, documents, branches=branches)
        flat, aux, stats = self._of_targets(linear_log_probs, given, targets, options)
        return LogProbs(flat.view(targets.shape), aux, stats)

    def _of_targets(
        self, of_head: Callable[..., Tensor], given: Given, targets: Tensor, options: StepOptions
    ) -> tuple[Tensor, Tensor, Stats]:
        """Return what `of_head` makes of a pass and its targets, and what `_auxiliary` returns."""
        hidden, reports = self._run(given, options)
        result = of_head(
            hidden.flatten(0, 1),
            self.head(),
            targets.reshape(-1),
            cap_of(self.config),
            compiled=_compiles_loss(hidden, options),
        )
        return result, *self._auxiliary(given, targets, hidden, reports, options)

    def _auxiliary(
        self,
        given: Given,
        targets: Tensor,
        hidden: Tensor,
        reports: list[Stats],
        options: StepOptions,
    ) -> tuple[Tensor, Stats]:
        """Return the auxiliary losses of a pass, summed, and what its layers and parts report."""
        aux = [report[AUX] for report in reports if AUX in report]
        stats = {
            name: torch.stack([report[name] for report in reports if name in report])
            # In the report's order: ranks add these up one by one.
            for name in reports[0]
            if name not in (AUX, GATE, SEEN_BY_GATE)
        }
        if GATE in reports[0]:
            vocab = self.config.vocab_size
            of_gates, report = gate_loss(reports, hidden, self.logits, self.norm, vocab, given.real)
            aux.append(of_gates)
            stats |= report
        cross_entropy = partial(linear_cross_entropy, compiled=_compiles_loss(hidden, options))
        passed = Passed(given, targets, hidden, options, cross_entropy)
        # Another order would round the sum differently.
        for part in reversed(self.shared_parts()):
            of_part, report = part.losses(self, passed)
            aux += of_part
            stats |= report
        none = torch.zeros((), device=hidden.device)
        return torch.stack(aux).sum() if aux else none, stats

    def hidden(
        self,
        tokens: Tensor,
        *,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        cache: KVCache | None = None,
        row: int = 0,
        options: StepOptions = AS_THE_MODEL,
    ) -> Tensor:
        """Return the head's input: hidden states (B, T, d_model) in fp32, after the last norm and
        with the scale of logits.

        With a cache, the tokens follow those of its rows from `row` on. Raises BadInput for more
        tokens than the context, ValueError for a cache with documents and for a full row.
        """
        return self._run(Given(tokens, positions, documents, cache, row), options)[0]

    def hidden_at(self, tokens: Tensor, cache: KVCache, place: Place) -> Tensor:
        """Return what `hidden` returns, of tokens (B, T) at a place of the cache."""
        given = Given(tokens, cache=cache, row=place.first, place=place)
        return self._run(given, AS_THE_MODEL, self.step)[0]

    def _run(
        self, given: Given, options: StepOptions, compute: Compute | None = None
    ) -> tuple[Tensor, list[Stats]]:
        """Return what `hidden` returns, and the report of each layer.

        In a compiled step, hidden states have the dtype of the residual stream.
        """
        trained = given.cache is None and torch.is_grad_enabled()
        if not trained:
            options = StepOptions(options.parts)
        now = Pass.of(self, given, options, trained=trained)
        x = self._embedded(now)
        if options.compiled and not x.requires_grad:
            # Behind a frozen embedding, the first block would be compiled separately.
            learns = any(weight.requires_grad for weight in self.blocks.parameters())
            x.requires_grad_(learns)
        # A block that gets one tensor as both inputs would be compiled separately.
        now.results[EMBEDDED] = x.view_as(x) if options.compiled else x
        compute = compiled(Block.computed) if options.compiled else compute
        parts, reports = self.shared_parts(), []
        read_layers = {layer for part in parts for layer in part.reads}
        with nullcontext() if trained else kernels_of_any_length(x.device):
            for layer, block in enumerate(self.layers):
                inputs = block.inputs(layer, now)
                for part in parts:
                    inputs = part.give(inputs, block, layer, now)
                if options.recompute:
                    # No pass draws. To read the generator's state would end a capture.
                    x, report = checkpoint(
                        *(_run_block, block, x, inputs, compute),
                        use_reentrant=False,
                        preserve_rng_state=False,
                    )
                else:
                    x, report = _run_block(block, x, inputs, compute)
                if layer in read_layers:
                    now.results[layer] = x
                reports.append(report)
        x = x[:, : given.tokens.shape[1]]
        if options.compiled and x.is_cuda and options.residual != torch.float32:
            # The head would round the result anyway.
            return compiled(_normed)(self.norm, x), reports
        return self.norm(x), reports

    def num_params(self, active: bool = False) -> int:
        """Return the number of weights; with `active`, the number that one token uses.

        A token does not use the experts that its router does not choose. Parts that change nothing
        do not count: a text is the same without them.
        """
        idle = sum(block.feedforward.idle_params() for block in self.layers)
        named = self.named_parameters()
        every = sum(weight.numel() for name, weight in named if name.split(".")[0] not in APART)
        return every - idle if active else every

    def head(self) -> Tensor:
        """Return the matrix of the head, a row for each id."""
        return self.embed.weight if self.config.tie_embeddings else self.lm_head.weight

    def _embedded(self, now: Pass) -> Tensor:
        """Return what the first block gets: (B, T, d_model) in the dtype of the residual stream."""
        (tokens, positions, *_), past = now.given, now.past
        x = embedding(tokens, self.embed.weight).float()
        x = x if self.scales.embeddings == 1 else x * self.scales.embeddings
        if self.positions is not None:
            here = self.positions.weight[past : past + tokens.shape[1]]
            if positions is not None:
                here = embedding(positions, self.positions.weight)
            x = x + here.float()
        for part in self.shared_parts():
            x = part.embedded(x, now)
        x = x if self.embed_norm is None else self.embed_norm(x)
        return x.to(now.options.residual)
