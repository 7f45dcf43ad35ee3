"""What the core must know of a family of models: its presets. presets.py has the list.

docs/add-a-family.md names all places.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

# Fields of ModelConfig.
Preset = dict[str, Any]


@dataclass(frozen=True)
class Family:
    """A family of models.

    Attributes:
        presets: its presets by their names.
        small: the preset that a small model of the family begins with.
        parts: what makes a small model of a shape one of the family; true asks for a tiny one.
        measured: the preset that is measured first.
        original: the project whose checkpoints `pion import-seed` reads; None: there is none.
    """

    presets: Mapping[str, Preset]
    small: str
    parts: Callable[[bool, Preset], Preset]
    measured: str
    original: str | None = None


def pion_shape(d_model: int, n_layers: int, n_heads: int, n_kv_heads: int, d_ff: int) -> Preset:
    """Return the shape of a Pion."""
    return {
        # That of the published checkpoints. It is 258 rows more than their tokenizer's.
        "vocab_size": 50_258,
        "seq_len": 2048,
        "d_model": d_model,
        "n_layers": n_layers,
        "n_heads": n_heads,
        "n_kv_heads": n_kv_heads,
        "d_ff": d_ff,
    }


def gpt2_shape(d_model: int, n_layers: int, n_heads: int, seq_len: int) -> Preset:
    """Return the shape of a decoder with GPT-2's vocabulary and proportions."""
    return {
        "vocab_size": 50_257,
        "seq_len": seq_len,
        "d_model": d_model,
        "n_layers": n_layers,
        "n_heads": n_heads,
        "n_kv_heads": n_heads,
        "d_ff": 4 * d_model,
    }
