"""pion check: find what would fail later, before it costs anything."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CheckRow:
    """A row of the table. `ok` is None if nothing could be found out (then it was not `checked`),
    and for a mere warning.

    Scripts read the fields and names by --json; `words` may change (tests/golden/json/keys.txt).
    """

    name: str
    ok: bool | None
    words: str
    checked: bool = True


def unchecked(name: str, words: str) -> CheckRow:
    """Return the row of what could not be found out."""
    return CheckRow(name, None, words, checked=False)
