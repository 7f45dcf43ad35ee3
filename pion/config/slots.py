"""The settings of slots: entries behind a text that keep what attention's window has left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pion.config.part_fields import SEQ_LEN, Core, check_fields, setting
from pion.errors import BadInput


@dataclass(frozen=True, kw_only=True)
class Slots:
    """Learned entries after each segment of a text, which all later tokens see (Lepton's thoughts
    and memory). Of the text itself, a token sees only the last segments."""

    per_segment: int = setting("slots after each segment", 4, most=1024)
    segment: int = setting("tokens of a document in a segment", 256, most=SEQ_LEN)
    window: int = setting(
        "segments of text that a token sees, its own included; a token sees all earlier slots",
        8,
        most=SEQ_LEN,
    )

    def __post_init__(self) -> None:
        check_fields(self, "slots.")

    def check(self, model: Core) -> None:
        """Raise BadInput for segments longer than the context, and for parts that slots exclude.

        Slots have no token id, so they have no vector of a value table. What windows, gates,
        experts and primitives would be of slots was not worked out.
        """
        if self.segment > model.seq_len:
            raise BadInput(
                f"slots.segment {self.segment} is longer than the model's context of "
                f"{model.seq_len} tokens, so there would never be a slot"
            )
        others: dict[str, Any] = {
            "windows": model.windows,
            "values": model.values,
            "wiring": model.wiring,
            "gates": model.gates or None,
            model.feedforward: None if model.feedforward == "dense" else True,
            "positions: learned": None if model.positions == "rotary" else True,
        }
        wrong = [name for name, value in others.items() if value is not None]
        if wrong:
            raise BadInput(f"slots: a model with slots can't have {', '.join(wrong)}")

    def of(self, tokens: int) -> int:
        """Return the most slots of so many tokens."""
        return self.per_segment * (tokens // self.segment)
