"""The settings of slots: entries behind a text that keep what attention's window has left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from pion.config.part_fields import SEQ_LEN, Core, Part, check_fields, setting
from pion.errors import BadInput


@dataclass(frozen=True, kw_only=True)
class Slots(Part):
    """Learned entries after each segment of a text, which all later tokens see (Lepton's thoughts
    and memory). Of the text itself, a token sees only the last segments."""

    about: ClassVar = (
        "entries after each segment of a text, which keep what attention's window has left; a row "
        "of text is one document or several (data.documents), and segments count from the start "
        "of each"
    )
    hides: ClassVar = True

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

    def entries(self, tokens: int) -> int:
        """Return the most slots of so many tokens."""
        return self.per_segment * (tokens // self.segment)

    def tokens_seen(self) -> int:
        """Return the most tokens of text that a token sees."""
        return self.window * self.segment

    def keys_seen(self, tokens: int) -> float:
        """Return how many keys a token and its share of the slots see on average."""
        size, each = self.segment, self.per_segment
        seen = 0.0
        for segment in range(-(-tokens // size)):
            here = min(size, tokens - segment * size)
            before = min(segment, self.window - 1) * size + segment * each
            seen += here * (before + here / 2)
            if here == size:
                seen += each * (before + size + each / 2)
        return seen / tokens

    def too_short(self, tokens: int) -> str | None:
        """Return why rows without a full segment train no slot."""
        if tokens >= self.segment:
            return None
        return (
            f"rows of {tokens} tokens are shorter than the model's segments of {self.segment}, so "
            "no slot would ever be trained. Give longer rows, or a smaller model.slots.segment"
        )

    def card(self) -> tuple[str, str]:
        """Return how many slots there are, and what a token sees."""
        return "slots", (
            f"{self.per_segment} after each {self.segment} tokens, seen by all later tokens; of "
            f"text, a token sees at most the last {self.tokens_seen():,} tokens"
        )
