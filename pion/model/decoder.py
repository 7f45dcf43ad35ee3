"""The decoder: embedding, blocks, and the head, with what connects them."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding
from torch.utils.checkpoint import checkpoint

from pion.config import ModelConfig
from pion.errors import BadInput
from pion.model.attention.attention import Attention
from pion.model.attention.cache import BatchCache, KVCache
from pion.model.attention.masks import (
    Kernel,
    Masks,
    attends_by_document,
    build_batch_masks,
    build_masks,
    flexible,
)
from pion.model.attention.rope import (
    LARGEST_TABLE,
    Rotation,
    frequencies_of,
    rotary_table,
    rotation_at,
)
from pion.model.block import Block, BlockInputs, Gating
from pion.model.feedforward.dense import SwiGLU
from pion.model.feedforward.experts import AUX, Experts, Stats, stack_reports
from pion.model.feedforward.gates import GATE, SEEN_BY_GATE, gate_loss
from pion.model.loss import IGNORED, cap_logits, linear_cross_entropy, product_in_fp32
from pion.model.norm_and_projection import Projection, RMSNorm, compute_dtype, project
from pion.model.parameters import draw_weights, parameter_roles
from pion.model.pilon.banks import Bands
from pion.model.pilon.layers import Composed, RoutedRecipes, diversity_loss, recipe_report
from pion.model.varying import OF_THE_MODEL, Varying
from pion.model.wiring import ValueTables, Wiring
from pion.parts import Role

# Weights of these roles keep fp32 in a model of another dtype.
ROLES_IN_FP32 = ("vector", "router", "primitive", "recipe", "gate")

BlockRun = Callable[[Block, Tensor, BlockInputs], tuple[Tensor, Stats]]


def _run_block(block: Block, x: Tensor, inputs: BlockInputs) -> tuple[Tensor, Stats]:
    result: tuple[Tensor, Stats] = block(x, inputs)
    return result


@lru_cache(maxsize=1)
def _compiled_block() -> BlockRun:
    # Each shape has kernels for itself. With kernels for all shapes, the kernels of a resumed run
    # could differ from those of the unbroken run, which met the shapes in another order.
    return torch.compile(_run_block, dynamic=False, fullgraph=True)


class Losses(NamedTuple):
    """What a training step needs of one forward pass.

    `ce` is the cross-entropy in nats, summed over targets, and `aux` the auxiliary losses of all
    layers, summed over rows; both are scalars in fp32. `stats` has what routers, recipes and
    gates report, without gradient, by name: see `routing_report`, `recipe_report` and `gate_loss`.
    """

    ce: Tensor
    aux: Tensor
    stats: Stats


class Decoder(nn.Module):
    """A causal language model. The same forward pass serves training, evaluation and generation.

    Tokens are (B, T) int64. `documents` (B, T) int64 is the number of each token's document: tokens
    attend only within their own document. `positions` (B, T) int64 replaces 0 … T − 1, so that
    each packed document starts at 0. With a `cache`, the tokens continue the cached tokens and are
    added to the cache. A BatchCache takes one token of each of its texts, (B, 1).
    """

    roles: ClassVar[dict[str, Role]] = {
        "lm_head.weight": "head",
        "positions.weight": "vector",
    }

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        # Whether to keep only each block's input for the backward pass and recompute the rest.
        self.recompute = False
        # Whether torch.compile computes training: all blocks of one structure share a compilation.
        # Evaluation and generation meet many shapes, so they are never compiled.
        self.compiled = False
        self.skip_above: float | None = None  # see `use_gates`
        # nn.Embedding(…) would draw random weights. On the meta device this makes torch import its
        # compiler, and the import takes 4 s.
        self.embed = nn.Embedding.from_pretrained(
            torch.empty(config.vocab_size, config.d_model), freeze=False
        )
        self.positions: nn.Embedding | None = None
        if config.positions == "learned":
            self.positions = nn.Embedding.from_pretrained(
                torch.empty(config.seq_len, config.d_model), freeze=False
            )
        self.embed_norm: RMSNorm | None = None
        if config.wiring is not None and config.wiring.embed_norm:
            self.embed_norm = RMSNorm(config.d_model, config.norm_eps, config.norm_gain)
        self.wiring = None if config.wiring is None else Wiring(config)
        self.values = None if config.values is None else ValueTables(config)
        self.bands: Bands | None = None
        if config.primitives is not None:
            self.bands = Bands(config, config.primitives)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = RMSNorm(config.d_model, config.norm_eps, config.norm_gain)
        if not config.tie_embeddings:
            self.lm_head = Projection(config.d_model, config.head_rows)
        if not self.embed.weight.is_meta:
            draw_weights(self, config.init, config.init_std, tied=config.tie_embeddings)

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
        weights, roles = {}, parameter_roles(decoder)
        for name, expected in decoder.state_dict().items():
            if name not in state:
                raise BadInput(f"the weights have no {name} of shape {tuple(expected.shape)}")
            if state[name].shape != expected.shape:
                raise BadInput(
                    f"{name} has shape {tuple(state[name].shape)}; "
                    f"the model's settings need {tuple(expected.shape)}"
                )
            # Copy fp32 tensors too. A tensor mapped from a file has a different alignment, and
            # matrix products may then differ in the last bit.
            kept = dtype
            if not expected.is_floating_point():
                kept = expected.dtype
            elif roles.get(name, "vector") in ROLES_IN_FP32:
                kept = torch.float32
            weights[name] = torch.empty(expected.shape, dtype=kept).copy_(state[name])
        unknown = next((name for name in state if name not in weights), None)
        if unknown is not None:
            raise BadInput(
                f"unexpected tensor {unknown}: this model has no parameter with that name"
            )
        decoder.load_state_dict(weights, assign=True)
        if decoder.bands is not None:
            decoder.bands.check_packed(decoder.recipes())
        return decoder

    def join_projections(self) -> None:
        """Compute projections of the same input as one product: few large products are faster.

        This is for generation, after the model is on its device. The model can't be trained or
        moved afterwards, and its results differ by rounding.
        """
        for part in self.modules():
            if isinstance(part, Attention | SwiGLU):
                part.join_projections()
        if self.bands is None:
            return
        for layer, block in enumerate(self.blocks):
            if isinstance(block.feedforward, Composed | RoutedRecipes):
                mixing = self.bands.mixing(layer)
                block.feedforward.join_projections(mixing, self.embed.weight.dtype)

    def use_gates(self, skip_above: float) -> None:
        """Skip the feed-forward layer of tokens whose gate is surer than this, without gradients.

        Raises BadInput for a model without gates or one that rounds by the largest of a batch, and
        for a confidence that is not from 0 to 1.
        """
        if not self.config.gates:
            raise BadInput(
                "this model has no gates, so no layer can be skipped. Leave out --skip-above, or "
                "train gates as in jobs/demo-gates.yaml"
            )
        primitives = self.config.primitives
        if primitives is not None and primitives.levels and primitives.activation_scale == "batch":
            raise BadInput(
                "this imported model rounds activations by the largest of a batch, so skipped "
                "tokens would change others. Leave out --skip-above"
            )
        if not 0 <= skip_above <= 1:
            raise BadInput(f"{skip_above} is no confidence of a gate; give a number from 0 to 1")
        self.skip_above = skip_above

    def forward(
        self,
        tokens: Tensor,
        *,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Return logits (B, T, vocab_size). Raises BadInput for more tokens than the context."""
        hidden = self.hidden(tokens, positions=positions, documents=documents, cache=cache)
        return self.logits(hidden)

    def logits(self, hidden: Tensor, vocab_size: int | None = None) -> Tensor:
        """Apply the head to hidden states: (…, d_model) -> (…, vocab_size).

        `vocab_size` is the number of ids to predict, by default all that have an embedding.
        """
        head = self._head()[: vocab_size or self.config.vocab_size]
        logits = project(hidden.to(compute_dtype(hidden, head)), head)
        cap = self.config.logit_cap
        return logits if cap is None else cap_logits(logits, cap)

    def logits_in_fp32(self, hidden: Tensor, vocab_size: int) -> Tensor:
        """Apply the head to hidden states (N, d_model): fp32 (N, vocab_size), also of a bf16 head.

        Rounded logits would tie.
        """
        head = self._head()[:vocab_size]
        logits = product_in_fp32(hidden.to(head.dtype), head.T)
        cap = self.config.logit_cap
        return logits if cap is None else cap_logits(logits, cap)

    def loss(
        self,
        tokens: Tensor,
        targets: Tensor,
        *,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        reduction: Literal["mean", "sum"] = "mean",
    ) -> Tensor:
        """Return the cross-entropy in nats over targets (B, T), a scalar in fp32.

        A target of −100 is ignored. The mean is over the other targets, and 0 if there are none.
        Raises BadInput for more tokens than the context.
        """
        total = self.losses(tokens, targets, positions=positions, documents=documents).ce
        if reduction == "sum":
            return total
        return total / (targets != IGNORED).sum().clamp(min=1)

    def losses(
        self,
        tokens: Tensor,
        targets: Tensor,
        *,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        varying: Varying = OF_THE_MODEL,
    ) -> Losses:
        """Return all losses of one forward pass, and the reports of the layers.

        Padding has a document number below 0 and is left out of auxiliary losses and reports.
        `varying` has what this step trains with other sizes than the model's. Gates learn, and
        skip nothing.
        Raises BadInput for more tokens than the context.
        """
        hidden, reports = self._run(tokens, positions, documents, None, varying)
        states, flat = hidden.flatten(0, 1), targets.reshape(-1)
        # On a CPU, the plain loss is as fast.
        compiled = self.compiled and states.is_cuda
        ce = linear_cross_entropy(
            states, self._head(), flat, self.config.logit_cap, compiled=compiled
        )
        aux = [report[AUX] for report in reports if AUX in report]
        stats = stack_reports(reports, without=(AUX, GATE, SEEN_BY_GATE))
        if GATE in reports[0]:
            real = None if documents is None else documents >= 0
            vocab = self.config.vocab_size
            of_gates, report = gate_loss(reports, hidden, self.logits, self.norm, vocab, real)
            aux.append(of_gates)
            stats |= report
        if self.bands is not None:
            recipes, rows, settings = self.recipes(), self.bands.rows(), self.bands.settings
            if settings.diversity_weight:
                # Auxiliary losses are summed over rows.
                weight = settings.diversity_weight * len(tokens)
                aux.append(weight * diversity_loss(recipes, rows))
            stats |= recipe_report(recipes, rows, varying.top_k or settings.top_k)
        return Losses(ce, torch.stack(aux).sum() if aux else torch.zeros_like(ce), stats)

    def hidden(
        self,
        tokens: Tensor,
        *,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        cache: KVCache | BatchCache | None = None,
    ) -> Tensor:
        """Return the head's input: hidden states (B, T, d_model) in fp32, after the last norm.

        Raises BadInput for more tokens than the context, ValueError for a cache with documents.
        """
        return self._run(tokens, positions, documents, cache)[0]

    def _run(
        self,
        tokens: Tensor,
        positions: Tensor | None,
        documents: Tensor | None,
        cache: KVCache | BatchCache | None,
        varying: Varying = OF_THE_MODEL,
    ) -> tuple[Tensor, list[Stats]]:
        """Return what `hidden` returns, and the report of each layer."""
        trained = cache is None and torch.is_grad_enabled()
        compiled = self.compiled and trained
        past, total = self._span(tokens, documents, cache)
        if isinstance(cache, BatchCache):
            positions = cache.next_positions(tokens.device)
            masks = build_batch_masks(self.config, positions, total)
        else:
            masks = self._masks(tokens, total, documents, varying.window, cached=cache is not None)
        rotation = self._rotation(past, tokens.shape[1], positions, tokens.device)
        real = None if documents is None else documents >= 0
        x = self._embedded(tokens, past, positions)
        results: dict[int, Tensor] = {}
        reports = []
        gating = self._gating(trained)
        kept = set() if self.wiring is None else set(self.wiring.source.values())
        run = _compiled_block() if compiled else _run_block
        if compiled and not x.requires_grad:
            # Behind a frozen embedding, the first block would be compiled separately.
            x.requires_grad_()
        # A block that gets one tensor as both inputs would be compiled separately.
        x0 = x.view_as(x) if compiled else x
        for layer, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            inputs = BlockInputs(
                rotation,
                masks[block.reach],
                None if cache is None else cache.layers[layer],
                real,
                None if self.wiring is None else self.wiring.input_of(layer, x0, results),
                None if self.values is None else self.values.of(layer, tokens),
                None if self.bands is None else self.bands.mixing(layer, varying),
                gating,
            )
            if self.recompute and trained:
                x, report = checkpoint(run, block, x, inputs, use_reentrant=False)
            else:
                x, report = run(block, x, inputs)
            if layer in kept:
                results[layer] = x
            reports.append(report)
        return self.norm(x), reports

    def _gating(self, trained: bool) -> Gating | None:
        """Return what gates are for: to learn, or to skip layers. None: nothing."""
        if not self.config.gates or not (trained or self.skip_above is not None):
            return None
        return Gating(None if trained else self.skip_above)

    def _masks(
        self,
        tokens: Tensor,
        total: int,
        documents: Tensor | None,
        window: int | None,
        *,
        cached: bool,
    ) -> Masks:
        """Return what each reach of attention sees, if `tokens` are the last of `total`."""
        config, device = self.config, tokens.device.type
        kernel: Kernel = "dense"
        compiled = self.compiled and torch.is_grad_enabled()
        if attends_by_document(config, device, total, compiled=compiled):
            kernel = "documents"
        # Flex attention is compiled for each length, and prompts have any length.
        if not cached and flexible(config, device):
            kernel = "flex"
        return build_masks(config, tokens, total, documents, window, kernel=kernel)

    def _span(
        self, tokens: Tensor, documents: Tensor | None, cache: KVCache | BatchCache | None
    ) -> tuple[int, int]:
        """Return the number of cached tokens, and of all; of several texts, those of the longest.

        Raises BadInput or ValueError.
        """
        past = 0 if cache is None else cache.length
        total = past + tokens.shape[1]
        if total > self.config.seq_len:
            raise BadInput(
                f"{total} tokens are more than the model's context of {self.config.seq_len}"
            )
        if cache is not None and documents is not None:
            raise ValueError("a cache has one document per row, so documents can't be given")
        return past, total

    def num_params(self, active: bool = False) -> int:
        """Return the number of weights; with `active`, the number that one token uses.

        A token does not use the experts that its router does not choose.
        """
        idle = sum(part.idle_params() for part in self.modules() if isinstance(part, Experts))
        every = sum(parameter.numel() for parameter in self.parameters())
        return every - idle if active else every

    def recipes(self) -> Tensor:
        """Return the logits of all recipes in fp32: (2, rows, n), up and down.

        A layer has a row, or with experts a row for each, in the order of the layers.
        """
        parts = [part for part in self.blocks.modules() if isinstance(part, Composed)]
        up = torch.stack([part.up_recipe for part in parts])
        down = torch.stack([part.down_recipe for part in parts])
        return torch.stack((up, down)).float()

    def _head(self) -> Tensor:
        return self.embed.weight if self.config.tie_embeddings else self.lm_head.weight

    def _embedded(self, tokens: Tensor, past: int, positions: Tensor | None) -> Tensor:
        """Return what the first block gets: (B, T, d_model) in fp32."""
        x = embedding(tokens, self.embed.weight).float()
        if self.positions is not None:
            here = self.positions.weight[past : past + tokens.shape[1]]
            if positions is not None:
                here = embedding(positions, self.positions.weight)
            x = x + here.float()
        return x if self.embed_norm is None else self.embed_norm(x)

    def _rotation(
        self, past: int, length: int, positions: Tensor | None, device: torch.device
    ) -> Rotation | None:
        """Return the rotation of each token, by `positions` or else by the place in the row."""
        config = self.config
        if config.positions == "learned":
            return None
        frequencies = frequencies_of(config)
        if config.seq_len * config.head_dim > LARGEST_TABLE:
            if positions is None:
                positions = torch.arange(past, past + length, device=device)[None]
            return rotation_at(positions, frequencies)
        cos, sin = rotary_table(config.seq_len, frequencies, device)
        if positions is None:
            here = slice(past, past + length)
            return cos[None, here, None], sin[None, here, None]
        return cos[positions][:, :, None], sin[positions][:, :, None]
