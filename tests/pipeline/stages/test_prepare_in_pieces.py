"""prepare in pieces: the rows are those of one process, whatever is cut where."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import re
import shutil
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from pion.data.documents import file_to_documents
from pion.data.documents.python_docs import is_held_out
from pion.errors import BadInput
from pipeline.console.messages import Note, PrepareProgress, Shown
from pipeline.data import conversations_to_rows, pieces
from pipeline.data.pieces import Piece
from pipeline.data.source_reading import LEAST_BYTES
from pipeline.data.tasks import InThisProcess
from pipeline.job import Job
from pipeline.stages.prepare import open_data
from tests.support.corpora import files_of, job_by_file, prepare, sentences
from tests.support.piece_corpora import (
    BUFFER,
    KINDS,
    PART_BYTES,
    PIECES,
    change_piece,
    corpus_job,
    hashes_of,
    result_of,
)
from tests.support.tokenizer_kinds import without_bytes

GOLDEN = json.loads((PIECES / "golden.json").read_text())


def in_pieces(job, folder, tasks=None, **options):
    """Prepare in pieces of 9,000 bytes, unless `options` say otherwise."""
    options = {"least": 0, "piece_bytes": 9000} | options
    prepare(job, folder, tasks=lambda: nullcontext(tasks or InThisProcess()), **options)


@pytest.mark.slow
@pytest.mark.parametrize("piece_bytes", [1, pytest.param(30_000, marks=pytest.mark.soak)])
@pytest.mark.parametrize(
    "kind",
    [pytest.param(k, marks=pytest.mark.soak if k == "paragraphs" else ()) for k in KINDS],
)
def test_the_rows_are_those_of_the_code_before_there_were_pieces(
    kind, piece_bytes, tmp_path, monkeypatch
):
    monkeypatch.setattr(file_to_documents, "PART_BYTES", PART_BYTES)
    job = corpus_job(kind, tmp_path)
    in_pieces(job, tmp_path / "data", piece_bytes=piece_bytes)
    assert result_of(job, tmp_path / "data") == GOLDEN[kind]
    assert not list((tmp_path / "data").rglob("pieces"))


def test_the_rows_of_conversations_are_those_of_the_code_before_there_were_pieces(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(conversations_to_rows, "BUFFER", BUFFER)
    job = corpus_job("sft", tmp_path, sft=True)
    tasks, finished = Watched(), list[Path]()
    in_pieces(job, tmp_path / "data", tasks, part="sft", finished=finished.append)
    assert result_of(job, tmp_path / "data") == GOLDEN["sft"]
    assert len(tasks.done) > 150 / BUFFER
    assert {path.name for path in finished} >= {"000000.npz", "shard_00001.flags.npy"}


def copied(value):
    """Return a value as Ray brings it to another process."""
    return pickle.loads(pickle.dumps(value))  # noqa: S301


class Sent(InThisProcess):
    """Does the work with copies of what other processes would get, and returns copies. As Ray, it
    begins no other work before all results are taken."""

    busy = False

    def map(self, work, shared, items):
        assert not self.busy
        self.busy = True
        for item in items:
            there, its_shared, its_item = copied((work, shared, item))
            yield copied(there(its_shared, its_item))
        self.busy = False


@pytest.mark.parametrize("kind", ["jsonl", "sft"])
def test_what_is_sent_to_other_processes_and_back_arrives_as_it_is(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(file_to_documents, "PART_BYTES", PART_BYTES)
    monkeypatch.setattr(conversations_to_rows, "BUFFER", BUFFER)
    job, data = corpus_job(kind, tmp_path, sft=kind == "sft"), tmp_path / "data"
    part = "sft" if kind == "sft" else "pretrain"
    in_pieces(job, data, Sent(), part=part, piece_bytes=30_000)
    assert result_of(job, data) == GOLDEN[kind]


@pytest.mark.parametrize(("kind", "most"), [("gz", "LARGEST_GZ"), ("parquet", "LARGEST_PIECE")])
def test_what_can_not_be_cut_and_is_too_large_for_the_memory_is_read_by_one_process(
    kind, most, tmp_path, monkeypatch
):
    monkeypatch.setattr(pieces, most, 2000)
    job, tasks, said = corpus_job(kind, tmp_path), Watched(), list[Shown]()
    in_pieces(job, tmp_path / "data", tasks, say=said.append, piece_bytes=1000)
    assert result_of(job, tmp_path / "data") == GOLDEN[kind]
    assert tasks.done == []
    (note,) = (m.text for m in said if isinstance(m, Note) and "one process" in m.text)
    assert f"a.{'jsonl.gz' if kind == 'gz' else kind} can't be cut" in note


# ---------------------------------------------------------------- bad input


def lines(texts):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def table(column):
    content = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), content, row_group_size=7)
    return content.getvalue()


GOOD = lines([sentences(i, 6) for i in range(200)])
TEXT = "\n\n".join(sentences(i, 6) for i in range(200)).encode()
BAD = {
    "cut in the last piece": (
        "jsonl",
        {"a.jsonl": GOOD, "b.jsonl": GOOD + b'\n{"text": "cut o'},
        r"b\.jsonl:202 is not valid JSON",
    ),
    "no object": ("jsonl", {"a.jsonl": GOOD + b"[1]\n" + GOOD}, r"a\.jsonl:201: found a list"),
    "two mistakes": (
        "jsonl",
        {"a.jsonl": GOOD + b"1\n" + GOOD + b"2\n"},
        r"a\.jsonl:201: found a int",
    ),
    "no field": ("jsonl", {"a.jsonl": GOOD + b'{"x": 1}\n'}, r"a\.jsonl:201: no field 'text'"),
    "not UTF-8": ("jsonl", {"a.jsonl": GOOD + b'{"text": "\xff"}\n'}, r"a\.jsonl:201: not UTF-8"),
    "longer than a piece and than a line may be": (
        "jsonl",
        {"a.jsonl": GOOD + lines(["x" * 60_000]) + GOOD},
        r"a\.jsonl:201: the line has more than 50,000 bytes",
    ),
    "endless blank lines": (
        "jsonl",
        {"a.jsonl": GOOD + b"\r\n" * 40_000 + GOOD},
        r"a\.jsonl:\d+: more than 50,000 bytes or 1,000,000 lines are blank",
    ),
    "a damaged .gz": (
        "jsonl",
        {"a.jsonl": GOOD, "b.jsonl.gz": gzip.compress(GOOD)[:-30]},
        r"b\.jsonl\.gz: damaged gzip file",
    ),
    "all blank": ("jsonl", {"a.jsonl": b'{"text": " "}\n' * 900}, "every 'text' is blank"),
    "all empty": ("jsonl", {"a.jsonl": b"", "b.jsonl": b"\n"}, "the corpus is empty: no line"),
    "empty texts": ("text", {"a.txt": b" \n", "b.txt": b""}, "the corpus is empty: no text"),
    "text not UTF-8": ("text", {"a.txt": TEXT + b"\xff\n" + TEXT}, "not UTF-8 text at byte "),
    "a long line of text": (
        "text",
        {"a.txt": TEXT + b"\n" + b"x" * 60_000 + b"\n" + TEXT},
        r"a\.txt:400: the line has more than 50,000 bytes",
    ),
    "lists in a table": (
        "parquet",
        {"a.parquet": table([[str(i)] for i in range(100)])},
        r"a\.parquet row 1: field 'text' is not text but list",
    ),
    "no table": ("parquet", {"a.parquet": GOOD}, r"a\.parquet: not a readable parquet file"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_mistake_is_reported_as_one_process_does_before_anything_is_written(
    name, tmp_path, monkeypatch
):
    monkeypatch.setattr(file_to_documents, "PART_BYTES", PART_BYTES)
    kind, files, message = BAD[name]
    (tmp_path / "text").mkdir()
    for file, content in files.items():
        (tmp_path / "text" / file).write_bytes(content)
    data = {"sources": [{"kind": kind, "path": "text"}], "max_line_mb": 0.05}
    job = job_with_tokenizer(tmp_path, data)
    finished = []
    with pytest.raises(BadInput, match=message) as there:
        in_pieces(job, tmp_path / "pieces", finished=finished.append)
    with pytest.raises(BadInput) as here:
        prepare(job, tmp_path / "whole")
    assert str(there.value) == str(here.value)
    assert not list((tmp_path / "pieces").rglob("*.npy"))
    assert not finished


def test_a_mistake_in_the_last_source_is_reported_before_any_is_encoded(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(GOOD)
    (tmp_path / "b.jsonl").write_bytes(GOOD + b"[1]\n")
    sources = [{"kind": "jsonl", "path": f"{name}.jsonl"} for name in "ab"]
    job, tasks, finished = job_with_tokenizer(tmp_path, {"sources": sources}), Watched(), []
    with pytest.raises(BadInput, match=r"b\.jsonl:201: found a list"):
        in_pieces(job, tmp_path / "data", tasks, finished=finished.append)
    assert {work for work, _ in tasks.done} == {"count_piece"}
    assert not finished


@pytest.mark.parametrize(
    ("meddle", "why"),
    [
        (
            lambda file: file.write_bytes(lines(["one"]) + GOOD),
            r"sources\.0: the files have changed",
        ),
        (Path.unlink, r"a\.jsonl is gone, or a machine .* same place"),
    ],
)
def test_files_that_change_or_leave_after_they_were_counted_are_refused(meddle, why, tmp_path):
    class Meddling(InThisProcess):
        def map(self, work, shared, items):
            if work.__name__ == "encode_piece":
                meddle(tmp_path / "a.jsonl")
            return super().map(work, shared, items)

    job, finished = job_on(tmp_path, GOOD), []
    with pytest.raises(BadInput, match=why):
        in_pieces(job, tmp_path / "data", Meddling(), finished=finished.append)
    assert not finished


def test_characters_that_the_vocabulary_lacks_are_named_with_their_line(tmp_path):
    bad = lines(["a \x04 b"])
    (tmp_path / "a.jsonl").write_bytes(GOOD + b"\n" + bad + GOOD + bad)
    job = job_by_file(tmp_path, data={"sources": [{"kind": "jsonl", "path": "a.jsonl"}]})
    (tmp_path / "tokenizer.json").write_text(json.dumps(without_bytes()))
    for least in (0, LEAST_BYTES):
        data = tmp_path / f"data{least}"
        prepare(job, data, least=least, piece_bytes=9000)
        (source,) = open_data(data).report["sources"]
        assert f"{tmp_path}/a.jsonl:202 (U+0004); {tmp_path}/a.jsonl:403" in source["remarks"][0]


def test_a_piece_may_have_only_documents_that_are_held_out(tmp_path):
    texts = [sentences(i, 6) for i in range(400)]
    texts.sort(key=lambda text: not is_held_out(text, 0.1))
    job = job_on(tmp_path, lines(texts))
    for least in (0, LEAST_BYTES):
        prepare(job, tmp_path / f"{least}", least=least, piece_bytes=5000)
    assert hashes_of(tmp_path / "0") == hashes_of(tmp_path / f"{LEAST_BYTES}")


# ---------------------------------------------------------------- interruptions


class Watched(InThisProcess):
    """Notes which pieces are counted and encoded, by their first byte."""

    def __init__(self):
        self.done: list[tuple[str, int]] = []

    def map(self, work, shared, items):
        for item in items:
            start = item.spans[0].start if isinstance(item, Piece) else len(self.done)
            self.done.append((work.__name__, start))
            yield work(shared, item)


class Stop(Exception):
    pass


def stop_after(count):
    """Return what raises once it is told of file number `count`."""
    left = iter(range(count))

    def told(path):
        if next(left, None) is None:
            raise Stop

    return told


@dataclass
class Broken:
    """A job of which shards are written, and pieces that are in no shard; and its unbroken data."""

    job: Job
    folder: Path
    done: list[tuple[str, int]]

    def continued(self, data, **options):
        """Check that it continues to the unbroken data; return what was done."""
        tasks = Watched()
        in_pieces(self.job, data, tasks, **options)
        assert files_of(data) == files_of(self.folder / "unbroken")
        return tasks.done


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    folder, tasks = tmp_path_factory.mktemp("broken"), Watched()
    job = job_on(folder, GOOD + GOOD)
    with pytest.raises(Stop):
        in_pieces(job, folder / "data", finished=stop_after(25))
    in_pieces(job, folder / "unbroken", tasks)
    return Broken(job, folder, tasks.done)


@pytest.mark.slow
@pytest.mark.parametrize(
    "count", [2, 25, *(pytest.param(count, marks=pytest.mark.soak) for count in (0, 1, 11))]
)
def test_after_an_interruption_only_pieces_in_no_shard_are_encoded_again(broken, count, tmp_path):
    first = Watched()
    with pytest.raises(Stop):
        in_pieces(broken.job, tmp_path, first, finished=stop_after(count))
    second = broken.continued(tmp_path)
    # A shard has the ids of at most three pieces, and one more was at work.
    assert len(encoded(first.done) & encoded(second)) <= 4
    assert encoded(first.done) | encoded(second) == encoded(broken.done)


def encoded(done):
    """Return where the pieces that were encoded begin."""
    return {start for work, start in done if work == "encode_piece"}


@pytest.mark.parametrize(
    "damage",
    [
        *(b"", b"PK\x03\x04 half of it", {"key": "another"}, {"refusals": 5}),
        *({"counts": {"bytes": -1}}, {"counts": {"replaced": [1, 2]}}, {"counts": {"noted": 1}}),
        *({"columns": {"ids": np.array([{}])}}, {"columns": {"flags": np.zeros(3, np.uint8)}}),
    ],
    ids=str,
)
def test_what_was_kept_of_a_piece_and_is_not_its_own_is_encoded_again(broken, damage, tmp_path):
    data = shutil.copytree(broken.folder / "data", tmp_path / "data")
    if isinstance(damage, bytes):
        (data / "0" / "pieces" / "000001.npz").write_bytes(damage)
    else:
        change_piece(data / "0", 1, **{"columns": {"ids": np.zeros(9, np.int64)}} | damage)
    assert 0 < min(encoded(broken.continued(data))) < 20_000


def test_shards_of_other_pieces_or_of_an_older_version_are_written_again_with_a_sentence(
    broken, tmp_path
):
    data, said = shutil.copytree(broken.folder / "data", tmp_path / "data"), list[Shown]()
    in_pieces(broken.job, data, say=said.append, piece_bytes=14_000)
    assert hashes_of(data) == hashes_of(broken.folder / "unbroken")
    (note,) = (m.text for m in said if isinstance(m, Note) and "written again" in m.text)
    assert note.startswith(f"{data}/0: these shards can't be continued")


def test_it_says_which_piece_how_fast_and_how_long(tmp_path):
    job = job_on(tmp_path, GOOD)
    said = []
    in_pieces(job, tmp_path / "data", say=said.append)
    progress = [m for m in said if isinstance(m, PrepareProgress) and m.what.startswith("tok")]
    assert re.match(r"piece (\d+)/\1, [\d.]+ MB/s", progress[-1].detail), progress[-1]
    assert progress[-1].done == progress[-1].total
    assert progress[-1].eta == 0


def job_with_tokenizer(folder, data):
    """Return a job with a tokenizer that it has, and small shards."""
    job = job_by_file(folder, data={"shard_rows": 40} | data)
    (folder / "tokenizer.json").write_bytes((PIECES / "tokenizer.json").read_bytes())
    return job


def job_on(folder, content):
    """Return such a job on one file of JSON Lines."""
    (folder / "a.jsonl").write_bytes(content)
    return job_with_tokenizer(folder, {"sources": [{"kind": "jsonl", "path": "a.jsonl"}]})
