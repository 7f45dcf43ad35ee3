"""The learned vectors that slots begin with; see pion/model/attention/slot_entries.py."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from pion.config.model_config import ModelConfig
from pion.config.parts import Role
from pion.model.attention.cache import Place
from pion.model.attention.masks import Masks, flexible
from pion.model.attention.slot_entries import entries_of
from pion.model.attention.slot_masks import mask_of_pass, mask_of_rows
from pion.model.forward_pass import Given, Pass, SharedPart


class SlotVectors(SharedPart):
    """The vectors θ (per_segment, d_model) of the slots after a segment, in every segment."""

    roles: ClassVar[dict[str, Role]] = {"weight": "vector"}
    last = True

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.slots is not None
        self.settings = config.slots
        self.weight = nn.Parameter(torch.empty(self.settings.per_segment, config.d_model))

    def draw_weights(self, init: str, std: float) -> None:
        """Draw the vectors as embeddings are drawn."""
        nn.init.normal_(self.weight, std=std)

    def forward(self, rows: int, segments: int) -> Tensor:
        """Return the input of the slots after so many segments, (B, S, d_model) in fp32."""
        return self.weight.float().repeat(segments, 1).expand(rows, -1, -1)

    def masks(self, config: ModelConfig, given: Given, place: Place | None) -> tuple[Masks, Tensor]:
        """Return what tokens and slots see, and the positions of both."""
        if given.cache is None or place is None:
            entries = entries_of(self.settings, given.positions, given.documents, given.tokens)
            flex = flexible(config, given.tokens.device.type)
            return {"full": mask_of_rows(self.settings, entries, flex=flex)}, entries.positions
        mask, entries = mask_of_pass(self.settings, place, given.cache, given.tokens.device)
        return {"full": mask}, entries.positions

    def embedded(self, x: Tensor, now: Pass) -> Tensor:
        """Return the embeddings, and behind them those of the slots that the pass computes."""
        rows, tokens = now.given.tokens.shape
        segments = tokens // self.settings.segment
        if now.place is not None:
            segments = now.place.extra.segments.shape[1]
        return torch.cat([x, self(rows, segments)], dim=1)
