"""How layers are connected: skips over layers, the embeddings in each layer, and value tables.

From Daisy-Wee, which has them from modded-nanogpt. All weights of these sums are learned scalars.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding

from pion.config import ModelConfig
from pion.model.attention.attention import ValueMix
from pion.model.norm_and_projection import RMSNorm
from pion.model.pass_kind import PassKind
from pion.parts import Role


class LayerInput(NamedTuple):
    """What a layer reads besides the result of the layer before.

    The layer's input is kept · (x + gate · skipped) + start · x0. Scalars and states that a layer
    does not have are None.
    """

    gate: Tensor | None = None
    skipped: Tensor | None = None
    kept: Tensor | None = None
    start: Tensor | None = None
    x0: Tensor | None = None

    def into(self, x: Tensor) -> Tensor:
        """Return the layer's input, for the result x of the layer before: (B, T, d_model)."""
        if self.gate is not None and self.skipped is not None:
            x = x + self.gate * self.skipped
        if self.kept is not None and self.start is not None and self.x0 is not None:
            x = self.kept * x + self.start * self.x0
        return x


class Wiring(nn.Module):
    """The learned scalars of skips and of the mix of embeddings into each layer.

    A gate belongs to the layer that a skip reads. Layers that nothing reads have a gate too, as in
    Daisy-Wee.
    """

    roles: ClassVar[dict[str, Role]] = {"mix": "vector"}

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.wiring is not None
        self.d_model = config.d_model
        self.source = dict(config.wiring.skips)
        attention = config.wiring.attention_layers
        self.attention_layers = range(config.n_layers) if attention is None else attention
        self.gates = nn.Parameter(torch.ones(config.n_layers)) if self.source else None
        self.mix: nn.Parameter | None = None
        if config.wiring.input_mix:
            self.mix = nn.Parameter(torch.tensor([1.0, 0.0]).repeat(config.n_layers, 1))

    def kept_bytes_per_token(self, layer: int, at: PassKind) -> int:
        """Return the bytes of a token that the sums of a layer's input keep, in fp32.

        The mix keeps the layer's input. A skip keeps what it reads, unless the mix of the next
        layer keeps the same states. Compiled code computes the sums again: it keeps the result of
        the layer before, which is also what a skip reads. In a layer without attention it has this
        result in place of the input of the norm.
        """
        if at.compiled and self.mix is not None:
            return 4 * self.d_model if layer in self.attention_layers else 0
        states = 0 if self.mix is None else 1
        if layer in self.source:
            after = self.source[layer] + 1
            states += int(self.mix is None or after in self.source)
        return 4 * self.d_model * states

    def input_of(self, layer: int, x0: Tensor, results: dict[int, Tensor]) -> LayerInput:
        """Return what a layer reads. `results` has the results of the layers with a skip."""
        given = LayerInput()
        if self.gates is not None and layer in self.source:
            source = self.source[layer]
            given = given._replace(gate=self.gates[source], skipped=results[source])
        if self.mix is not None:
            given = given._replace(kept=self.mix[layer, 0], start=self.mix[layer, 1], x0=x0)
        return given


class ValueTables(nn.Module):
    """Embeddings that join the values of some layers, and the learned scalars of these sums."""

    roles: ClassVar[dict[str, Role]] = {"mix": "vector"}

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.values is not None
        self.table_of = config.values.table_of()
        self.width = width = config.n_kv_heads * config.head_dim
        # See Decoder for why the embeddings are not made by nn.Embedding(…).
        self.tables = nn.ModuleList(
            nn.Embedding.from_pretrained(torch.empty(config.vocab_size, width), freeze=False)
            for _ in range(max(self.table_of.values()) + 1)
        )
        self.mix = nn.Parameter(torch.full((config.n_layers, 2), 0.5))
        self.norm: RMSNorm | None = None
        if config.values.normed:
            self.norm = RMSNorm(width, config.norm_eps, config.norm_gain)

    def kept_bytes_per_token(self, layer: int, at: PassKind) -> int:
        """Return the bytes of a token that a layer's sum of values keeps, in fp32.

        These are the values of attention, and the vectors of the table, with what their norm keeps.
        Compiled code keeps the values in the dtype of the product that made them.
        """
        own = at.width if at.compiled else 4
        return own * self.width + self.kept_if_recomputed(layer, at)

    def kept_if_recomputed(self, layer: int, at: PassKind) -> int:
        """Return the bytes of a token that are kept even if the layer is recomputed, in fp32."""
        if layer not in self.table_of:
            return 0
        return 4 * self.width + (
            0 if self.norm is None else self.norm.kept_bytes(at.outside_blocks)
        )

    def backward_bytes(self) -> int:
        """Return the most bytes of the tables' gradients, before they are added to the sums.

        The gradient of a table that several layers share waits for the last of these layers.
        """
        shared = len(self.table_of) - len(self.tables)
        return 4 * sum(weight.numel() for weight in self.tables.parameters()) if shared else 0

    def of(self, layer: int, tokens: Tensor) -> ValueMix:
        """Return what joins the values of a layer, for tokens (B, T)."""
        own, share = self.mix[layer, 0], self.mix[layer, 1]
        if layer not in self.table_of:
            return ValueMix(own, share, None)
        table = self.tables[self.table_of[layer]]
        assert isinstance(table, nn.Embedding)
        vectors = embedding(tokens, table.weight).float()
        return ValueMix(own, share, vectors if self.norm is None else self.norm(vectors))
