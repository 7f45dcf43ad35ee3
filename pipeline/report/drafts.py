"""What a model's draft block saves, as rows of text and in a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.report.blocks import Block, Table, percent_with_error, value_with_error

DRAFTS = (
    "A small block next to the model guesses the next tokens of a text, and the model checks all "
    "guesses in one pass. This makes texts faster and never changes them. Below is how many tokens "
    "a pass adds to a text that continues held-out text (1 without guesses; more is better), and "
    "the share of guessed tokens that were right:"
)


def draft_blocks(results: Mapping[str, Any], models: Sequence[tuple[str, str]]) -> list[Block]:
    """Return a table of each model with a draft block; `models` are names in results and titles."""
    drawn = {"greedy": "the likeliest", "drawn": "drawn at a temperature of 0.8"}
    rows: list[tuple[str, ...]] = []
    for stage, title in models:
        drafts = (results.get(stage) or {}).get("drafts") or {}
        for name, words in drawn.items():
            if found := drafts.get(name):
                saved = value_with_error(found, "tokens_per_pass", 2)
                rows.append((title, words, saved, percent_with_error(found, "right")))
    return [DRAFTS, Table(("model", "tokens", "tokens a pass", "right"), rows, 2)] if rows else []


def drafts_in_brief(drafts: Mapping[str, Any]) -> str:
    """Return what the draft block of a model saves, such as "1.62 ± 0.05 tokens a pass"."""
    found = drafts.get("drawn") or drafts.get("greedy") or {}
    return f"{value_with_error(found, 'tokens_per_pass', 2)} tokens a pass (1 without drafts)"
