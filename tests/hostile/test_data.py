"""Data that is too much, lies, or is no file: exit 2 with the file and the line or row."""

import gzip
import json
import os
import struct
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import yaml

from pion.data.documents.file_to_documents import (
    LONGEST_LINE,
    Span,
    json_lines,
    parquet_rows,
    text_documents,
)
from pion.data.records.fields import NOT_READ
from pion.errors import BadInput
from pipeline.job import Job
from pipeline.stages.prepare import prepare_part
from tests.hostile.in_process import MEMORY, NO_FILES, ends_with, little_memory, refusal
from tests.support.corpora import SEQ_LEN, model_of, save_tokenizer
from tests.support.finished_run import make_run

GOOD_LINE = json.dumps({"text": "a text " * 20}).encode() + b"\n"
# A whole job: a run of few seconds, if it gets so far.
JOB = {
    "name": "attacked",
    "model": model_of(400),
    "tokenizer": {"file": "tokenizer.json"},
    "pretrain": {"steps": 1, "global_batch": 1, "warmup_steps": 0},
    "hardware": {"workers": 0},
}


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    save_tokenizer(path)
    return path


@pytest.fixture
def here(tmp_path, tokenizer_file, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tokenizer.json").hardlink_to(tokenizer_file)
    return tmp_path


def job_of(kind, path, **data):
    """Return the job that trains on these files of the working directory."""
    return {**JOB, "data": {"seq_len": SEQ_LEN, "sources": [{"kind": kind, "path": path}], **data}}


def prepare_refuses(kind, path, memory=MEMORY, **data):
    """Return the message with which the first stage of such a job ends. The exit code is 2."""
    job = Job.model_validate(job_of(kind, path, **data))
    with little_memory(memory), pytest.raises(BadInput) as refused:
        prepare_part(job, "pretrain", Path("prepared"), lambda message: None)
    return str(refused.value)


# By kind of source: a file that is hostile, its content, and what the message says about it.
RUNS = {
    "jsonl": ("a.jsonl", b'{"n": ' + b"9" * 5000 + b"}\n", "a.jsonl:1 is not valid JSON"),
    "text": ("a.txt", b"a\n" + b"x" * 16_000_001, "a.txt:2: the line has more than 16,000,000"),
    "parquet": ("a.parquet", b"PAR1" * 9, "a.parquet: not a readable parquet file"),
    "npy": ("a.npy", b"\x93NUMPY\x02\0\xff\xff\xff\xff{", "a.npy: can't read this .npy shard"),
    "bin": ("a.bin", b"\1\2\3", "a.bin: can't read this .bin shard"),
}


@pytest.mark.parametrize("kind", RUNS)
def test_a_run_ends_with_code_2_and_begins_nothing(here, kind):
    name, content, reason = RUNS[kind]
    Path(name).write_bytes(content)
    Path("job.yaml").write_text(yaml.safe_dump(job_of(kind, name)))
    message = refusal("run", "job.yaml")
    assert f"{here}/{reason}" in message


# ---------------------------------------------------------------- lines

LINES = {
    "5,000 digits": (b'{"text": "a", "n": ' + b"9" * 5000 + b"}", "value has 5000 digits"),
    "deep": (b'{"text": ' * 3000, "nested deeper than 64 levels"),
    "deep and closed": (b"[" * 900 + b"]" * 900, "nested deeper than 64 levels"),
    "deep by 65": (b'{"text": "a", "x": ' + b"[" * 64 + b"]" * 64 + b"}", "nested deeper than"),
    "a list": (b"[1, 2]", "found a list instead of a JSON object"),
    "not UTF-8": (b'{"text": "\xff"}', "not UTF-8 text at byte 10"),
    "UTF-16": ('{"text": "a"}'.encode("utf-16"), "not UTF-8"),
    "cut": (b'{"text": "a', "is not valid JSON"),
    "a control character": (b'{"text": "\0"}', "is not valid JSON"),
    "no text": (b'{"text": {"a": 1}}', "field 'text' is not text but dict"),
    "another field": (b'{"body": "a"}', "no field 'text'"),
}


# A file that is refused is hashed first, a second for each GB.
ENDLESS = MEMORY // 8


def write_endless(path, beginning):
    """Write a file whose second line has more bytes than a command may allocate."""
    if path.suffix == ".gz":
        zeros = gzip.compress(b"\0" * (1 << 24), 1)
        path.write_bytes(gzip.compress(beginning) + zeros * (ENDLESS // (1 << 24) + 1))
    else:
        path.write_bytes(beginning)
        os.truncate(path, ENDLESS)  # a hole, which takes no space on the disk


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.txt"])
def test_an_endless_line_is_refused_with_file_line_and_option(here, name):
    write_endless(Path(name), GOOD_LINE)
    message = prepare_refuses("text" if name == "a.txt" else "jsonl", name, ENDLESS)
    assert f"{here / name}:2: the line has more than 16,000,000 bytes" in message
    assert "raise data.max_line_mb" in message


def test_the_option_sets_the_bound(here):
    Path("a.jsonl").write_bytes(GOOD_LINE * 2)
    message = prepare_refuses("jsonl", "a.jsonl", max_line_mb=0.0001)
    assert "a.jsonl:1: the line has more than 100 bytes" in message


@pytest.mark.parametrize("extra", [0, 1])
def test_a_line_of_exactly_the_bound_is_read_with_and_without_its_end(tmp_path, extra):
    lines, text = tmp_path / "a.jsonl", tmp_path / "a.txt"
    lines.write_bytes(b'"' + b"x" * (98 + extra) + b'"\n"' + b"y" * 98 + b'"')
    text.write_bytes(b"x" * (100 + extra) + b"\n" + b"y" * 100)
    if extra:
        with pytest.raises(BadInput, match=r"a\.jsonl:1: the line has more than 100 bytes"):
            list(json_lines(lines, 100))
    else:
        assert [value for _, value in json_lines(lines, 100)] == ["x" * 98, "y" * 98]
    assert sum(len(d.text) for d in text_documents([Span(text)], "file", "k", 100)) == 201 + extra


def test_honest_lines_of_half_the_bound_are_read(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    long = {"text": "x" * (LONGEST_LINE // 2), "score": float("nan"), "deep": [[[[[1]]]]]}
    with gzip.open(path, "wb", 1) as file:
        file.write(json.dumps(long).encode() + b'\n{"text": "half \\ud800", "n": 1e999}\n')
    (_, first), (_, second) = json_lines(path)
    assert len(first["text"]) == LONGEST_LINE // 2
    assert second["n"] == float("inf")


# ---------------------------------------------------------------- what is no file


@pytest.mark.parametrize("attack", ["pipe", "link to a device", "device", "link to itself", "NUL"])
@pytest.mark.parametrize("kind", RUNS)
def test_a_source_that_is_no_file_is_refused_at_once(here, kind, attack):
    path = Path(RUNS[kind][0])
    if attack in NO_FILES:
        NO_FILES[attack](path)
    given = {"device": "/dev/zero", "NUL": "a\0b"}.get(attack, str(path))
    message = prepare_refuses(kind, given)
    if attack in ("link to itself", "NUL"):
        assert f"{given!r} is no path of a file" in message
    else:
        place = (here / given).resolve()  # a link's target
        assert f"data.sources.0.path: {place} is not a regular file" in message


# ---------------------------------------------------------------- arrays


def npy(header, data=b"\0" * 4096, version=1):
    """Return an `.npy` file with a header of our own."""
    size = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + size + header.encode() + data


def described(shape, descr="'<u2'", order="False"):
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}}}\n"


BOMB = b"cposix\nsystem\n(S'touch exploded'\ntR."
HUGE = f"(1{'0' * 3000}, 1{'0' * 3000})"
ARRAYS = {
    "objects": (npy(described("(1, 32)", "'|O'"), BOMB), "contains object"),
    "more rows than bytes": (npy(described("(10000000000000, 32)")), "truncated"),
    "fewer rows than bytes": (npy(described("(1, 32)")), "too long"),
    "negative lengths": (npy(described("(-2, -32)")), "its shape is impossible"),
    "a negative length": (npy(described("(-64, 32)")), "its shape is impossible"),
    "lengths of 3,000 digits": (npy(described(HUGE)), "its shape is impossible"),
    "lengths of 5,000 digits": (npy(described(f"({'9' * 5000}, 32)")), "can't read this .npy"),
    "no length": (npy(described("()")), "C-ordered"),
    "columns": (npy(described("(64, 32)", order="True")), "C-ordered"),
    "floats": (npy(described("(64, 32)", "'<f2'")), "token ids must be integers"),
    "records": (npy(described("(64, 32)", "[('a', '<u2')]")), "token ids must be integers"),
    "no type": (npy(described("(64, 32)", "'nonsense'")), "can't read this .npy"),
    "nested brackets": (npy("(" * 9000), "can't read this .npy"),
    "an open text": (npy("'''"), "can't read this .npy"),
    "code": (npy("__import__('os').system('touch exploded')"), "can't read this .npy"),
    "no header": (npy("[]"), "can't read this .npy"),
    "a header of 4 GiB": (b"\x93NUMPY\x02\0\xff\xff\xff\xff{'descr'", "can't read this .npy"),
    "a long header": (npy(described("(64, 32)") + " " * 100_000, version=2), "can't read this"),
    "another file": (b"PK\x03\x04", "can't read this .npy"),
    "nothing": (b"", "can't read this .npy"),
}


def bin_header(*values):
    return np.array([*values, *[0] * (256 - len(values))], "<i4").tobytes()


BINS = {
    "more tokens than bytes": (
        bin_header(20240520, 1, 2**31 - 1) + bytes(64),
        " 4,294,968,318 bytes, the file has 1,088",
    ),
    "fewer tokens than bytes": (bin_header(20240520, 1, 1) + b"\0" * 64, "too long"),
    "negative tokens": (bin_header(20240520, 1, -32) + b"\0" * 64, "a.bin"),
    "another number": (bin_header(20240521, 1, 32) + b"\0" * 64, "magic 20240520 and version 1"),
    "another version": (bin_header(20240520, 2, 32) + b"\0" * 64, "magic 20240520 and version 1"),
    "cut": (bin_header(20240520, 1, 32)[:100], "not a .bin shard"),
    "three bytes": (b"\1\2\3", "can't read this .bin shard"),
    "nothing": (b"", "not a .bin shard"),
    "ids beyond the vocabulary": (bin_header(20240520, 1, 3200) + b"\xff" * 6400, "has id 65,535"),
}


def test_rows_that_no_memory_holds_are_refused(here):
    Path("a.jsonl").write_bytes(GOOD_LINE * 50)
    message = prepare_refuses("jsonl", "a.jsonl", shard_rows=100_000_000)
    assert "does not fit into memory. Lower data.shard_rows" in message


# ---------------------------------------------------------------- tables


def table(path, **columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), path, compression="zstd")
    return Path(path).read_bytes()


TABLES = {
    "another file": (lambda: b"PK\x03\x04" * 9, "not a readable parquet file"),
    "only the magic": (lambda: b"PAR1PAR1", "not a readable parquet file"),
    "a long footer": (lambda: b"PAR1\xff\xff\xff\x7fPAR1", "not a readable parquet file"),
    "nothing": (lambda: b"", "not a readable parquet file"),
    "cut": (lambda: table("t", text=["a"] * 100)[:-9], "not a readable parquet file"),
    "other columns": (lambda: table("t", body=["a"]), "no field 'text'; its fields: body"),
    "numbers": (lambda: table("t", text=[1]), "field 'text' is not text but int"),
    "bytes": (lambda: table("t", text=[b"\xff"]), "field 'text' is not text but bytes"),
    "one long text many times": (
        lambda: table("t", text=["a", *["x" * 10_001] * 20]),
        "row 2: text has more than 10,000 bytes",
    ),
    "a long list": (
        lambda: table("t", text=[[0] * 1251]),
        "row 1: text has more than 10,000 bytes",
    ),
}


# ---------------------------------------------------------------- each of them


def between_good_lines(line):
    return GOOD_LINE + b"\n" + line + b"\n" + GOOD_LINE


# By kind of source: its file, and what may be in it, with the reason for which it is refused.
FILES = {
    "jsonl": ("a.jsonl", LINES, between_good_lines),
    "jsonl in gzip": ("a.jsonl.gz", LINES, lambda line: gzip.compress(between_good_lines(line))),
    "npy": ("a.npy", ARRAYS, bytes),
    "bin": ("a.bin", BINS, bytes),
    "parquet": ("a.parquet", TABLES, lambda make: make()),
}


ATTACKED = [(kind, attack) for kind, (_, table, _) in FILES.items() for attack in table]


@pytest.mark.parametrize(("kind", "attack"), ATTACKED)
def test_a_hostile_file_is_refused_with_its_name_and_the_reason(here, kind, attack):
    name, table, content_of = FILES[kind]
    content, reason = table[attack]
    Path(name).write_bytes(content_of(content))
    longest = 0.01 if kind == "parquet" else 1
    message = prepare_refuses(kind.split()[0], name, max_line_mb=longest)
    assert str(here / name) + (":3" if "jsonl" in kind else "") in message
    assert reason in message
    assert not Path("exploded").exists()


def test_a_table_with_any_byte_changed_is_read_or_refused(tmp_path):
    content = table(str(tmp_path / "t"), text=[f"text {n}" for n in range(100)], n=range(100))
    refusals = []
    with little_memory():
        for place in range(4, len(content), 41):
            path = tmp_path / "a.parquet"
            changed = bytes([content[place] ^ 0x55])
            path.write_bytes(content[:place] + changed + content[place + 1 :])
            try:
                list(parquet_rows(path, ("text",), 1000))
            except BadInput as error:
                refusals.append(str(error))
    assert len(refusals) > 10
    assert all("a.parquet" in refusal for refusal in refusals)


def test_an_honest_table_is_read_only_as_far_as_it_is_needed(tmp_path):
    table(str(tmp_path / "t"), text=["x" * 500, "b"], blob=[b"\xff" * 1001, b""])
    assert list(parquet_rows(tmp_path / "t", ("text",), 1000)) == [
        {"text": "x" * 500, "blob": NOT_READ},
        {"text": "b", "blob": NOT_READ},
    ]


# ---------------------------------------------------------------- `pion eval`


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    make_run(folder, saves=[("pretrain", 10)], finished=["pretrain"])
    return f"{folder}/demo"


PACKS = {
    "5,000 digits": (b'{"answer": ' + b"9" * 5000 + b"}", ":1 is not valid JSON"),
    "deep": (b"[" * 100_000, ":1 is not valid JSON (nested deeper than 64 levels)"),
    "endless": (b"x" * (LONGEST_LINE + 1), ":1: the line has more than 16,000,000 bytes"),
    "not UTF-8": (b"\xff", ":1: not UTF-8 text"),
    "nothing": (b"", ": the file has no question"),
}


@pytest.mark.parametrize("attack", PACKS)
def test_a_hostile_pack_is_refused_with_file_and_line(demo, tmp_path, attack):
    content, reason = PACKS[attack]
    pack = tmp_path / "pack.jsonl"
    pack.write_bytes(content)
    message = refusal("eval", demo, pack)
    assert f"{pack}{reason}" in message


@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
@pytest.mark.parametrize("kind", ["pipe", "link to a device", "folder", "missing"])
def test_eval_of_what_is_no_file_is_refused_at_once(demo, tmp_path, kind, suffix):
    path = tmp_path / f"a{suffix}"
    if kind != "missing":
        NO_FILES[kind](path)
    message = refusal("eval", demo, path)
    assert str(path) in message
    assert "is not a regular file, so it was not read" in message or kind == "missing"


def test_a_question_with_half_a_character_is_asked(demo, tmp_path):
    pack = tmp_path / "pack.jsonl"
    line = '{"context": "a \\ud800", "choices": [" b", "\\udc00"], "answer": 0, "x": NaN}\n'
    pack.write_text(line)
    assert "1 questions" in ends_with(0, "eval", demo, pack)
