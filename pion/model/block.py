"""A block of the decoder: attention, if the layer has any, and a feed-forward layer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from pion.config.model_config import ModelConfig
from pion.model.attention.attention import Attention, AttentionInputs, Cached
from pion.model.attention.reach import Reach, reach_of
from pion.model.feedforward.dense import (
    FeedForward,
    FeedForwardInputs,
    Stats,
    copied_by_products,
    dense_layer,
)
from pion.model.feedforward.experts import Experts
from pion.model.feedforward.gates import GATE, SEEN_BY_GATE, Gate, apply_to_others
from pion.model.forward_pass import BlockInputs, Pass
from pion.model.norm_and_projection import RMSNorm
from pion.model.pass_kind import PassKind, gradient_bytes
from pion.model.pilon.layers import layer_of_primitives

# What computes the feed-forward layers of a model: see FEEDFORWARD in pion/config/parts.py.
FEEDFORWARD: dict[str, Callable[[ModelConfig], FeedForward]] = {
    "dense": dense_layer,
    "experts": Experts,
    "primitives": layer_of_primitives,
}


class Block(nn.Module):
    """Computes x + attention(norm(x)), then x + feedforward(norm(x)): (B, T, d_model).

    The result has the dtype of x.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.reach: Reach = reach_of(config, layer)
        attends = layer in config.attention_layers
        normed = attends and (config.wiring is None or config.wiring.attention_norm)
        norm = partial(RMSNorm, config.d_model, config.norm_eps, config.norm_gain)
        self.attention_norm = norm() if normed else None
        self.attention = Attention(config) if attends else None
        self.feedforward_norm = norm()
        self.feedforward = FEEDFORWARD[config.feedforward](config)
        self.gate = Gate(config.d_model) if config.gates else None

    def forward(self, x: Tensor, inputs: BlockInputs) -> tuple[Tensor, Stats]:
        """Return the new hidden states, and what the block's experts and its gate report."""
        x = inputs.before.into(x)
        if self.attention is not None:
            seen = x if self.attention_norm is None else self.attention_norm(x)
            x = (x + self.attention(seen, inputs.attention)).to(x.dtype)
        normed = self.feedforward_norm(x)
        if self.gate is not None and self.gate.skip_above is not None and not inputs.trained:
            alone = inputs.feedforward._replace(real=None)  # nobody reads the report
            skipped = self.gate(x).sigmoid() > self.gate.skip_above
            result = apply_to_others(lambda some: self.feedforward(some, alone)[0], normed, skipped)
            return (x + result).to(x.dtype), {}
        result, stats = self.feedforward(normed, inputs.feedforward)
        if self.gate is not None and inputs.trained:
            stats = stats | {GATE: self.gate(x), SEEN_BY_GATE: x.detach()}
        return (x + result).to(x.dtype), stats

    def inputs(self, layer: int, now: Pass) -> BlockInputs:
        """Return what this block, of this number, gets of a pass; shared parts give it the rest."""
        cache = None
        if now.given.cache is not None and now.place is not None:
            cache = Cached(now.given.cache.layers[layer], now.place)
        attention = AttentionInputs(now.rotation, now.masks[self.reach], cache)
        return BlockInputs(attention, FeedForwardInputs(now.real), trained=now.trained)

    def macs_per_token(self) -> int:
        """Return the multiply-accumulates with weights for one token."""
        attention = 0 if self.attention is None else self.attention.macs_per_token()
        gate = 0 if self.gate is None else self.gate.weight.numel()
        return attention + self.feedforward.macs_per_token() + gate

    def macs_per_key(self) -> int:
        """Return the multiply-accumulates for one token and one key that it sees."""
        return 0 if self.attention is None else self.attention.macs_per_key()

    def kept_bytes_per_token(self, at: PassKind) -> int:
        """Return the bytes kept for the backward pass: by its parts, and the inputs of products.

        Compiled code adds the result of attention to the block's input again, unless the input
        itself is a sum.
        """
        given = at.width * self.feedforward_norm.width
        again = self.attention_norm is not None
        kept = self.feedforward_norm.kept_bytes(at, of_product=again) + given
        kept += self.feedforward.kept_bytes_per_token(at)
        if self.attention is not None:
            kept += given + self.attention.kept_bytes_per_token(at)
        if self.attention_norm is not None:
            kept += self.attention_norm.kept_bytes(at)
        if self.gate is not None:  # its logit, its target and their loss
            kept += 3 * 4
            # Compiled code keeps the norm's input as a product. The gate's input is in fp32.
            kept += 4 * self.feedforward_norm.width if at.compiled else 0
        return kept

    def copied_bytes(self, at: PassKind) -> int:
        """Return the bytes of the weights' copies that products read: in bf16, or mixed."""
        attention = 0 if self.attention is None else copied_by_products(self.attention, at)
        return attention + self.feedforward.copied_bytes(at)

    def backward_bytes(self, at: PassKind, tokens: int) -> int:
        """Return the most bytes that the backward pass adds to what is kept.

        The gradient of the result is there all the time. What the feed-forward layer keeps is free
        before the backward pass of attention begins. Compiled code returns the gradients of all
        weights at its end.
        """
        most = self.feedforward.backward_bytes(at, tokens)
        if self.attention is not None:
            freed = tokens * self.feedforward.kept_bytes_per_token(at)
            most = max(most, self.attention.backward_bytes(at, tokens) - freed)
        if at.compiled:
            most += gradient_bytes(at, sum(weight.numel() for weight in self.parameters()))
        return most + 4 * self.feedforward_norm.width * tokens
