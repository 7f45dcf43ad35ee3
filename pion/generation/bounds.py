"""The numbers that can decide how a text is drawn. Products of fp32 stay finite with them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pion.data.tokens.token_names import read_optional
from pion.errors import BadInput
from pion.later_fields import shown


@dataclass(frozen=True)
class Bounds:
    """The values of a setting: from `least` to `most`, and 0 if `zero` says what it means."""

    least: float
    most: float
    zero: str | None = None

    def has(self, value: float) -> bool:
        """Return whether `value` is one of them. NaN never is."""
        return self.least <= value <= self.most or (self.zero is not None and value == 0)

    def __str__(self) -> str:
        zero = "" if self.zero is None else f"0 ({self.zero}) or "
        return f"{zero}from {self.least:,} to {self.most:,}"


BOUNDS = {
    "temperature": Bounds(1e-30, 10**6, "the likeliest token"),
    "top_k": Bounds(1, 2**31 - 1, "no limit"),
    "top_p": Bounds(1e-30, 1),
    "min_p": Bounds(0, 1),
    "repetition_penalty": Bounds(1e-3, 10**3),
    "presence_penalty": Bounds(-2, 2),
    "frequency_penalty": Bounds(-2, 2),
    "logit_bias": Bounds(-100, 100),
    "max_tokens": Bounds(0, 2**31 - 1),
    "seed": Bounds(-(2**63), 2**64 - 1),
}


def check(name: str, value: float) -> None:
    """Raise BadInput if a setting has a value outside its bounds."""
    if not BOUNDS[name].has(value):
        raise BadInput(f"{name} is {str(value)[:40]}; it must be {BOUNDS[name]}")


def published_sampling(path: Path) -> dict[str, float]:
    """Return the sampling settings that a generation_config.json gives; {} if there is no file.

    Raises BadInput for a damaged file, and for a value outside its bounds.
    """
    settings = read_optional(path)
    sampling: dict[str, float] = {}
    for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty"):
        if (value := settings.get(name)) is None:
            continue
        wrong = isinstance(value, bool) or not isinstance(value, int | float)
        if wrong or (name == "top_k" and value != int(value)) or not BOUNDS[name].has(value):
            raise BadInput(f"{path}: {name} is {shown(value)}; it must be {BOUNDS[name]}")
        sampling[name] = int(value) if name == "top_k" else float(value)
    if settings.get("do_sample") is False:
        sampling["temperature"] = 0.0
    return sampling
