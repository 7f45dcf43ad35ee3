"""The learned vectors that slots begin with; see pion/model/attention/slot_entries.py."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from pion.config.parts import Role
from pion.config.slots import Slots


class SlotVectors(nn.Module):
    """The vectors θ (per_segment, d_model) of the slots after a segment, in every segment."""

    roles: ClassVar[dict[str, Role]] = {"weight": "vector"}

    def __init__(self, d_model: int, settings: Slots) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(settings.per_segment, d_model))

    def draw_weights(self, init: str, std: float) -> None:
        """Draw the vectors as embeddings are drawn."""
        nn.init.normal_(self.weight, std=std)

    def forward(self, rows: int, segments: int) -> Tensor:
        """Return the input of the slots after so many segments, (B, S, d_model) in fp32."""
        return self.weight.float().repeat(segments, 1).expand(rows, -1, -1)
