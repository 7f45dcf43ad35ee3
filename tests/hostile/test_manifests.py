"""Data sets that others prepared: each field of each record, with values that it can't have."""

import dataclasses
import json

import numpy as np
import pytest

import pion.data.shards
from pion.data.shard_writer import ShardWriter
from pion.data.shards import Manifest, Shard
from pion.errors import BadInput
from pion.untrusted import LARGEST_LISTING, LARGEST_RECORD
from pipeline.data.prepared import DATASET, open_data
from pipeline.data.shard_cache import ShardCache
from pipeline.stages.prepare import PINNED
from tests.hostile.in_process import NO_FILES, little_memory
from tests.support.corpora import make_job, npy_job, prepared, write_corpus

SHA256 = "0123456789abcdef" * 4
REMOTE = {"repo": "user/data", "revision": "abc", "path": "x/a.npy"}
SHARD = Shard("a.npy", 3, SHA256, 100, "uint16", 1, SHA256, 50, REMOTE)
MISSING = object()
# JSON, by what it is. A value in no field's own list is refused in every field.
VALUES = {
    "missing": MISSING,
    "null": "null",
    "true": "true",
    "text": '"x y/z"',
    "a list": "[[1]]",
    "an object": '{"a": {}}',
    "NaN": "NaN",
    "1e300": "1e300",
    "1e999": "1e999",
    "-1": "-1",
    "2 ** 63": str(2**63),
    "5,000 digits": "9" * 5000,
    "nested 100,000 deep": "[" * 100_000,
    "an escape": '"../../../etc/passwd"',
    "an absolute path": '"/etc/passwd"',
    "dots": '".."',
    "a NUL": '"a\\u0000b"',
    "a terminal escape": '"\\u001b[2J"',
    "half a character": '"\\ud800"',
    "nothing": '""',
}
# What older manifests may lack, and what has another meaning than a mistake.
MAY_BE = {
    "start": {"missing"},
    "flags_sha256": {"missing", "null"},
    "flags_bytes": {"missing"},
    "remote": {"missing", "null"},
    "pad": {"missing", "null"},
    "info": {"missing", "an object"},
    "records": {"missing", "null"},
    "remote.repo": {"text", "an escape", "an absolute path", "dots", "a NUL", "nothing"}
    | {"a terminal escape"},  # the Hub's client checks the names of repositories
    "remote.revision": {"text", "an escape", "an absolute path", "dots", "a NUL", "nothing"}
    | {"a terminal escape"},
    "remote.path": {"text", "a NUL", "a terminal escape"},
}


def written(document, field, value):
    """Return the JSON of a document whose field, by dotted path, has this JSON as its value."""
    document = json.loads(json.dumps(document))
    *parents, last = field.split(".")
    section = document
    for parent in parents:
        section = section[int(parent) if parent.isdecimal() else parent]
    if value is MISSING:
        del section[last]
    else:
        section[last] = "PLACE"
    return json.dumps(document).replace('"PLACE"', "" if value is MISSING else value)


# ---------------------------------------------------------------- manifest.json

MANIFEST = Manifest("tokens", 8, 100, (SHARD,), pad=1, info={"a": 1})
DOCUMENT = {
    "format": 1,
    "fingerprint": MANIFEST.fingerprint,
    **dataclasses.asdict(MANIFEST),
}
FIELDS = list(DOCUMENT)
FIELDS += [f"shards.0.{field.name}" for field in dataclasses.fields(Shard)]
FIELDS += [f"shards.0.remote.{key}" for key in REMOTE]


@pytest.mark.parametrize("field", FIELDS)
def test_a_manifest_with_a_hostile_field_is_refused_with_its_name(tmp_path, field):
    path = tmp_path / "manifest.json"
    path.write_text(written(DOCUMENT, "format", "1"))
    assert Manifest.read(path) == MANIFEST
    for name, value in VALUES.items():
        path.write_text(written(DOCUMENT, field, value))
        if name in MAY_BE.get(field.removeprefix("shards.0."), ()):
            continue
        with pytest.raises(BadInput) as error, little_memory():
            Manifest.read(path)
        assert str(path) in str(error.value), name
        if field != "fingerprint":  # anyone can write a fingerprint that fits
            assert "changed since it was written" not in str(error.value), name
        assert len(str(error.value)) < 1000, name


@pytest.mark.parametrize(
    "content", ["", "[]", "null", '{"format": 1', "[" * 100_000, '{"shards": {}}', "\0", "\ud800"]
)
def test_what_is_no_manifest_is_refused(tmp_path, content):
    path = tmp_path / "manifest.json"
    path.write_bytes(content.encode("utf-8", "surrogatepass"))
    with pytest.raises(BadInput, match=r"manifest\.json"):
        Manifest.read(path)


@pytest.mark.parametrize("kind", ["pipe", "link to a device", "folder"])
def test_a_manifest_that_is_no_file_is_refused_at_once(tmp_path, kind):
    path = tmp_path / "manifest.json"
    NO_FILES[kind](path)
    with pytest.raises(BadInput, match=r"manifest\.json is not a regular file"):
        Manifest.read(path)


def test_a_manifest_may_be_larger_than_another_record(tmp_path):
    assert LARGEST_LISTING >= 500 * pion.data.shards.MOST_SHARDS  # bytes of a shard
    path = tmp_path / "manifest.json"
    long = dataclasses.replace(MANIFEST, info={"note": "x" * LARGEST_RECORD})
    long.write(path)
    assert Manifest.read(path) == long


def test_more_shards_than_the_bound_are_refused_and_half_of_it_is_read(tmp_path, monkeypatch):
    assert pion.data.shards.MOST_SHARDS == 1_000_000
    monkeypatch.setattr(pion.data.shards, "MOST_SHARDS", 10)
    path = tmp_path / "manifest.json"
    dataclasses.replace(MANIFEST, shards=(SHARD,) * 5).write(path)
    assert len(Manifest.read(path).shards) == 5
    path.write_text(
        written({**DOCUMENT, "shards": [dataclasses.asdict(SHARD)] * 11}, "format", "1")
    )
    with pytest.raises(BadInput, match="11 shards are more than 10"):
        Manifest.read(path)


# ---------------------------------------------------------------- dataset.json

SOURCE = {"kind": "text", "weight": 1.0, "folder": "0"}
DATA = {"part": "pretrain", "sources": [SOURCE], "report": {"train_rows": 9}}
DATA_MAY_BE = {
    "sources.0.weight": {"2 ** 63"},
    "report": {"an object"},
    "sources.0.kind": {"text", "an escape", "an absolute path", "dots", "a NUL", "nothing"}
    | {"a terminal escape"},  # only a label
}


@pytest.mark.parametrize("field", [*DATA, *(f"sources.0.{key}" for key in SOURCE)])
def test_a_data_set_with_a_hostile_field_is_refused_with_its_name(tmp_path, field):
    (tmp_path / "tokenizer.json").write_text("{}")
    path = tmp_path / DATASET
    path.write_text(json.dumps(DATA))
    assert open_data(tmp_path).sources[0].folder == "0"
    for name, value in VALUES.items():
        path.write_text(written(DATA, field, value))
        if name in DATA_MAY_BE.get(field, ()):
            continue
        with pytest.raises(BadInput) as error, little_memory():
            open_data(tmp_path)
        assert str(path) in str(error.value), name
        assert len(str(error.value)) < 1000, name


def test_a_data_set_without_its_counts_is_refused(tmp_path):
    write_corpus(tmp_path / "corpus.jsonl", 100)
    job = make_job(tmp_path)
    prepared(job, tmp_path / "data")
    path = tmp_path / "data" / DATASET
    described = json.loads(path.read_text())
    for value in (MISSING, "null", '"9"', "[9]"):
        path.write_text(written(described, "report.train_rows", value))
        with pytest.raises(BadInput, match=r"dataset\.json: report\.train_rows is .*--redo"):
            prepared(job, tmp_path / "data")


# ---------------------------------------------------------------- work that was interrupted


def test_progress_that_can_not_be_read_is_no_progress(tmp_path):
    def rows(count):
        writer = ShardWriter(tmp_path, seq_len=4, vocab_size=99, rows_per_shard=2)
        writer.append_rows(np.ones((count, 4), np.int64))
        return writer

    rows(2)
    progress = json.loads((tmp_path / "shard_00000.json").read_text())
    del progress["dropped_tokens"]  # no writer reads it
    fields = [*progress, *(f"shard.{field.name}" for field in dataclasses.fields(Shard))]
    assert ShardWriter(tmp_path, seq_len=4, vocab_size=99, rows_per_shard=2).appended == 2
    for field in fields:
        for name, value in VALUES.items():
            if name in MAY_BE.get(field.removeprefix("shard."), ()) or name == "2 ** 63":
                continue
            (tmp_path / "shard_00000.json").write_text(written(progress, field, value))
            writer = ShardWriter(tmp_path, seq_len=4, vocab_size=99, rows_per_shard=2)
            unchecked = field == "shard.name" and name == "text"
            assert (writer.appended, writer.shards) == (0, []) or unchecked, (field, name)


@pytest.mark.parametrize("content", ["[]", "[" * 9000, '"x"', "{"])
def test_pinned_commits_that_can_not_be_read_are_refused(tmp_path, content):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / PINNED).write_text(content)
    with pytest.raises(BadInput, match=r"commit\.json (is not valid JSON|should be)"):
        prepared(npy_job(tmp_path), tmp_path / "data")


# ---------------------------------------------------------------- the cache of shards


@pytest.mark.parametrize("sha256", ["../../../victim", "/tmp/victim", "0" * 63, "G" * 64, ""])
def test_a_hash_that_is_none_never_becomes_a_path(sha256):
    with pytest.raises(ValueError, match="it must be 64 hexadecimal digits"):
        dataclasses.replace(SHARD, sha256=sha256)


def test_a_link_in_place_of_a_lock_is_not_followed(tmp_path):
    victim = tmp_path / "victim.lock"
    victim.write_text("content")
    cache = ShardCache(tmp_path / "cache", 1000)
    (tmp_path / "cache" / f"{SHA256[:32]}.lock").symlink_to(victim)
    with pytest.raises(BadInput, match=rf"{SHA256[:32]}\.lock: can't be written"):
        cache.path_of(SHARD)
    assert victim.read_text() == "content"


def test_a_shard_named_like_a_lock_has_a_file_and_a_lock(tmp_path):
    content = tmp_path / "fetched"
    content.write_bytes(b"x" * 100)
    from pion.files import sha256_file

    shard = dataclasses.replace(SHARD, name="a.lock", sha256=sha256_file(content))
    cache = ShardCache(tmp_path / "cache", 1000, lambda shard, folder: content)
    assert cache.path_of(shard).read_bytes() == b"x" * 100
