"""A block of the decoder: attention, if the layer has any, and a feed-forward layer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pion.config.model_config import ModelConfig
from pion.model.attention.attention import Attention, AttentionInputs, Cached
from pion.model.attention.reach import Reach, reach_of
from pion.model.feedforward.dense import FeedForward, FeedForwardInputs, Stats
from pion.model.feedforward.gates import GATE, SEEN_BY_GATE, Gate, apply_to_others
from pion.model.forward_pass import BlockInputs, Pass
from pion.model.norm_and_projection import RMSNorm, norm_of

# Computes a block: its hidden states and its inputs.
Compute = Callable[["Block", Tensor, BlockInputs], tuple[Tensor, Stats]]


class Block(nn.Module):
    """Computes x + attention(norm(x)), then x + feedforward(norm(x)): (B, T, d_model).

    What is added to x may have a norm and a scale. In a `parallel` block, the feed-forward layer
    reads x as it is before attention, by attention's norm or by its own. The result has the dtype
    of x.
    """

    def __init__(self, config: ModelConfig, layer: int, feedforward: FeedForward) -> None:
        super().__init__()
        self.reach: Reach = reach_of(config, layer)
        attends = layer in config.attention_layers
        normed = attends and (config.wiring is None or config.wiring.attention_norm)
        norm = partial(norm_of, config)
        before, after = config.norms != "after", config.norms != "before"
        self.attention_norm = norm() if normed and before else None
        self.attention = Attention(config) if attends else None
        self.attention_out_norm = norm() if attends and after else None
        self.parallel = config.parallel != "no"
        same = config.parallel == "one norm" and normed
        self.feedforward_norm = norm() if before and not same else None
        self.feedforward = feedforward
        self.feedforward_out_norm = norm() if after else None
        self.gate = Gate(config.d_model) if config.gates else None
        self.rotated = config.heads is None or layer not in config.heads.unrotated_layers
        self.scale = 1.0 if config.scales is None else config.scales.residual

    def forward(
        self, x: Tensor, inputs: BlockInputs, compute: Compute | None = None
    ) -> tuple[Tensor, Stats]:
        """Return the new hidden states, and what the block's experts and its gate report.

        `compute` is `computed` in another form, such as compiled.
        """
        return self.computed(x, inputs) if compute is None else compute(self, x, inputs)

    def computed(
        self, x: Tensor, inputs: BlockInputs, by: Callable[[Any], Any] = lambda function: function
    ) -> tuple[Tensor, Stats]:
        """Return what `forward` returns. `by` may compile what comes before and after attention."""
        x, mixed = by(Block._before_attention)(self, x, inputs)
        mixed = self.attention and self.attention.mix(mixed, inputs.attention)
        result: tuple[Tensor, Stats] = by(Block._after_attention)(self, x, mixed, inputs)
        return result

    def _before_attention(self, x: Tensor, inputs: BlockInputs) -> tuple[Tensor, Any]:
        """Return the layer's input, and its queries, keys and values."""
        x = inputs.before.into(x)
        seen = x if self.attention_norm is None else self.attention_norm(x)
        return x, self.attention and self.attention.heads(seen, inputs.attention)

    def _after_attention(
        self, x: Tensor, mixed: Tensor | None, inputs: BlockInputs
    ) -> tuple[Tensor, Stats]:
        """Return what `forward` returns, of the layer's input and what its attention has mixed."""
        read, norm = x, self.feedforward_norm
        if self.attention is not None:
            x = self._sum(x, self.attention.o_proj(mixed), self.attention_out_norm)
        if self.parallel:
            norm = norm or self.attention_norm
        else:
            read = x
        normed = read if norm is None else norm(read)
        if self.gate is not None and self.gate.skip_above is not None and not inputs.trained:
            alone = inputs.feedforward._replace(real=None)  # nobody reads the report
            skipped = self.gate(x).sigmoid() > self.gate.skip_above
            last = self.feedforward_out_norm or nn.Identity()
            result = apply_to_others(
                lambda some: last(self.feedforward(some, alone)[0]), normed, skipped
            )
            return self._sum(x, result, None), {}
        result, stats = self.feedforward(normed, inputs.feedforward)
        if self.gate is not None and inputs.trained:
            stats = stats | {GATE: self.gate(x), SEEN_BY_GATE: x.detach()}
        return self._sum(x, result, self.feedforward_out_norm), stats

    def _sum(self, x: Tensor, added: Tensor, norm: RMSNorm | None) -> Tensor:
        """Return x with what a layer adds to it, rounded once to the dtype of x."""
        added = added if norm is None else norm(added)
        return torch.add(x, added, alpha=self.scale).to(x.dtype)

    def inputs(self, layer: int, now: Pass) -> BlockInputs:
        """Return what this block, of this number, gets of a pass; shared parts give it the rest."""
        cache = None
        if now.given.cache is not None and now.place is not None:
            cache = Cached(now.given.cache.layers[layer], now.place)
        rotation = now.rotation if self.reach == "full" else now.window_rotation
        rotation = rotation if self.rotated else None
        attention = AttentionInputs(rotation, now.masks[self.reach], cache)
        return BlockInputs(attention, FeedForwardInputs(now.real), trained=now.trained)

    def macs_per_token(self) -> int:
        """Return the multiply-accumulates with weights for one token."""
        attention = 0 if self.attention is None else self.attention.macs_per_token()
        gate = 0 if self.gate is None else self.gate.weight.numel()
        return attention + self.feedforward.macs_per_token() + gate

    def macs_per_key(self) -> int:
        """Return the multiply-accumulates for one token and one key that it sees."""
        return 0 if self.attention is None else self.attention.macs_per_key()
