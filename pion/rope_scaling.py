"""The part of a model that stretches its rotary positions to a longer context.

This is Llama 3.1's scaling, "llama3" in transformers. Its maths is in pion/model/attention/rope.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from pion.errors import BadInput
from pion.later_fields import shown
from pion.part_fields import is_number, require_whole, setting


class Positioned(Protocol):
    """The field of a model that its scaling must fit: a ModelConfig has it."""

    @property
    def positions(self) -> str: ...


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """Rotary positions whose slow frequencies are slowed down further, as in Llama 3.1.

    A frequency that turns less than `low_freq_factor` times in the original context is divided by
    `factor`. One that turns more than `high_freq_factor` times stays. Between the two, the share of
    the original frequency grows linearly with the number of turns.
    """

    factor: float = setting("what slow frequencies are divided by, at least 1")
    original_max_position_embeddings: int = setting(
        "tokens of the context that the frequencies were made for"
    )
    low_freq_factor: float = setting(
        "frequencies with fewer turns in the original context are divided", 1.0
    )
    high_freq_factor: float = setting(
        "frequencies with more turns in the original context stay as they are", 4.0
    )

    def __post_init__(self) -> None:
        for name in ("factor", "low_freq_factor", "high_freq_factor"):
            value = getattr(self, name)
            if not is_number(value, above=0):
                raise BadInput(
                    f"rope_scaling.{name} is {shown(value)}; it must be a number above 0"
                )
        if self.factor < 1:
            raise BadInput(f"rope_scaling.factor is {self.factor}; it must be at least 1")
        if self.high_freq_factor <= self.low_freq_factor:
            raise BadInput(
                f"rope_scaling.high_freq_factor {self.high_freq_factor} must be above "
                f"rope_scaling.low_freq_factor {self.low_freq_factor}"
            )
        name = "original_max_position_embeddings"
        require_whole(f"rope_scaling.{name}", getattr(self, name), least=1)

    def check(self, model: Positioned) -> None:
        """Raise BadInput for a model without rotary positions."""
        if model.positions != "rotary":
            raise BadInput(
                f"rope_scaling: the model's positions are {model.positions}, and only rotary "
                "positions are scaled. Leave out rope_scaling"
            )
