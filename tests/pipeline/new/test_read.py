"""What can't be read is listed with file and line, and what follows is read if it can be."""

import csv
import gzip
import json

import pytest

from pion.data.documents.file_to_documents import LONGEST_LINE, MOST_BLANK
from pipeline.new.read import read_file
from tests.support.own_data import bad_line, csv_texts, cut_gzip, latin1, parquet_texts


def problems(kind, file):
    return [item.problem for item in read_file(kind, file) if item.problem]


def records(kind, file):
    return [item.record for item in read_file(kind, file) if item.record is not None]


def test_lines_after_a_broken_line_are_read(tmp_path):
    file = bad_line(tmp_path)
    assert len(records("jsonl", file)) == 38
    third, seventh = problems("jsonl", file)
    assert third.startswith(f"{file}:3 is not valid JSON")
    assert seventh == f"{file}:7: found a list instead of a JSON object"


def test_a_gzip_that_is_cut_off_gives_what_is_there_and_the_line(tmp_path):
    file = cut_gzip(tmp_path)
    good = len(records("jsonl", file))
    assert good > 100
    (problem,) = problems("jsonl", file)
    assert problem.startswith(f"{file}: damaged gzip file")
    assert problem.endswith(f"(after {file}:{good})")


@pytest.mark.parametrize(
    ("kind", "name", "content", "said"),
    [
        ("csv", "t.csv", b"a,a\n1,2\n", ":1: the first line must name the columns"),
        (
            "csv",
            "t.csv",
            b"",
            ":1: the first line must name the columns, each once. Found: nothing",
        ),
        ("csv", "t.csv", b'a,b\n1,2\n"x"y,2\n', ":3: not a row of a table"),
        (
            "csv",
            "t.csv",
            b"a,b\n1,\xfc\n",
            "t.csv:2: not UTF-8 text at byte 2; convert it with: iconv",
        ),
        ("csv", "t.csv", b"sep=;\na;b\n1\n", ":3: found 1 columns instead of 2"),
        ("csv", "t.csv", b"a,b\n1,2\n" + b"\n" * (MOST_BLANK + 1), "lines are blank. Remove them"),
        ("json", "t.json", b'[{"a": 1},\n{"a": ', "t.json:2: the item that begins here is not"),
        ("json", "t.json", b'[{"a": 1}\n', "t.json:2: expected ',' of a list: was the file cut"),
        ("json", "t.json", b'[{"a": 1}\n{"a": 2}]', "t.json:2: expected ',' of a list"),
        ("json", "t.json", b'[\n{"a": 1,\n "b" 2}]', "t.json:2: the item that begins here is not"),
        ("json", "t.json", b"[\n[1]]", "t.json:2: found a list instead of a JSON object"),
        ("json", "t.json", b"[" * 100_000, "not valid JSON"),
        ("json", "t.json", b'[{"a": 1, "a": 2}]', "the key 'a' is given twice"),
        ("json", "t.json", b'[{"a": "\xfc"}]', "t.json:1: not UTF-8 text at byte 8"),
        ("parquet", "t.parquet", b"PAR1 not really", "not a readable parquet file"),
        ("text", "t.txt", b"a line\n" + b"word " * (LONGEST_LINE // 5 + 1), ":2: the line has mor"),
    ],
)
def test_what_is_no_such_file_is_named(tmp_path, kind, name, content, said):
    file = tmp_path / name
    file.write_bytes(content)
    assert said in problems(kind, file)[-1]


def test_text_that_is_not_utf8_names_the_line(tmp_path):
    file = latin1(tmp_path)
    assert problems("text", file) == [
        f"{file}:2: not UTF-8 text at byte 12; convert it with: iconv -f ENCODING -t UTF-8"
    ]


def test_a_table_names_lines_also_after_a_field_of_two_lines(tmp_path):
    file = csv_texts(tmp_path, 3)
    file.write_text(file.read_text() + "only one\n")
    assert [item.where for item in read_file("csv", file)] == [f"{file}:{n}" for n in (2, 4, 6, 8)]
    assert problems("csv", file) == [f"{file}:8: found 1 columns instead of 3 (title, body, year)"]


def test_a_long_field_is_read_and_other_readers_of_csv_keep_their_limit(tmp_path):
    before = csv.field_size_limit()
    file = tmp_path / "long.csv"
    file.write_text(f"title,body\none,{'x' * (before + 1)}\n")
    (record,) = records("csv", file)
    assert len(record["body"]) == before + 1
    assert csv.field_size_limit() == before


@pytest.mark.parametrize("write", [csv_texts, parquet_texts])
def test_it_is_known_how_far_a_file_was_read(write, tmp_path):
    file = write(tmp_path, 3000)
    stored = [item.stored for item in read_file(file.suffix[1:], file)]
    assert 0 < stored[0] < 0.2 * stored[-1]
    assert stored[-1] == file.stat().st_size


def test_a_packed_table_is_read(tmp_path):
    file = tmp_path / "t.csv"
    file.write_bytes(gzip.compress(b"title,body\none,two\n\n"))
    assert records("csv", file) == [{"title": "one", "body": "two"}]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("sep=;\na;b\n1;2\n", [{"a": "1", "b": "2"}]),
        ("a,b\r1,2\r", [{"a": "1", "b": "2"}]),
        (",a\n0,1\n", [{"Unnamed: 0": "0", "a": "1"}]),
        ("\ufeffa;b;;\n1;2;;\n", [{"a": "1", "b": "2", "Unnamed: 2": "", "Unnamed: 3": ""}]),
        ('"a\n(b)",c\n"1\n2",3\n', [{"a\n(b)": "1\n2", "c": "3"}]),
    ],
)
def test_tables_of_pandas_of_excel_and_of_old_macs_are_read(tmp_path, content, found):
    file = tmp_path / "t.csv"
    file.write_bytes(content.encode())
    assert records("csv", file) == found


def test_items_of_a_list_have_their_lines(tmp_path):
    file = tmp_path / "list.json"
    file.write_text('\ufeff[\n {"a": "x\\n"},\n\n {"a": 2},{}\n]\n')
    found = [(item.where, item.record) for item in read_file("json", file)]
    assert found == [(f"{file}:2", {"a": "x\n"}), (f"{file}:4", {"a": 2}), (f"{file}:4", {})]
    file.write_text("[]")
    assert [*read_file("json", file)] == []


TABLE = {"question": {"0": "a", "1": "b"}, "answer": {"0": "c", "1": "d"}}
WHOLE_TABLES = [
    (TABLE, "pandas.read_json('FILE', orient='columns')"),
    ({"0": {"question": "a", "answer": "c"}}, "orient='index'"),
    ({"columns": ["a"], "index": [0], "data": [["b"]]}, "orient='split'"),
    ({"version": "1", "data": [{"question": "a", "answer": "c"}]}, "jq -c .data[] FILE"),
]


@pytest.mark.parametrize("kind", ["json", "jsonl"])
@pytest.mark.parametrize(("table", "said"), WHOLE_TABLES)
def test_a_whole_table_in_one_object_is_named(table, said, kind, tmp_path):
    file = tmp_path / f"table.{kind}"
    file.write_text(json.dumps(table, indent=2 if kind == "json" else None))
    (problem,) = problems(kind, file)
    assert problem.startswith(f"{file} is one JSON object")
    assert said in problem


@pytest.mark.parametrize("record", [{"messages": [{"role": "user"}]}, {"prompt": {"role": "user"}}])
def test_one_object_on_many_lines_is_a_record(record, tmp_path):
    file = tmp_path / "one.json"
    file.write_text(json.dumps(record, indent=2))
    assert records("json", file) == [record]


def test_only_so_many_bytes_of_a_text_are_read_at_once(tmp_path):
    file = tmp_path / "long.txt"
    with file.open("w") as stream:
        stream.write("a line\n" * 1000)
        stream.truncate(200 << 30)  # a hole: it takes no room on the disk
    item = next(read_file("text", file, 3500))
    assert 3500 <= item.bytes <= 3510
