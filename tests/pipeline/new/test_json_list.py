"""A JSON list is read item by item, with the line of each, however it is written."""

import io
import json
from pathlib import Path

import pytest

from pion.errors import BadInput
from pipeline.new.json_list import BLANK_PARTS, PART, json_list

FILE = Path("list.json")


def read(text, longest=10**6):
    stream = io.BytesIO(text if isinstance(text, bytes) else text.encode())
    return [(where, value) for where, value, _ in json_list(stream, FILE, longest)]


def refusal(text, longest=10**6):
    with pytest.raises(BadInput) as raised:
        read(text, longest)
    return str(raised.value)


def test_each_item_has_its_line():
    assert read('\ufeff[\n {"a": "x\\n"},\n\n {"a": 2},{}\n]\n') == [
        ("list.json:2", {"a": "x\n"}),
        ("list.json:4", {"a": 2}),
        ("list.json:4", {}),
    ]
    assert read("[]") == []


def test_items_may_be_longer_than_a_part():
    items = [{"text": "é" * PART}, {"n": 1}, {"text": "y" * 3 * PART}]
    assert [value for _, value in read(json.dumps(items, ensure_ascii=False))] == items


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": 1}', "list.json:1: expected a list of objects"),
        ('[{"a": 1},\n{"a": ', "list.json:2: this item does not end: the file was cut off"),
        ('[{"a": 1},\n{"a": "unfinished', "list.json:2: this item does not end"),
        ('[{"a": 1}\n', "list.json:2: the list does not end: the file was cut off"),
        ('[{"a": 1}\n{"a": 2}]', "list.json:2: expected a comma"),
        (
            "[{}," + " " * (BLANK_PARTS * PART + 1) + "{}]",
            "list.json:1: more than 16,777,216 spaces",
        ),
        ('[\n{"a": 1,\n "b" 2}]', "list.json:3: not valid JSON"),
        ('["' + "x" * 3 * PART, "does not end"),
        (b'[\n{"a": "\xfc"}]', "list.json:2: not UTF-8 text"),
        ("[" * 100_000, "not valid JSON"),
        ('[{"a": 1, "a": 2}]', "the key 'a' is given twice"),
    ],
)
def test_what_is_no_list_is_refused_with_its_line(text, said):
    assert said in refusal(text)


def test_an_item_that_is_too_long_is_refused_before_it_fills_the_memory():
    assert "has more than 1,000 characters" in refusal('["' + "x" * 10 * PART, longest=1000)
