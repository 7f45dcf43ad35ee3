"""A block of the decoder: attention, if the layer has any, and a feed-forward layer."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from pion.config import ModelConfig
from pion.model.attention.attention import Attention, ValueMix
from pion.model.attention.cache import BatchLayerCache, LayerCache
from pion.model.attention.masks import Mask, Reach, reach_of
from pion.model.attention.rope import Rotation
from pion.model.feedforward.dense import SwiGLU, TwoMatrices
from pion.model.feedforward.experts import Experts, Stats
from pion.model.feedforward.gates import GATE, SEEN_BY_GATE, Gate, apply_to_others
from pion.model.norm_and_projection import RMSNorm
from pion.model.pass_kind import PassKind, gradient_bytes
from pion.model.pilon.banks import Mixing
from pion.model.pilon.layers import Composed, RoutedRecipes
from pion.model.wiring import LayerInput


class Gating(NamedTuple):
    """What blocks do with their gates.

    With `skip_above`, tokens of a higher confidence skip the feed-forward layer. None: gates learn.
    """

    skip_above: float | None


class BlockInputs(NamedTuple):
    """What a block gets besides the hidden states.

    `real` (B, T) is false for padding; None: there is no padding. Without `gating`, a gate is not
    computed.
    """

    rotation: Rotation | None
    mask: Mask
    cache: LayerCache | BatchLayerCache | None = None
    real: Tensor | None = None
    wiring: LayerInput | None = None
    values: ValueMix | None = None
    mixing: Mixing | None = None
    gating: Gating | None = None


class Block(nn.Module):
    """Computes x + attention(norm(x)), then x + feedforward(norm(x)): (B, T, d_model) in fp32."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        wiring = config.wiring
        self.reach: Reach = reach_of(config, layer)
        self.attention_norm: RMSNorm | None = None
        self.attention: Attention | None = None
        if wiring is None or wiring.attention_layers is None or layer in wiring.attention_layers:
            if wiring is None or wiring.attention_norm:
                self.attention_norm = RMSNorm(config.d_model, config.norm_eps, config.norm_gain)
            self.attention = Attention(config)
        self.feedforward_norm = RMSNorm(config.d_model, config.norm_eps, config.norm_gain)
        self.feedforward = build_feedforward(config)
        self.gate: Gate | None = Gate(config.d_model) if config.gates else None

    def forward(self, x: Tensor, inputs: BlockInputs) -> tuple[Tensor, Stats]:
        """Return the new hidden states, and what the block's experts and its gate report."""
        if inputs.wiring is not None:
            x = inputs.wiring.into(x)
        if self.attention is not None:
            seen = x if self.attention_norm is None else self.attention_norm(x)
            x = x + self.attention(seen, inputs.rotation, inputs.mask, inputs.cache, inputs.values)
        normed = self.feedforward_norm(x)
        gating = inputs.gating
        if self.gate is not None and gating is not None and gating.skip_above is not None:
            alone = inputs._replace(real=None)  # nobody reads the report
            skipped = self.gate(x).sigmoid() > gating.skip_above
            result = apply_to_others(
                lambda some: self._feed_forward(some, alone)[0], normed, skipped
            )
            return x + result, {}
        result, stats = self._feed_forward(normed, inputs)
        if self.gate is not None and gating is not None:
            stats = stats | {GATE: self.gate(x), SEEN_BY_GATE: x.detach()}
        return x + result, stats

    def _feed_forward(self, x: Tensor, inputs: BlockInputs) -> tuple[Tensor, Stats]:
        """Return the result of the feed-forward layer, and what its experts report."""
        if isinstance(self.feedforward, Experts):
            of_experts: tuple[Tensor, Stats] = self.feedforward(x, inputs.real)
            return of_experts
        if isinstance(self.feedforward, RoutedRecipes):
            assert inputs.mixing is not None
            of_recipes: tuple[Tensor, Stats] = self.feedforward(x, inputs.mixing, inputs.real)
            return of_recipes
        if isinstance(self.feedforward, Composed):
            assert inputs.mixing is not None
            return self.feedforward(x, inputs.mixing), {}
        return self.feedforward(x), {}

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
        mixed = 0
        if isinstance(self.feedforward, Composed | RoutedRecipes):
            mixed = self.feedforward.copied_bytes(at)
        if at.width == 4:
            return mixed
        products = [part for part in self.modules() if isinstance(part, nn.Linear)]
        weights = sum(weight.numel() for product in products for weight in product.parameters())
        if isinstance(self.feedforward, Experts) and at.grouped:
            weights += self.feedforward.stacked_params()
        return at.width * weights + mixed

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


def build_feedforward(
    config: ModelConfig,
) -> SwiGLU | TwoMatrices | Experts | Composed | RoutedRecipes:
    """Return the feed-forward layer of a block."""
    if config.primitives is not None:
        return Composed(config) if config.experts is None else RoutedRecipes(config)
    if config.experts is not None:
        return Experts(config)
    if config.activation == "swiglu":
        return SwiGLU(config.d_model, config.d_ff)
    return TwoMatrices(config)
