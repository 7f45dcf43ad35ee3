"""What can't be read is listed with file and line, and what follows is read if it can be."""

import csv
import gzip
import json

import pytest

from pion.data.documents.file_to_documents import LONGEST_LINE, MOST_BLANK
from pipeline.new.read import read_file
from tests.support.own_data import bad_line, csv_texts, cut_gzip, parquet_texts


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


NAMES = ":1: the first line must name the columns, each once. Found: "
# The kind and the content of each file, and what is said of it.
BROKEN = [
    ("csv", b"a,a\n1,2\n", f"{NAMES}'a', 'a'"),
    ("csv", b"", f"{NAMES}nothing"),
    ("csv", b'a,b\n1,2\n"x"y,2\n', ":3: not a row of a table"),
    ("csv", b"a,b\n1,\xfc\n", ":2: not UTF-8 text at byte 2; convert it with: iconv"),
    ("csv", b"sep=;\na;b\n1\n", ":3: found 1 columns instead of 2"),
    ("csv", b'a,b\n1,"x\ny"\none\n', ":4: found 1 columns instead of 2 (a, b)"),
    ("csv", b"a,b\n1,2\n" + b"\n" * (MOST_BLANK + 1), "lines are blank. Remove them"),
    ("json", b'[{"a": 1},\n{"a": ', ":2: the item that begins here is not"),
    ("json", b'[{"a": 1}\n', ":2: expected ',' of a list: was the file cut"),
    ("json", b'[{"a": 1}\n{"a": 2}]', ":2: expected ',' of a list"),
    ("json", b'[\n{"a": 1,\n "b" 2}]', ":2: the item that begins here is not"),
    ("json", b"[\n[1]]", ":2: found a list instead of a JSON object"),
    ("json", b"[" * 100_000, "not valid JSON"),
    ("json", b'[{"a": 1, "a": 2}]', "the key 'a' is given twice"),
    ("json", b'[{"a": "\xfc"}]', ":1: not UTF-8 text at byte 8"),
    ("parquet", b"PAR1 not really", "not a readable parquet file"),
    ("text", b"a\nK\xf6ln\n", ":2: not UTF-8 text at byte 3; convert it with: iconv"),
    ("text", b"a line\n" + b"word " * (LONGEST_LINE // 5 + 1), ":2: the line has more"),
]


@pytest.mark.parametrize(("kind", "content", "said"), BROKEN)
def test_what_is_no_such_file_is_named(tmp_path, kind, content, said):
    file = tmp_path / f"t.{kind}"
    file.write_bytes(content)
    problem = problems(kind, file)[-1]
    assert f"{file}{said}" in problem if said.startswith(":") else said in problem


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


TWO = {"a": "1", "b": "2"}
MESSAGE = {"prompt": {"role": "user"}}
# The name and the content of each file, and its records by their lines.
READ = [
    ("a.csv", b"sep=;\na;b\n1;2\n", [(3, TWO)]),
    ("a.csv", b"a,b\r1,2\r", [(2, TWO)]),
    ("a.csv", b",a\n0,1\n", [(2, {"Unnamed: 0": "0", "a": "1"})]),
    ("a.csv", b"\xef\xbb\xbfa;b;;\n1;2;;\n", [(2, TWO | {"Unnamed: 2": "", "Unnamed: 3": ""})]),
    ("a.csv", b'"a\n(b)",c\n"1\n2",3\n4,5\n', [(3, "1\n2", "3"), (5, "4", "5")]),
    ("a.csv", gzip.compress(b"a,b\n1,2\n\n", mtime=0), [(2, TWO)]),
    (
        "a.json",
        b'\xef\xbb\xbf[\n {"a": "x\\n"},\n\n {},{}\n]\n',
        [(2, {"a": "x\n"}), (4, {}), (4, {})],
    ),
    ("a.json", b"[]", []),
    ("a.json", json.dumps(MESSAGE, indent=2).encode(), [(1, MESSAGE)]),
]


@pytest.mark.parametrize(("name", "content", "expected"), READ)
def test_records_have_their_lines_in_files_as_people_have_them(name, content, expected, tmp_path):
    file = tmp_path / name
    file.write_bytes(content)
    items = [(item.where, item.record) for item in read_file(file.suffix[1:], file)]
    assert [where for where, _ in items] == [f"{file}:{line}" for line, *_ in expected]
    for (_, record), (_, *values) in zip(items, expected):
        assert values in ([record], list(record.values()))


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


def test_only_so_many_bytes_of_a_text_are_read_at_once(tmp_path):
    file = tmp_path / "long.txt"
    with file.open("w") as stream:
        stream.write("a line\n" * 1000)
        stream.truncate(200 << 30)  # a hole: it takes no room on the disk
    item = next(read_file("text", file, 3500))
    assert 3500 <= item.bytes <= 3510
