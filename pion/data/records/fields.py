"""The keys of a record: which are there, which were read, and values that are JSON in a text."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from pion.errors import BadInput
from pion.later_fields import shown

# What a row of a table has under a column that is not read.
NOT_READ = ...


class _Every:
    """Contains every name."""

    def __contains__(self, name: object) -> bool:
        return True


# In place of the columns of a table that are read.
EVERY = _Every()
_YES, _NO = (True, 1, "1", "true"), (False, 0, "0", "false")


class Fields:
    """The filled keys of a record. Nulls and NaN, which is pandas' null, are absent at every level:
    tables have every key.

    Attributes:
        values: by key.
        names: all keys, also those that are null.
        where: the record's file and line, for errors.
        roles: the names of roles that are not the usual ones, and what each was read as.
    """

    def __init__(self, record: Mapping[str, Any], where: str) -> None:
        self.values: dict[str, Any] = without_nulls(record)
        self.names = tuple(record)
        self.where = where
        self.roles: dict[str, str] = {}
        self._unread = dict.fromkeys(self.values)

    @property
    def unread(self) -> tuple[str, ...]:
        """The filled keys that nobody has taken so far."""
        return tuple(self.there(*self._unread))

    def there(self, *names: str) -> list[str]:
        """Return those of the names that are filled."""
        return [name for name in names if not is_blank(self.values.get(name))]

    def take(self, name: str | None) -> Any:
        """Return the value under a key, which then counts as read; None if it is absent."""
        if name is None:
            return None
        self._unread.pop(name, None)
        return self.values.get(name)

    def one_of(self, names: Iterable[str], what: str) -> str | None:
        """Return the one filled key of the names; None if none is. Keys with equal values are one.

        Raises BadInput if several are, because the record could mean two things.
        """
        names_here = self.there(*names)
        if any(self.values[name] != self.values[names_here[0]] for name in names_here):
            keys = " and ".join(map(repr, names_here))
            raise BadInput(
                f"{self.where}: the keys {keys} could all be the {what}. Keep one of them in the "
                "data, or let `pion new` write a copy: it asks which one is meant"
            )
        for name in names_here[1:]:
            self.take(name)
        return names_here[0] if names_here else None


def is_null(value: Any) -> bool:
    """Return whether a value is null or NaN, as pandas writes null."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def is_blank(value: Any) -> bool:
    """Return whether a value is null, a blank text, or an empty list or object."""
    return not value.strip() if isinstance(value, str) else value in (None, [], {})


def without_nulls(value: Any) -> Any:
    """Return a value without the keys of objects that are null or NaN, at every level."""
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if not is_null(item)}
    return [without_nulls(item) for item in value] if isinstance(value, list | tuple) else value


def json_in(value: Any, where: str) -> Any:
    """Return what a text says as JSON, and other values as they are. Raises BadInput."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise BadInput(f"{where} is a text, and not JSON: {shown(value)}") from None


def yes_or_no(value: Any, where: str) -> bool:
    """Return true, 1, "1" and "true" as True, and the same of false. Raises BadInput for others."""
    answer = value.strip().lower() if isinstance(value, str) else value
    if not isinstance(answer, bool | int | float | str) or answer not in (*_YES, *_NO):
        raise BadInput(f"{where} must be true or false, or 1 or 0, not {shown(value)}")
    return answer in _YES
