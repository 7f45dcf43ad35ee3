"""Files and JSON that others may have written."""

import json
import os

import pytest

from pion.errors import BadInput
from pion.untrusted import DEEPEST, open_file, parse_json, parse_object, read_file, read_json
from tests.hostile.in_process import little_memory


def nested(levels):
    return "[" * levels + "]" * levels


@pytest.mark.parametrize(
    ("text", "why"),
    [
        pytest.param("{", "Expecting property name", id="cut"),
        pytest.param("NaN", "NaN is not a number", id="nan"),
        pytest.param("[-Infinity]", "-Infinity is not a number", id="infinity"),
        pytest.param("1e999", "1e999 is too large for a number", id="overflow"),
        pytest.param("9" * 5000, "… is too large for a number", id="digits"),
        pytest.param(nested(DEEPEST + 1), "nested deeper than 64 levels", id="deep"),
        pytest.param('{"a":' * 100_000, "nested deeper than 64 levels", id="bottomless"),
        pytest.param(r'{"a": ["\ud800"]}', "surrogates not allowed", id="half a character"),
        pytest.param(r'{"\uDFFF": 1}', "surrogates not allowed", id="half a character as key"),
        pytest.param(
            '{"a": 1, "b": {"c": 1, "a": 2, "c": 2}}',
            "the key 'c' is given twice, with",
            id="twice",
        ),
        pytest.param(b"\xef\xbb\xbf{}", "starts with a byte order mark", id="mark"),
        pytest.param(b"\xff\xfe", "can't decode byte 0xff", id="not utf-8"),
    ],
)
def test_json_that_is_no_plain_value_is_refused_with_the_file_and_the_reason(text, why):
    with pytest.raises(BadInput, match=r"^HEAD.json is not valid JSON") as error:
        parse_json(text, "HEAD.json")
    assert why in str(error.value)


def test_json_up_to_the_bounds_is_read():
    assert parse_json(nested(DEEPEST), "x")
    assert parse_json('{"a": [1], "b": 2, "a": [1]}', "x") == {"a": [1], "b": 2}
    assert parse_json(r'["\ud83d\ude00", "\u00e9", 1e300, -0.0]', "x") == ["😀", "é", 1e300, 0.0]


def test_the_line_of_a_data_set_may_have_what_many_data_sets_have():
    value = parse_json(r'{"a": NaN, "b": -Infinity, "c": 1e999, "d": "\ud800"}', "x", strict=False)
    assert str(value) == r"{'a': nan, 'b': -inf, 'c': inf, 'd': '\ud800'}"
    for text in (nested(DEEPEST + 1), "9" * 5000, '{"text": "a", "text": null}'):
        with pytest.raises(BadInput, match="x is not valid JSON"):
            parse_json(text, "x", strict=False)


def test_the_place_in_a_text_of_one_line_is_its_column():
    with pytest.raises(BadInput, match=r"a:7 is not valid JSON \(Expecting value at column 7\)"):
        parse_json('{"a": }', "a:7")
    for text in ('"a\tb"', '"ab'):  # json's own messages end with "at" here
        with pytest.raises(
            BadInput, match=r"\((Invalid control character|Unterminated string starting) at column"
        ):
            parse_json(text, "a")
    with pytest.raises(BadInput, match=r"Expecting value: line 2 column 6"):
        parse_json('{\n"a": }', "a")


def test_an_object_must_be_an_object():
    with pytest.raises(BadInput, match="x should be a JSON object, but is a list"):
        parse_object("[]", "x")


def test_a_file_of_the_largest_size_is_read_and_one_byte_more_is_refused(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(json.dumps("x" * 98).encode())
    assert len(read_json(file, limit=100)) == 98
    with pytest.raises(BadInput, match=r"file has more than 99 bytes, so it was not read"):
        read_file(file, limit=99)


def test_a_small_file_takes_little_memory_whatever_size_it_may_have(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"{}")
    with little_memory(64 << 20):
        assert read_file(file, limit=1 << 30) == b"{}"


def test_what_is_not_a_regular_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "endless").symlink_to("/dev/zero")
    for name in ("pipe", "endless", "."):
        with pytest.raises(BadInput, match="is not a regular file, so it was not read"):
            read_file(tmp_path / name)
        with pytest.raises(BadInput, match="is not a regular file, so it was not read"):
            open_file(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read_file(tmp_path / "absent")
