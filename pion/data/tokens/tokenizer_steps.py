"""How much the steps of a tokenizer.json may multiply a text.

A tokenizer changes a text in steps before it encodes the text, and in further steps when it decodes
ids. An honest step keeps the text's length, or nearly so. A hostile file can have steps that
multiply: twenty times "replace a with aa" make a million letters of one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pion.errors import BadInput

# The most that all steps together may multiply a text by, and the most characters that they may
# put before it. A usual tokenizer needs 18 · 4 for Unicode's NFKC and bytes written as characters.
MOST_GROWTH, MOST_PREFIX = 1000.0, 256
# The most steps. Tokenizers of large models have up to ten.
MOST_STEPS = 64

# By type of step, the most characters that it makes of one. Steps that are not here keep the
# length, or remove characters.
_GROWTH = {
    "BertNormalizer": 3.0,
    "ByteLevel": 4.0,
    "CTC": 2.0,
    "Lowercase": 3.0,
    "Metaspace": 2.0,
    "NFC": 3.0,
    "NFD": 4.0,
    "NFKC": 18.0,
    "NFKD": 18.0,
    "Nmt": 2.0,
}
# The keys of steps that have others inside.
_INSIDE = ("normalizers", "pretokenizers", "decoders")


def check_steps(settings: Mapping[str, Any], where: str) -> None:
    """Raise BadInput, naming `where`, for steps that can make a short text very long.

    `settings` is a tokenizer.json that the tokenizers library could read.
    """
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        added = settings["model"].get(key)
        if isinstance(added, str) and len(added) > MOST_PREFIX:
            raise BadInput(
                f"{where}: key model.{key} has {len(added):,} characters; a tokenizer adds at most "
                f"{MOST_PREFIX} to a letter"
            )
    before = [*steps_of(settings.get("normalizer")), *steps_of(settings.get("pre_tokenizer"))]
    for steps in (before, steps_of(settings.get("decoder"))):
        growth, prefix = 1.0, 0
        for step in steps[: MOST_STEPS + 1]:
            growth *= _growth(step)
            prefix += len(str(step.get("prepend") or ""))
        if len(steps) > MOST_STEPS or growth > MOST_GROWTH or prefix > MOST_PREFIX:
            kinds = ", ".join(str(step.get("type")) for step in steps[:5])
            raise BadInput(
                f"{where}: this tokenizer could make a short text very long, so it is not used. "
                f"Its {len(steps):,} steps ({kinds}{', …' if len(steps) > 5 else ''}) may "
                f"multiply a text by {growth:.3g}, and put {prefix:,} characters before it; the "
                f"limits are {MOST_STEPS} steps, {MOST_GROWTH:g} and {MOST_PREFIX}"
            )


def steps_of(step: Any) -> list[Mapping[str, Any]]:
    """Return the steps of a normalizer, pre-tokenizer or decoder in order, nested ones flat."""
    if not isinstance(step, Mapping):
        return []
    inside = [key for key in _INSIDE if isinstance(step.get(key), list)]
    if not inside:
        return [step]
    return [found for key in inside for part in step[key] for found in steps_of(part)]


def _growth(step: Mapping[str, Any]) -> float:
    kind = step.get("type")
    if kind == "Precompiled":
        return float("inf")  # its table is not readable, and can hold texts of any length
    if kind != "Replace":
        return _GROWTH.get(str(kind), 1.0)
    pattern, content = step.get("pattern"), len(str(step.get("content")))
    text = pattern.get("String") if isinstance(pattern, Mapping) else None
    if isinstance(text, str) and text:
        return max(1.0, content / len(text))
    return 1.0 + content  # a regular expression may match nothing, before each character
