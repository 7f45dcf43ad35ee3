"""What was measured of parts alone (pion/config/part_fields.py), as tables and in a line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pion.config.model_config import RESULTS
from pion.config.part_fields import PartResult
from pipeline.report.blocks import Block, Table, percent_with_error, value_with_error
from pipeline.report.results import TRAINED


def part_blocks(results: Mapping[str, Any]) -> list[Block]:
    """Return a table of each part that was measured."""
    blocks: list[Block] = []
    for part in RESULTS.values():
        rows = [
            (title, words, *_numbers(part, found))
            for stage, title in TRAINED.items()
            for entry, words in part.entries.items()
            if (found := ((results.get(stage) or {}).get(part.name) or {}).get(entry))
        ]
        blocks += [part.about, Table(("model", *part.columns), rows, 2)] if rows else []
    return blocks


def part_in_brief(part: PartResult, result: Mapping[str, Any]) -> str:
    """Return what was measured of a part, such as "1.62 ± 0.05 tokens a pass"."""
    found: Mapping[str, Any] = next(filter(None, map(result.get, [*part.entries][::-1])), {})
    return part.in_brief.format(*_numbers(part, found))


def _numbers(part: PartResult, found: Mapping[str, Any]) -> list[str]:
    return [
        percent_with_error(found, name) if digits is None else value_with_error(found, name, digits)
        for name, digits in part.fields.items()
    ]
