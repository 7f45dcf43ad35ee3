"""pion check: find what would fail later, before it costs anything."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CheckRow:
    """A row of the table. `ok` is None if nothing could be found out, and for a mere warning.

    Scripts read the fields and names by --json; `words` may change (tests/golden/json/keys.txt).
    """

    name: str
    ok: bool | None
    words: str
