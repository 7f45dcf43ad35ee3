"""Attacks on JSON documents: every place in a good document, with every bad value.

The places are found in the document. So a new field of a record is attacked as soon as the good
document has it.
"""

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Place = tuple[str | int, ...]

ESCAPE = "\x1b]52;c;Zm9v\x07\x9b2J\u202e"
DEPTH = 20_000
# Stands for DEPTH nested lists, which `json.dumps` can't write.
_DEEP = "@deep@"

VALUES: dict[str, Any] = {
    "null": None,
    "NaN": float("nan"),
    "1e300": 1e300,
    "-1": -1,
    "deep": _DEEP,
    "escape": ESCAPE,
}
ATTACKS = ("missing", "wrong type", *VALUES)


@dataclass(frozen=True)
class Attack:
    """One value of a document, and what replaces it. `good` is the value before."""

    place: Place
    what: str
    good: Any

    def on(self, document: Any) -> bytes:
        """Return the attacked document as JSON, with Python's words for numbers like NaN."""
        changed = copy.deepcopy(document)
        *parents, last = self.place
        inner = changed
        for part in parents:
            inner = inner[part]
        if self.what == "missing":
            del inner[last]
        elif self.what == "wrong type":
            inner[last] = _of_another_type(self.good)
        else:
            inner[last] = VALUES[self.what]
        return json.dumps(changed).replace(f'"{_DEEP}"', nested(DEPTH)).encode()

    def __str__(self) -> str:
        return f"{'.'.join(map(str, self.place))} {self.what}"


def attacks_on(document: Any) -> list[Attack]:
    """Return every attack on every place in a JSON document. Of a list, the first item counts."""
    return [Attack(place, what, good) for place, good in places(document) for what in ATTACKS]


def places(value: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Yield every place in a JSON document, with its value."""
    if place:
        yield place, value
    if isinstance(value, dict):
        for key, item in value.items():
            yield from places(item, (*place, key))
    elif isinstance(value, list) and value:
        yield from places(value[0], (*place, 0))


def nested(levels: int) -> str:
    """Return a list in a list in a list …, as JSON."""
    return "[" * levels + "]" * levels


def _of_another_type(good: Any) -> Any:
    if isinstance(good, str):
        return 5
    if isinstance(good, dict):
        return ["x"]
    if isinstance(good, list):
        return {"x": 1}
    return "five"
