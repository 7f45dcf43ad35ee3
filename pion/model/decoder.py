"""The decoder: embedding, blocks of attention and feed-forward, and the tied head."""

from __future__ import annotations

from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear
from torch.utils.checkpoint import checkpoint

from pion.config import ModelConfig
from pion.errors import BadInput
from pion.model.attention import Attention, Mask, build_mask
from pion.model.cache import KVCache, LayerCache
from pion.model.experts import AUX, Experts, Stats
from pion.model.feedforward import SwiGLU
from pion.model.loss import IGNORED, linear_cross_entropy
from pion.model.norm import RMSNorm, compute_dtype
from pion.model.roles import Role
from pion.model.rope import Rotation, rotary_table


class Block(nn.Module):
    """Computes x + attention(norm(x)), then x + feedforward(norm(x)): (B, T, d_model) in fp32."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.d_model, config.norm_eps)
        self.attention = Attention(config)
        self.feedforward_norm = RMSNorm(config.d_model, config.norm_eps)
        self.feedforward = build_feedforward(config)

    def forward(
        self,
        x: Tensor,
        rotation: Rotation,
        mask: Mask,
        cache: LayerCache | None,
        real: Tensor | None,
    ) -> tuple[Tensor, Stats]:
        """Return the new hidden states, and what the block's experts report, if it has any.

        `real` (B, T) is false for padding; None: there is no padding.
        """
        x = x + self.attention(self.attention_norm(x), rotation, mask, cache)
        normed = self.feedforward_norm(x)
        if isinstance(self.feedforward, Experts):
            mixed, stats = self.feedforward(normed, real)
            return x + mixed, stats
        return x + self.feedforward(normed), {}

    def macs_per_token(self) -> int:
        """Return the multiply-accumulates with weights for one token."""
        return self.attention.macs_per_token() + self.feedforward.macs_per_token()

    def macs_per_key(self) -> int:
        """Return the multiply-accumulates for one token and one key that it sees."""
        return self.attention.macs_per_key()

    def kept_bytes_per_token(self, width: int) -> int:
        """Return the bytes kept for the backward pass.

        In addition to those of its parts, these are two residual streams, each also normalized (all
        in fp32), and each cast for its products.
        """
        (d_model,) = self.attention_norm.weight.shape
        streams = 4 * 4 * d_model + 2 * width * d_model
        return (
            streams
            + self.attention.kept_bytes_per_token(width)
            + self.feedforward.kept_bytes_per_token(width)
        )


def build_feedforward(config: ModelConfig) -> SwiGLU | Experts:
    """Return the feed-forward layer of a block."""
    if config.experts is not None:
        return Experts(config)
    return SwiGLU(config.d_model, config.d_ff)


class Losses(NamedTuple):
    """What a training step needs of one forward pass.

    `ce` is the cross-entropy in nats, summed over targets, and `aux` the auxiliary losses of all
    layers, summed over rows; both are scalars in fp32. `stats` has the reports of the layers,
    without gradient: by name, (n_layers, …).
    """

    ce: Tensor
    aux: Tensor
    stats: Stats


class Decoder(nn.Module):
    """A causal language model. The same forward pass serves training, evaluation and generation.

    Tokens are (B, T) int64. `documents` (B, T) int64 is the number of each token's document: tokens
    attend only within their own document. `positions` (B, T) int64 replaces 0 … T − 1, so that
    each packed document starts at 0. With a `cache`, the tokens continue the cached tokens and are
    added to the cache.
    """

    roles: ClassVar[dict[str, Role]] = {"lm_head.weight": "head"}

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        # Whether to keep only each block's input for the backward pass and recompute the rest.
        self.recompute = False
        # nn.Embedding(…) would draw random weights. On the meta device this makes torch import its
        # compiler, and the import takes 4 s.
        self.embed = nn.Embedding.from_pretrained(
            torch.empty(config.vocab_size, config.d_model), freeze=False
        )
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        if not config.tie_embeddings:
            self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if not self.embed.weight.is_meta:
            for module in self.modules():
                if isinstance(module, nn.Linear | nn.Embedding):
                    nn.init.normal_(module.weight, std=config.init_std)
                elif isinstance(module, Experts):
                    module.reset(config.init_std)

    @classmethod
    def from_state(cls, config: ModelConfig, state: dict[str, Tensor]) -> Decoder:
        """Return a decoder with these weights, copied to fp32, without drawing random weights.

        Raises BadInput naming the first tensor that is missing, unexpected or of the wrong shape.
        """
        with torch.device("meta"):
            decoder = cls(config)
        weights = {}
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
            weights[name] = torch.empty(expected.shape).copy_(state[name])
        unknown = next((name for name in state if name not in weights), None)
        if unknown is not None:
            raise BadInput(
                f"unexpected tensor {unknown}: this model has no parameter with that name"
            )
        decoder.load_state_dict(weights, assign=True)
        return decoder

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

    def logits(self, hidden: Tensor) -> Tensor:
        """Apply the head to hidden states: (…, d_model) -> (…, vocab_size)."""
        head = self._head()
        return linear(hidden.to(compute_dtype(hidden, head)), head)

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
    ) -> Losses:
        """Return all losses of one forward pass, and the reports of the layers.

        Padding has a document number below 0 and is left out of auxiliary losses and reports.
        Raises BadInput for more tokens than the context.
        """
        hidden, reports = self._run(tokens, positions, documents, None)
        flat = targets.reshape(-1)
        ce = linear_cross_entropy(hidden.reshape(len(flat), -1), self._head(), flat)
        aux = [report[AUX] for report in reports if AUX in report]
        stats = {
            name: torch.stack([report[name] for report in reports if name in report])
            for name in (reports[0].keys() - {AUX})
        }
        return Losses(ce, torch.stack(aux).sum() if aux else torch.zeros_like(ce), stats)

    def hidden(
        self,
        tokens: Tensor,
        *,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        cache: KVCache | None = None,
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
        cache: KVCache | None,
    ) -> tuple[Tensor, list[Stats]]:
        """Return what `hidden` returns, and the report of each layer."""
        config = self.config
        length = tokens.shape[1]
        past = 0 if cache is None else cache.length
        if past + length > config.seq_len:
            raise BadInput(
                f"{past + length} tokens are more than the model's context of {config.seq_len}"
            )
        if cache is not None and documents is not None:
            raise ValueError("a cache has one document per row, so documents can't be given")
        rotation = self._rotation(past, length, positions, tokens.device)
        mask = build_mask(config, length, past + length, documents, tokens.device)
        real = None if documents is None else documents >= 0
        x, reports = embedding(tokens, self.embed.weight).float(), []
        for layer, block in enumerate(self.blocks):
            layer_cache = None if cache is None else cache.layers[layer]
            given = (x, rotation, mask, layer_cache, real)
            if self.recompute and cache is None and torch.is_grad_enabled():
                x, report = checkpoint(block, *given, use_reentrant=False)
            else:
                x, report = block(*given)
            reports.append(report)
        return self.norm(x), reports

    def num_params(self, active: bool = False) -> int:
        """Return the number of weights; with `active`, the number that one token uses.

        A token does not use the experts that its router does not choose.
        """
        idle = sum(part.idle_params() for part in self.modules() if isinstance(part, Experts))
        every = sum(parameter.numel() for parameter in self.parameters())
        return every - idle if active else every

    def _head(self) -> Tensor:
        return self.embed.weight if self.config.tie_embeddings else self.lm_head.weight

    def _rotation(
        self, past: int, length: int, positions: Tensor | None, device: torch.device
    ) -> Rotation:
        """Return the rotation of each token, by `positions` or else by the place in the row."""
        config = self.config
        cos, sin = rotary_table(config.seq_len, config.head_dim, config.rope_theta, device)
        if positions is None:
            here = slice(past, past + length)
            return cos[None, here, None], sin[None, here, None]
        return cos[positions][:, :, None], sin[positions][:, :, None]
