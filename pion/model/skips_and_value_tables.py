"""How layers are connected: skips over layers, the embeddings in each layer, and value tables.

From Daisy-Wee, which has them from modded-nanogpt. All weights of these sums are learned scalars.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from pion.config.model_config import ModelConfig
from pion.config.parts import Role
from pion.model.attention.attention import ValueMix
from pion.model.forward_pass import EMBEDDED, BlockInputs, LayerInput, Pass, SharedPart
from pion.model.norm_and_projection import RMSNorm
from pion.model.pass_kind import PassKind


class Wiring(SharedPart):
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
        self.reads = frozenset(self.source.values())
        self.attention_layers = config.attention_layers
        self.gates = nn.Parameter(torch.ones(config.n_layers)) if self.source else None
        mix = torch.tensor([1.0, 0.0]).repeat(config.n_layers, 1)
        self.mix = nn.Parameter(mix) if config.wiring.input_mix else None

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

    def give(self, inputs: BlockInputs, layer: int, now: Pass) -> BlockInputs:
        """Return what a layer gets, with what it reads besides the layer before."""
        skip: tuple[Tensor, Tensor] | None = None
        if self.gates is not None and layer in self.source:
            source = self.source[layer]
            skip = self.gates[source], now.results[source]
        mix: tuple[Tensor, Tensor, Tensor] | None = None
        if self.mix is not None:
            mix = self.mix[layer, 0], self.mix[layer, 1], now.results[EMBEDDED]
        return inputs._replace(before=LayerInput(skip, mix))


class ValueTables(SharedPart):
    """Embeddings that join the values of some layers, and the learned scalars of these sums."""

    roles: ClassVar[dict[str, Role]] = {"mix": "vector"}

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.values is not None
        self.table_of = config.values.table_of()
        self.attention_layers = config.attention_layers
        self.width = width = config.n_kv_heads * config.head_dim
        # See Decoder for why the embeddings are not made by nn.Embedding(…).
        self.tables = nn.ModuleList(
            nn.Embedding.from_pretrained(torch.empty(config.vocab_size, width), freeze=False)
            for _ in range(max(self.table_of.values()) + 1)
        )
        self.mix = nn.Parameter(torch.full((config.n_layers, 2), 0.5))
        norm = RMSNorm(width, config.norm_eps, config.norm_gain)
        self.norm = norm if config.values.normed else None

    def kept_bytes_per_token(self, layer: int, at: PassKind) -> int:
        """Return the bytes of a token that a layer's sum of values keeps, in fp32.

        These are the values of attention, and the vectors of the table, with what their norm keeps.
        Compiled code keeps the values in the dtype of the product that made them.
        """
        if layer not in self.attention_layers:
            return 0
        return (at.width if at.compiled else 4) * self.width + self.kept_if_recomputed(layer, at)

    def kept_if_recomputed(self, layer: int, at: PassKind) -> int:
        """Return the bytes of a token that are kept even if the layer is recomputed, in fp32."""
        if layer not in self.table_of:
            return 0
        return 4 * self.width + (
            0 if self.norm is None else self.norm.kept_bytes(replace(at, compiled=False))
        )

    def shared_gradient_bytes(self) -> int:
        """Return the most bytes of the tables' gradients, before they are added to the sums.

        The gradient of a table that several layers share waits for the last of these layers.
        """
        shared = len(self.table_of) - len(self.tables)
        return 4 * sum(weight.numel() for weight in self.tables.parameters()) if shared else 0

    def give(self, inputs: BlockInputs, layer: int, now: Pass) -> BlockInputs:
        """Return what a layer gets, with what joins the values of its attention."""
        vectors: Tensor | None = None
        if layer in self.table_of:
            vectors = self.tables[self.table_of[layer]](now.given.tokens).float()
            vectors = vectors if self.norm is None else self.norm(vectors)
        values = ValueMix(self.mix[layer, 0], self.mix[layer, 1], vectors)
        return inputs._replace(attention=inputs.attention._replace(values=values))
