"""Data sets that others prepared. test_records.py attacks each field of their records."""

import dataclasses
import json

import numpy as np
import pytest

import pion.data.shards
from pion.data.shard_writer import ShardWriter
from pion.data.shards import Manifest
from pion.errors import BadInput
from pion.files import sha256_file
from pion.untrusted import LARGEST_LISTING, LARGEST_RECORD
from pipeline.data.prepared import DATASET
from pipeline.data.shard_cache import ShardCache
from pipeline.stages.prepare import PINNED
from tests.hostile.attacks import ALL_ATTACKS, attacks_on
from tests.hostile.in_process import NO_FILES
from tests.hostile.of_types import SHA256
from tests.hostile.records import ROWS_OF_DATA, SHARD
from tests.support.corpora import make_job, npy_job, prepared, write_corpus


@pytest.mark.parametrize("kind", ["pipe", "link to a device", "folder"])
def test_a_manifest_that_is_no_file_is_refused_at_once(tmp_path, kind):
    path = tmp_path / "manifest.json"
    NO_FILES[kind](path)
    with pytest.raises(BadInput, match=r"manifest\.json is not a regular file"):
        Manifest.read(path)


def test_a_manifest_may_be_larger_than_another_record(tmp_path):
    assert LARGEST_LISTING >= 500 * pion.data.shards.MOST_SHARDS  # bytes of a shard
    path = tmp_path / "manifest.json"
    long = dataclasses.replace(ROWS_OF_DATA, info={"note": "x" * LARGEST_RECORD})
    long.write(path)
    assert Manifest.read(path) == long


def test_more_shards_than_the_bound_are_refused_and_half_of_it_is_read(tmp_path, monkeypatch):
    assert pion.data.shards.MOST_SHARDS == 1_000_000
    monkeypatch.setattr(pion.data.shards, "MOST_SHARDS", 10)
    path = tmp_path / "manifest.json"
    dataclasses.replace(ROWS_OF_DATA, shards=(SHARD,) * 5).write(path)
    assert len(Manifest.read(path).shards) == 5
    listed = json.loads(path.read_text())
    path.write_text(json.dumps(listed | {"shards": listed["shards"] * 3}))
    with pytest.raises(BadInput, match="15 shards are more than 10"):
        Manifest.read(path)


def test_a_data_set_without_its_counts_is_refused(tmp_path):
    write_corpus(tmp_path / "corpus.jsonl", 100)
    job = make_job(tmp_path)
    prepared(job, tmp_path / "data")
    path = tmp_path / "data" / DATASET
    described = json.loads(path.read_text())
    for sources in (5, [5]):
        path.write_text(json.dumps(described | {"report": {"sources": sources}}))
        with pytest.raises(BadInput, match=r"dataset\.json: .*report\.sources is "):
            prepared(job, tmp_path / "data")
    del described["report"]["sources"]
    path.write_text(json.dumps(described))
    assert prepared(job, tmp_path / "data").report["train_rows"]
    del described["report"]["train_rows"]
    for counts in ({}, {"train_rows": None}, {"train_rows": "9"}, {"train_rows": [9]}):
        path.write_text(json.dumps(described | {"report": described["report"] | counts}))
        with pytest.raises(BadInput, match=r"dataset\.json: report\.train_rows is .*--redo"):
            prepared(job, tmp_path / "data")


# ---------------------------------------------------------------- work that was interrupted


# The attacks after which a shard still counts as written: what may be missing or of any size.
USED = {
    **dict.fromkeys(("appended", "within"), ("2 ** 63", "200 digits")),
    "shard.name": ("a long text",),
    **dict.fromkeys(("shard.flags_sha256", "shard.remote"), ("missing", "null")),
    **dict.fromkeys(("shard.start", "shard.flags_bytes"), ("missing",)),
}


def test_progress_that_can_not_be_read_is_no_progress(tmp_path):
    def writer():
        return ShardWriter(tmp_path, seq_len=4, vocab_size=99, rows_per_shard=2, key="k")

    writer().append_rows(np.ones((2, 4), np.int64))
    path = tmp_path / "shard_00000.json"
    progress = json.loads(path.read_text())
    del progress["dropped_tokens"]  # no writer reads it
    assert writer().appended == 2
    for case in attacks_on(progress, ALL_ATTACKS):
        path.write_bytes(case.on(progress))
        found = writer()
        assert (found.appended > 0, len(found.shards)) == (
            case.what in USED.get(case.path, ()),
        ) * 2


@pytest.mark.parametrize("content", ["[]", "[" * 9000, '"x"', "{"])
def test_pinned_commits_that_can_not_be_read_are_refused(tmp_path, content):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / PINNED).write_text(content)
    with pytest.raises(BadInput, match=r"commit\.json (is not valid JSON|should be)"):
        prepared(npy_job(tmp_path), tmp_path / "data")


# ---------------------------------------------------------------- the cache of shards


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
    shard = dataclasses.replace(SHARD, name="a.lock", sha256=sha256_file(content))
    cache = ShardCache(tmp_path / "cache", 1000, lambda shard, folder: content)
    assert cache.path_of(shard).read_bytes() == b"x" * 100
