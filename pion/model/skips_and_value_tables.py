"""How layers are connected: skips over layers, the embeddings in each layer, and value tables.

From Daisy-Wee, which has them from modded-nanogpt. All weights of these sums are learned scalars.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from pion.config.model_config import ModelConfig
from pion.config.parts import Role
from pion.model.attention.attention import ValueMix
from pion.model.forward_pass import EMBEDDED, BlockInputs, LayerInput, Pass, SharedPart
from pion.model.norm_and_projection import RMSNorm


class Wiring(SharedPart):
    """The learned scalars of skips and of the mix of embeddings into each layer.

    A gate belongs to the layer that a skip reads. Layers that nothing reads have a gate too, as in
    Daisy-Wee.
    """

    roles: ClassVar[dict[str, Role]] = {"mix": "vector"}

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.wiring is not None
        self.source = dict(config.wiring.skips)
        self.reads = frozenset(self.source.values())
        self.gates = nn.Parameter(torch.ones(config.n_layers)) if self.source else None
        mix = torch.tensor([[1.0, 0.0]] * config.n_layers)
        self.mix = nn.Parameter(mix) if config.wiring.input_mix else None

    def give(self, inputs: BlockInputs, block: nn.Module, layer: int, now: Pass) -> BlockInputs:
        """Return what a layer gets, with what it reads besides the layer before."""
        skip: tuple[Tensor, Tensor] | None = None
        if self.gates is not None and layer in self.source:
            source = self.source[layer]
            skip = now.elements(self.gates)[source], now.results[source]
        mix: tuple[Tensor, Tensor, Tensor] | None = None
        if self.mix is not None:
            keep, start = now.elements(self.mix)[2 * layer : 2 * layer + 2]
            mix = keep, start, now.results[EMBEDDED]
        return inputs._replace(before=LayerInput(skip, mix))


class ValueTables(SharedPart):
    """Embeddings that join the values of some layers, and the learned scalars of these sums."""

    roles: ClassVar[dict[str, Role]] = {"mix": "vector"}

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.values is not None
        self.table_of = config.values.table_of()
        width = config.n_kv_heads * config.head_dim
        # See Decoder for why the embeddings are not made by nn.Embedding(…).
        self.tables = nn.ModuleList(
            nn.Embedding.from_pretrained(torch.empty(config.vocab_size, width), freeze=False)
            for _ in range(max(self.table_of.values()) + 1)
        )
        self.mix = nn.Parameter(torch.full((config.n_layers, 2), 0.5))
        self.norm = RMSNorm.of(config, width) if config.values.normed else None

    def give(self, inputs: BlockInputs, block: nn.Module, layer: int, now: Pass) -> BlockInputs:
        """Return what a layer gets, with what joins the values of its attention."""
        vectors: Tensor | None = None
        if layer in self.table_of:
            vectors = self.tables[self.table_of[layer]](now.given.tokens).float()
            vectors = vectors if self.norm is None else self.norm(vectors)
        keep, table = now.elements(self.mix)[2 * layer : 2 * layer + 2]
        values = ValueMix(keep, table, vectors)
        return inputs._replace(attention=inputs.attention._replace(values=values))
