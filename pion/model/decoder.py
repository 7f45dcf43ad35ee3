"""The decoder: embedding, blocks of attention and feed-forward, and the tied head."""

from __future__ import annotations

from typing import Literal

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
from pion.model.rope import Rotation, rotary_table


class Block(nn.Module):
    """x + attention(norm(x)), then x + feedforward(norm(x)); the residual stream stays fp32."""

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


class Decoder(nn.Module):
    """A causal language model. The same forward serves training, evaluation and generation.

    Tokens are (B, T) int64. `documents` (B, T) int64 numbers the document of each token: tokens
    attend only within their own. `positions` (B, T) int64 replaces 0 … T − 1, so that packed
    documents each start at 0. With a `cache`, tokens continue those it holds, however many there
    are of either, and the cache holds them too afterwards.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute = False
        """Keep only each block's input for the backward pass and recompute the rest there."""
        # nn.Embedding(…) would draw weights of its own, which on the meta device makes torch import
        # its compiler (4 s).
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
        """A decoder with these weights, copied to fp32, without first drawing random ones.

        Raises BadInput naming the first tensor that is missing, unknown or of the wrong shape.
        """
        with torch.device("meta"):
            decoder = cls(config)
        weights = {}
        for name, expected in decoder.state_dict().items():
            if name not in state:
                raise BadInput(f"the weights lack {name}, {tuple(expected.shape)}")
            if state[name].shape != expected.shape:
                raise BadInput(
                    f"{name} is {tuple(state[name].shape)}; "
                    f"the model's settings make it {tuple(expected.shape)}"
                )
            # A copy even of fp32: tensors mapped from a file lie at other alignments than our own,
            # and matrix products may then differ in the last bit.
            weights[name] = torch.empty(expected.shape).copy_(state[name])
        unknown = next((name for name in state if name not in weights), None)
        if unknown is not None:
            raise BadInput(f"the weights hold {unknown}, which this model has not")
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
        """Logits (B, T, vocab_size). Raises BadInput beyond the context length."""
        hidden = self.hidden(tokens, positions=positions, documents=documents, cache=cache)
        return self.logits(hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        """What the head makes of hidden states: (…, d_model) -> (…, vocab_size)."""
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
        """Cross-entropy over targets (B, T), −100 where there is none: a scalar in fp32.

        The mean is over the targets there are (0 if there are none), not over B · T.
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
        """What the head reads: (B, T, d_model), after the final norm, fp32."""
        config = self.config
        length = tokens.shape[1]
        past = 0 if cache is None else cache.length
        if past + length > config.seq_len:
            raise BadInput(
                f"{past + length} tokens are more than the model's context of {config.seq_len}"
            )
        if cache is not None and documents is not None:
            raise ValueError("a cache holds one document per row: it can't be used with documents")
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
        """Weights in all, or with `active` those one token meets; in a dense model the same."""
        return sum(parameter.numel() for parameter in self.parameters())

    def _head(self) -> Tensor:
        return self.embed.weight if self.config.tie_embeddings else self.lm_head.weight

    def _rotation(
        self, past: int, length: int, positions: Tensor | None, device: torch.device
    ) -> Rotation:
        config = self.config
        cos, sin = rotary_table(config.seq_len, config.head_dim, config.rope_theta, device)
        if positions is None:
            here = slice(past, past + length)
            return cos[None, here, None], sin[None, here, None]
        return cos[positions][:, :, None], sin[positions][:, :, None]
