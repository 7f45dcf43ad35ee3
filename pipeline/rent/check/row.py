"""What one check found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CheckRow:
    """`ok` is None for what could not be found out, or is only to be considered."""

    name: str
    ok: bool | None
    words: str
