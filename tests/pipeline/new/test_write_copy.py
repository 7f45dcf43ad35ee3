"""A copy is whole or not there, and never replaces a file."""

import csv
import io
import json
import shutil

import pytest

from pion.data.records.layouts import read_conversation
from pion.errors import BadInput
from pipeline.new.write_copy import write_copy
from tests.pipeline.new.conftest import decided
from tests.support.own_data import alpaca, bad_line, csv_texts, cut_gzip
from tests.support.preference_files import pair_of


def data_set(path, **columns):
    (data,) = decided(path, **columns)
    return data


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_alpaca_in_a_list_becomes_lines_that_a_job_reads(tmp_path):
    copy = tmp_path / "copy.jsonl"
    assert write_copy(data_set(alpaca(tmp_path)), copy, skip=False) == (200, 0)
    first, second, *_ = lines(copy)
    assert list(first) == ["instruction", "input", "output"]
    asked, _ = read_conversation(second, "copy").messages
    assert asked["content"].endswith("?\n\nhere, there")


def test_what_can_t_be_read_is_left_out_only_if_that_is_asked_for(tmp_path):
    copy, source = tmp_path / "copy.jsonl", data_set(bad_line(tmp_path))
    with pytest.raises(BadInput, match=r":3 is not valid JSON .* Nothing was written"):
        write_copy(source, copy, skip=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["articles.jsonl"]
    assert write_copy(source, copy, skip=True) == (38, 2)
    records, left_out = write_copy(data_set(cut_gzip(tmp_path)), tmp_path / "rest.jsonl", skip=True)
    assert left_out == 1
    assert len(lines(tmp_path / "rest.jsonl")) == records > 100


def table_of(records, delimiter):
    stream = io.StringIO()
    table = csv.DictWriter(stream, records[0], delimiter=delimiter)
    table.writeheader()
    table.writerows(records)
    return stream.getvalue()


PAIRS = [pair_of(number, chosen=f"one; two, {number}") for number in range(40)]
LINES = "".join(json.dumps(record) + "\n" for record in PAIRS)
# The files of each case.
TABLES = {
    "a list": {"prefs.json": json.dumps(PAIRS)},
    "an object on each line": {"prefs.json": LINES},
    "csv": {"prefs.csv": table_of(PAIRS, ",")},
    "tsv": {"prefs.tsv": table_of(PAIRS, "\t")},
    "semicolons": {"prefs.csv": table_of(PAIRS, ";")},
    "bars": {"prefs.csv": table_of(PAIRS, "|")},
    "a byte order mark": {"prefs.csv": "\ufeff" + table_of(PAIRS, ",")},
    "two files": {"1.csv": table_of(PAIRS[:9], ","), "2.csv": table_of(PAIRS[9:], ";")},
}


@pytest.mark.parametrize("files", TABLES.values(), ids=TABLES)
def test_pairs_in_tables_become_lines(files, tmp_path):
    data, copy = tmp_path / "data", tmp_path / "copy.jsonl"
    data.mkdir()
    for name, text in files.items():
        (data / name).write_text(text)
    write_copy(data_set(data), copy, skip=False)
    assert lines(copy) == PAIRS


def test_an_existing_file_is_never_replaced(tmp_path):
    copy = tmp_path / "copy.jsonl"
    copy.write_text("mine")
    with pytest.raises(BadInput, match="exists, and Pion never overwrites a file"):
        write_copy(data_set(alpaca(tmp_path)), copy, skip=False)
    assert copy.read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["alpaca.json", "copy.jsonl"]


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(tmp_path):
    path = csv_texts(tmp_path)
    source = data_set(path, text="body")
    with path.open("r+b") as file:
        file.truncate(shutil.disk_usage(tmp_path).free + (1 << 30))  # a hole
    with pytest.raises(BadInput, match=r"the copy needs about .* are free"):
        write_copy(source, tmp_path / "copy.jsonl", skip=False)
    assert [p.name for p in tmp_path.iterdir()] == ["news.csv"]
