"""The decoder: embedding, blocks of attention and feed-forward, and the tied head."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear
from torch.utils.checkpoint import checkpoint

from pion.config import ModelConfig
from pion.errors import BadInput
from pion.model.attention import Attention, Mask, build_mask
from pion.model.cache import KVCache, LayerCache
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
        self.feedforward = SwiGLU(config)

    def forward(
        self, x: Tensor, rotation: Rotation, mask: Mask, cache: LayerCache | None
    ) -> Tensor:
        x = x + self.attention(self.attention_norm(x), rotation, mask, cache)
        return x + self.feedforward(self.feedforward_norm(x))

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
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding) and not module.weight.is_meta:
                nn.init.normal_(module.weight, std=config.init_std)

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
        hidden = self.hidden(tokens, positions=positions, documents=documents)
        flat = targets.reshape(-1)
        total = linear_cross_entropy(hidden.reshape(len(flat), -1), self._head(), flat)
        if reduction == "sum":
            return total
        return total / (flat != IGNORED).sum().clamp(min=1)

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
        x = embedding(tokens, self.embed.weight).float()
        for layer, block in enumerate(self.blocks):
            if cache is not None:
                x = block(x, rotation, mask, cache.layers[layer])
            elif self.recompute and torch.is_grad_enabled():
                x = checkpoint(block, x, rotation, mask, None, use_reentrant=False)
            else:
                x = block(x, rotation, mask, None)
        return self.norm(x)

    def num_params(self, active: bool = False) -> int:
        """Return the number of weights; with `active`, the number that one token uses.

        Every model so far is dense, so both numbers are the same.
        """
        return sum(parameter.numel() for parameter in self.parameters())

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
