"""The sampling settings that `pion generate` and `pion chat` share."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from pion.bounds import BOUNDS
from pion.errors import BadInput


@dataclass(frozen=True)
class GenerationSettings:
    """How text is sampled.

    `temperature` 0 takes the most likely token. `top_k` 0 and `top_p` 1 restrict nothing.
    """

    max_tokens: int = 128
    temperature: float = 0.8
    top_k: int = 50
    top_p: float = 0.9
    repetition_penalty: float = 1.0
    seed: int | None = None


HELP = {
    "max_tokens": "maximum length of an answer, in tokens",
    "temperature": "0 takes the most likely token; higher is more random",
    "top_k": "choose among this many of the most likely tokens; 0: all",
    "top_p": "choose among the most likely tokens that add up to this probability",
    "repetition_penalty": "values above 1 make tokens that were already used less likely",
}
DEFAULTS: dict[str, Any] = {name: getattr(GenerationSettings, name) for name in HELP}


def convert(name: str, text: str) -> float:
    """Return the value that a user typed for a setting. Raises BadInput for an invalid value."""
    bounds = replace(BOUNDS[name], least=1) if name == "max_tokens" else BOUNDS[name]
    kind = int if name == "seed" else type(DEFAULTS[name])
    try:
        value: float = kind(text)
    except ValueError:
        value = math.nan
    if not bounds.has(value):
        whole = "a whole number, " if kind is int else ""
        raise BadInput(f"{name.replace('_', ' ')} must be {whole}{bounds}, not {text[:40]!r}")
    return value
