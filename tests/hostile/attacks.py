"""Attacks on JSON documents: every place in a good document, with every bad value.

The places are found in the document. So a new field of a record is attacked as soon as the good
document has it.
"""

import copy
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

Place = tuple[str | int, ...]

ESCAPE = "\x1b]52;c;Zm9v\x07\x9b2J\u202e"
DEPTH = 20_000
HALF, LONG = "half a character", "a long text"


def nested(levels: int) -> str:
    """Return a list in a list in a list …, as JSON."""
    return "[" * levels + "]" * levels


# JSON that stands at a place, by what it is. Python's reader takes NaN for a number.
VALUES = {
    "null": "null",
    "NaN": "NaN",
    "1e300": "1e300",
    "-1": "-1",
    "deep": nested(DEPTH),
    "escape": json.dumps(ESCAPE),
    "true": "true",
    "1e999": "1e999",
    "2 ** 63": str(2**63),
    "200 digits": "9" * 200,
    "5,000 digits": "9" * 5000,
    "a list": "[[1]]",
    "an object": '{"a": {}}',
    "a text": '"x y/z"',
    "a path up": '"../../../etc/passwd"',
    "an absolute path": '"/etc/passwd"',
    "dots": '".."',
    "NUL": r'"a\u0000b"',
    HALF: r'"\ud800"',
    LONG: json.dumps("x" * 10**6),
    "an empty text": '""',
}
# The attacks on each record of a store. Its texts are names or keys, or for people to read.
ATTACKS = ("missing", "wrong type", "null", "NaN", "1e300", "-1", "deep", "escape")
ALL_ATTACKS = ("missing", "wrong type", *VALUES)
# Those that leave a text without half a character; the empty one is the last.
TEXTS = (
    *("escape", "a text", "a path up", "an absolute path", "dots", "NUL", LONG),
    "an empty text",
)


@dataclass(frozen=True)
class Attack:
    """One value of a document, and what replaces it. `good` is the value before."""

    place: Place
    what: str
    good: Any

    @property
    def path(self) -> str:
        """The place with dots between its parts."""
        return ".".join(map(str, self.place))

    def on(self, document: Any) -> bytes:
        """Return the attacked document as JSON, with Python's words for numbers like NaN."""
        changed = copy.deepcopy(document)
        *parents, last = self.place
        inner = changed
        for part in parents:
            inner = inner[part]
        if self.what == "missing":
            del inner[last]
        else:
            inner[last] = "@value@"
        text = json.dumps(changed)
        if self.what != "missing":
            text = text.replace('"@value@"', VALUES.get(self.what) or of_another_type(self.good))
        return text.encode()

    def __str__(self) -> str:
        return f"{self.path} {self.what}"


def attacks_on(document: Any, attacks: Sequence[str] = ATTACKS) -> list[Attack]:
    """Return these attacks on every place in a JSON document. Of a list, the first item counts."""
    return [Attack(place, what, good) for place, good in places(document) for what in attacks]


def places(value: Any, place: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Yield every place in a JSON document, with its value."""
    if place:
        yield place, value
    if isinstance(value, dict):
        for key, item in value.items():
            yield from places(item, (*place, key))
    elif isinstance(value, list) and value:
        yield from places(value[0], (*place, 0))


def of_another_type(good: Any) -> str:
    """Return JSON of another type than this value has."""
    if isinstance(good, str):
        return "5"
    return '["x"]' if isinstance(good, dict) else '{"x": 1}' if isinstance(good, list) else '"five"'
