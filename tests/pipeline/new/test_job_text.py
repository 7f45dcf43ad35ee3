"""The text of a job is YAML that says what it should, whatever the data is called."""

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline.new.files import Group
from pipeline.new.job_text import job_text, scalar, source_of
from pipeline.new.layouts import TextColumn, TurnsColumn
from pipeline.new.look import Reading

TURNS = TurnsColumn("messages", "role", "content")


@pytest.mark.parametrize(
    "text",
    [
        *("chats.jsonl", "my texts", "a: b", "# no", "{x}", "yes", "1e3", "null", " x", 'a"b\\'),
        *("é\n", "", "a\u2028name: x", "\x1b[31m", "😀: 1"),
    ],
)
def test_a_name_comes_back_as_it_was(text):
    assert yaml.safe_load(f"key: {scalar(text)}") == {"key": text}
    assert yaml.safe_load(f"[{{key: {scalar(text)}}}]") == [{"key": text}]
    assert "\n" not in scalar(text)


def test_a_source_names_the_files_from_the_folder_of_the_job(tmp_path):
    data = tmp_path / "data" / "t.jsonl"
    reading = Reading(Group("jsonl", data, (data,)), TextColumn("body"), direct=True)
    expected = {"kind": "jsonl", "path": "data/t.jsonl", "field": "body"}
    assert source_of(reading, data, tmp_path) == expected
    assert source_of(reading, data, tmp_path / "jobs")["path"] == "../data/t.jsonl"
    assert source_of(reading, data, tmp_path / "a" / "b")["path"] == str(data)


def test_a_copy_is_json_lines_with_the_usual_column(tmp_path):
    data = tmp_path / "t.csv"
    reading = Reading(Group("csv", data, (data,)), TextColumn("body"), direct=False)
    assert source_of(reading, tmp_path / "t-texts.jsonl", tmp_path) == {
        "kind": "jsonl",
        "path": "t-texts.jsonl",
    }


def test_short_files_are_cut_into_paragraphs(tmp_path):
    reading = Reading(Group("text", tmp_path, ()), TextColumn("text"), direct=True)
    assert source_of(reading, tmp_path / "x", tmp_path, "paragraph") == {
        "kind": "text",
        "path": "x",
        "split": "paragraph",
    }
    chats = Reading(Group("parquet", tmp_path, ()), TURNS, direct=True)
    assert source_of(chats, tmp_path / "x", tmp_path) == {"kind": "parquet", "path": "x"}


@given(st.text(max_size=60), st.text(max_size=60))
def test_a_comment_never_becomes_a_part_of_what_is_read(value, comment):
    lines = [("# pion new " + comment, ""), (f"to: {scalar(value)}", comment), ("a: 1", comment)]
    assert yaml.safe_load(job_text(lines)) == {"to": value, "a": 1}
