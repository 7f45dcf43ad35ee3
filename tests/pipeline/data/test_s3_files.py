"""Sources in a bucket: the rows of the same files on disk, or an error that says what to do."""

import re
from contextlib import nullcontext
from pathlib import Path

import pytest

from pion.data.documents import file_to_documents
from pion.data.documents.find_files import by_splits, find_files
from pion.errors import BadInput, PionError
from pipeline.data import conversations_to_rows, s3_files
from pipeline.data.encode_piece import encode_piece
from pipeline.data.fingerprint import changed_sources
from pipeline.data.s3_files import S3File
from pipeline.data.tasks import InThisProcess
from pipeline.job.file import load_job
from pipeline.rehearsal.rehearse import rehearse
from pipeline.state.stores import retry
from tests.pipeline.data.test_prompts import asked
from tests.pipeline.data.test_prompts import of as prompts_of
from tests.pipeline.rehearsal.jobs import pair_job
from tests.pipeline.stages.test_prepare_in_pieces import GOLDEN, Sent, copied
from tests.support.bucket_files import BucketFiles
from tests.support.corpora import prepare
from tests.support.piece_corpora import BUFFER, KINDS, PART_BYTES, corpus_job, hashes_of, result_of


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Small parts, so that small files have many; requests, so that they need many; and waits."""
    monkeypatch.setattr(file_to_documents, "PART_BYTES", PART_BYTES)
    monkeypatch.setattr(conversations_to_rows, "BUFFER", BUFFER)
    monkeypatch.setattr(s3_files, "FIRST_BYTES", 512)
    monkeypatch.setattr(s3_files, "MOST_BYTES", 8192)
    monkeypatch.setattr(retry, "BASE_SECONDS", 0.001)


@pytest.fixture
def objects(s3, proxy, tmp_path):
    return BucketFiles(s3, tmp_path)


def in_bucket(objects, kind, folder, times=1):
    """Return the job of a corpus, whose only source is in a bucket, and the part that reads it."""
    corpus_job(kind, folder, sft=kind == "sft", times=times)
    objects.let_read(folder / "job.yaml")
    return load_job(folder / "job.yaml"), "sft" if kind == "sft" else "pretrain"


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*KINDS, "sft"])
def test_the_rows_are_those_of_the_files_on_disk_also_in_other_processes_and_bad_weather(
    kind, objects, proxy, tmp_path
):
    job, part = in_bucket(objects, kind, tmp_path)
    proxy.page_size = 2
    proxy.storm(every=31)
    prepare(job, tmp_path / "data", part=part, tasks=lambda: nullcontext(Sent()), least=0,
            piece_bytes=9000)  # fmt: skip
    assert result_of(job, tmp_path / "data") == GOLDEN[kind]
    assert proxy.count("GET .*text|talks") > 3


@pytest.mark.parametrize("part", ["prefer", "reinforce"])
def test_preferences_and_prompts_are_those_of_the_files_on_disk(part, objects, tmp_path):
    job = pair_job(tmp_path)
    if part == "reinforce":
        job = prompts_of(tmp_path, [asked(number) for number in range(60)])
    prepare(job, tmp_path / "here", part=part)
    objects.let_read(tmp_path / "job.yaml")
    prepare(load_job(tmp_path / "job.yaml"), tmp_path / "there", part=part)
    assert hashes_of(tmp_path / "there") == hashes_of(tmp_path / "here") != {}


# ---------------------------------------------------------------- which objects

FILES = (
    *("a.jsonl", "b[1].jsonl", "sub/train.jsonl.gz", "sub/test.jsonl", "sub/deep/valid-2.jsonl"),
    *(".hidden/a.jsonl", "sub/._a.jsonl", "other.txt", "sub-2/c.jsonl", "tail.parquet"),
)


@pytest.mark.parametrize(
    "path",
    [
        *("a.jsonl", "other.txt", "", "sub", "sub/", "*.jsonl", "**/*.jsonl", "*/*.jsonl*"),
        *("sub/**", "sub*/?.jsonl", "[ab]*.jsonl", "b[1].jsonl", "**/deep/*", "*/deep/v*"),
    ],
)
def test_the_objects_are_those_files_that_the_same_path_names_on_a_disk(objects, tmp_path, path):
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"{}")
    objects.put_all()
    objects.put("sub/", b"")  # as consoles mark folders

    def named(path, root):
        files, words = find_files(path, (".jsonl", ".jsonl.gz"), "path")
        splits = by_splits(path, files, records=True)
        held_out = sorted(map(str, splits.held_out or ()))
        about = repr(([str(file) for file in splits.files], held_out, splits.words, words))
        return about.replace(root, "")

    there = named(S3File.of(f"{objects.url}/{path}".rstrip("/")), objects.url)
    here = named(tmp_path / path, str(tmp_path))
    hidden = r"'left out, hidden: [^']+'"  # globs of a disk do not even see hidden files
    assert re.sub(hidden, "", there) == re.sub(hidden, "", here)


def test_what_is_no_path_is_not_read(objects, tmp_path):
    objects.put("text//a.jsonl", b"{}")
    with pytest.raises(BadInput, match="a part of this name is empty"):
        S3File.of(f"{objects.url}/text").named((".jsonl",))


# ---------------------------------------------------------------- objects that change


class Changing(InThisProcess):
    """Encodes in other processes, and does something to the objects before the second piece; or, if
    it is `late`, after the last."""

    def __init__(self, change, *, late):
        self._change, self._late, self._done = change, late, 0

    def map(self, work, shared, items):
        for item in items:
            self._done += work is encode_piece
            if self._done == 2 and not self._late:
                self._change()
            yield work(shared, copied(item))
        if work is encode_piece and self._late:
            self._late = self._change()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name", "change", "late", "says"),
    [
        ("jsonl", "c.jsonl", lambda old: old + old, False, "c.jsonl was changed or deleted while"),
        ("jsonl", "c.jsonl", lambda old: old[:9], False, "c.jsonl was changed or deleted while"),
        ("jsonl", "c.jsonl", lambda old: None, False, "c.jsonl was changed or deleted while it"),
        ("parquet", "b.parquet", lambda old: old + old, False, "b.parquet was changed or deleted"),
        ("jsonl", "d.jsonl", lambda old: b"{}", True, "the files have changed while they were"),
        ("jsonl", "a.jsonl", lambda old: old[::-1], True, "the files have changed while they"),
        ("jsonl", "a.jsonl", lambda old: old, False, None),
    ],
)
def test_objects_that_change_while_they_are_prepared_are_refused_and_the_next_start_reads_them(
    kind, name, change, late, says, objects, tmp_path, monkeypatch
):
    monkeypatch.setattr(s3_files, "FIRST_BYTES", 1 << 16)
    job, _ = in_bucket(objects, kind, tmp_path)
    path = tmp_path / "text" / name
    changing = Changing(
        lambda: objects.put(f"text/{name}", change(path.read_bytes() if path.exists() else b"")),
        late=late,
    )
    options = {"tasks": lambda: nullcontext(changing), "least": 0, "piece_bytes": 9000}
    if says is not None:
        with pytest.raises(BadInput, match=says) as refused:
            prepare(job, tmp_path / "data", **options)
        assert "Nothing was trained" in str(refused.value)
        assert not (tmp_path / "data/dataset.json").exists()
        objects.put("text/d.jsonl", None)
        objects.put_all()
    prepare(job, tmp_path / "data", **options)
    assert result_of(job, tmp_path / "data") == GOLDEN[kind]


def test_a_source_that_changes_after_it_was_prepared_is_named(objects, proxy, tmp_path):
    job, _ = in_bucket(objects, "jsonl", tmp_path)
    report = {"pretrain": prepare(job, tmp_path / "data").report}
    assert [*changed_sources(job, report)] == []
    objects.put("text/a.jsonl", b'{"text": "other"}\n')
    (named,) = changed_sources(job, report)
    assert named == ("data.sources.0", f"{objects.url}/text/*.jsonl")
    proxy.deny()
    assert [*changed_sources(job, report)] == []  # what can't be read is not needed any more


# ---------------------------------------------------------------- what a person can do


@pytest.mark.parametrize(
    ("path", "denied", "says"),
    [
        ("s3://no-such-bucket/x", {}, "list s3://no-such-bucket/x: bucket no-such-bucket does not"),
        ("s3://Not_A_Bucket/x", {}, "'Not_A_Bucket' can't be a bucket's name. Use s3://bucket/pre"),
        ("{bucket}/text//a", {}, "a part of this name is empty or `.`, so it was not read"),
        ("{bucket}/x*", {}, "path: no object .* is s3://.*x\\* or below it, and no other begins"),
        ("{bucket}/tex", {}, "or below it, but 3 others begin so, such as s3://.*/a.jsonl"),
        ("{bucket}", {"match": "list-type"}, "Cannot list .*denied .* need s3:GetObject and s3:Li"),
        ("{bucket}", {"match": "jsonl"}, "Cannot read s3://.*/text/a.jsonl: access was denied"),
        ("{bucket}", {"code": "SignatureDoesNotMatch"}, "the secret key does not belong to the a"),
        ("{bucket}", {"code": "SlowDown", "status": 503}, "Cannot list .*: the store answered 503"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_bucket_is_said_with_what_to_do(
    path, denied, says, objects, proxy, tmp_path
):
    job, _ = in_bucket(objects, "jsonl", tmp_path)
    job.data.sources[0].path = path.format(bucket=objects.url)
    if denied:
        proxy.deny(**denied)
    with pytest.raises(PionError, match=says) as refused:
        prepare(job, tmp_path / "data")
    # After an outage, a rented machine starts again by itself.
    assert refused.value.exit_code == (75 if denied.get("status") == 503 else 2)


def test_of_large_objects_only_the_beginning_is_read_in_advance(
    objects, proxy, tmp_path, monkeypatch
):
    monkeypatch.setattr("pipeline.rehearsal.head.TEXT_BYTES", (60_000, 40_000))
    monkeypatch.setattr(s3_files, "MOST_BYTES", 1 << 22)
    for kind in ("jsonl", "parquet", "paragraphs"):
        folder = tmp_path / kind
        folder.mkdir()
        job, _ = in_bucket(objects, kind, folder, times=32)
        before = len(proxy.requests)
        assert rehearse(job).failed == {}
        ranges = re.findall(r"bytes=(\d+)-(\d+)", " ".join(proxy.requests[before:]))
        total = sum(int(last) - int(first) + 1 for first, last in ranges)
        size = sum(path.stat().st_size for path in Path(folder, "text").iterdir())
        assert 0 < total < size / 2, kind
