"""What can't be read is listed with file and line, and what follows is read if it can be."""

import csv
import gzip
import json

import pytest

from pion.data.documents.file_to_documents import LONGEST_LINE
from pipeline.new.read import Progress, read_file
from tests.support.own_data import bad_line, csv_texts, cut_gzip, latin1, parquet_texts


def read(kind, file, most=float("inf")):
    progress = Progress()
    return list(read_file(kind, file, most, progress)), progress


def problems(kind, file):
    return [item.problem for item in read(kind, file)[0] if item.problem is not None]


def test_lines_after_a_broken_line_are_read(tmp_path):
    file = bad_line(tmp_path)
    items, progress = read("jsonl", file)
    assert sum(item.record is not None for item in items) == 38
    third, seventh = problems("jsonl", file)
    assert third.startswith(f"{file}:3 is not valid JSON")
    assert seventh == f"{file}:7: found a list instead of a JSON object"
    assert progress.whole


def test_a_gzip_that_is_cut_off_gives_what_is_there_and_the_line(tmp_path):
    file = cut_gzip(tmp_path)
    items, _ = read("jsonl", file)
    good = sum(item.record is not None for item in items)
    assert good > 100
    (problem,) = problems("jsonl", file)
    assert problem.startswith(f"{file}: damaged gzip file")
    assert f"(after line {good:,})" in problem


def test_text_that_is_not_utf8_names_the_line(tmp_path):
    file = latin1(tmp_path)
    assert problems("text", file) == [
        f"{file}:2: not UTF-8 text; convert it with: iconv -f ENCODING -t UTF-8"
    ]


def test_a_table_names_lines_also_after_a_field_of_two_lines(tmp_path):
    file = csv_texts(tmp_path, 3)
    file.write_text(file.read_text() + "only one\n")
    items, _ = read("csv", file)
    assert [item.where for item in items] == [f"{file}:{line}" for line in (2, 4, 6, 8)]
    assert problems("csv", file) == [f"{file}:8: found 1 columns instead of 3 (title, body, year)"]


def test_a_long_field_is_read_and_other_readers_of_csv_keep_their_limit(tmp_path):
    before = csv.field_size_limit()
    file = tmp_path / "long.csv"
    file.write_text(f"title,body\none,{'x' * (before + 1)}\n")
    ((item,), _) = read("csv", file)
    assert len(item.record["body"]) == before + 1
    assert csv.field_size_limit() == before


def test_billions_of_blank_lines_of_a_small_packed_table_are_not_all_read(tmp_path):
    file = tmp_path / "blank.csv"
    file.write_bytes(gzip.compress(b"title,body\none,two\n" + b"\n" * 200_000))
    items, progress = read("csv", file, most=50_000)
    assert [item.record for item in items] == [{"title": "one", "body": "two"}]
    assert not progress.whole
    assert 0 < progress.stored <= file.stat().st_size


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a,a\n1,2\n", ":1: the first line must name the columns"),
        (b"", ":1: no names of columns"),
        (b'a,b\n1,2\n"x"y,2\n', ":3: not a row of a table"),
        (b"a,b\n1,\xfc\n", ":2: not UTF-8 text"),
        (b"sep=;\na;b\n1\n", ":3: found 1 columns instead of 2"),
    ],
)
def test_what_is_no_table_is_named(tmp_path, content, said):
    file = tmp_path / "t.csv"
    file.write_bytes(content)
    assert said in problems("csv", file)[-1]


def test_parquet_gives_rows_and_says_how_far_it_was_read(tmp_path):
    file = parquet_texts(tmp_path, 100)
    items, progress = read("parquet", file, most=2000)
    assert items[0].where == f"{file} row 1"
    assert set(items[0].record or {}) == {"story", "likes"}
    assert not progress.whole
    assert 0 < progress.stored < file.stat().st_size
    file.write_bytes(b"PAR1 not really")
    assert "not a readable parquet file" in problems("parquet", file)[0]


@pytest.mark.parametrize(
    ("content", "records"),
    [
        ("sep=;\na;b\n1;2\n", [{"a": "1", "b": "2"}]),
        (",a\n0,1\n", [{"Unnamed: 0": "0", "a": "1"}]),
        ("\ufeffa;b;;\n1;2;;\n", [{"a": "1", "b": "2", "Unnamed: 2": "", "Unnamed: 3": ""}]),
        ('"a\n(b)",c\n"1\n2",3\n', [{"a\n(b)": "1\n2", "c": "3"}]),
    ],
)
def test_tables_of_pandas_and_of_excel_are_read(tmp_path, content, records):
    file = tmp_path / "t.csv"
    file.write_text(content, encoding="utf-8")
    assert [item.record for item in read("csv", file)[0]] == records


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
    assert [item.record for item in read("json", file)[0]] == [record]


def test_a_line_of_a_text_that_a_run_would_refuse_is_refused(tmp_path):
    file = tmp_path / "one-line.txt"
    file.write_bytes(b"a line\n" + b"word " * (LONGEST_LINE // 5 + 1))
    assert problems("text", file)[-1].startswith(f"{file}:2: the line has more than 16,000,000")


def test_only_so_many_bytes_of_a_text_are_read(tmp_path):
    file = tmp_path / "long.txt"
    with file.open("w") as stream:
        stream.write("a line\n" * 1000)
        stream.truncate(200 << 30)  # a hole: it takes no room on the disk
    items, progress = read("text", file, most=3500)
    assert 3500 <= sum(item.bytes for item in items) == progress.stored <= 3510
    assert not progress.whole
