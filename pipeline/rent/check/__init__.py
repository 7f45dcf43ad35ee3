"""pion check: find what would fail later, before it costs anything."""

from __future__ import annotations

from dataclasses import dataclass

from pion.errors import BadInput


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


def failure(name: str, error: Exception) -> CheckRow:
    """Return the row of an error: a mistake in the job or its data, or a service that is down."""
    if isinstance(error, BadInput):
        return CheckRow(name, False, str(error))
    return unchecked(name, str(error))
