"""prepare with shards that were tokenised elsewhere, on this disk or on the Hub."""

import io

import numpy as np
import pytest

from pion.errors import BadInput
from pipeline.data.shard_cache import ShardCache
from tests.support.corpora import (
    SEQ_LEN,
    interrupt_after_shards,
    job_by_file,
    make_job,
    model_of,
    npy_job,
    prepared,
    save_tokenizer,
    write_corpus,
)

# ---------------------------------------------------------------- shards made elsewhere


def write_npy(path, rows=200, dtype=np.int32, where=(), to=0):
    """Write ids, with the number `to` at some places."""
    path.parent.mkdir(exist_ok=True)
    ids = np.random.default_rng(rows).integers(2, 256, (rows, SEQ_LEN))
    if where:
        ids[where] = to
    np.save(path, ids.astype(dtype))


@pytest.mark.parametrize("dtype", [np.uint16, np.int64])
def test_npy_shards_are_taken_over_unchanged_and_their_last_rows_held_out(tmp_path, dtype):
    job = npy_job(tmp_path)
    write_npy(tmp_path / "shards" / "a.npy", dtype=dtype)
    write_npy(tmp_path / "shards" / "b.npy", 100, dtype)
    data = prepared(job, tmp_path / "data")
    assert (data.report["train_rows"], data.report["held_out_rows"]) == (297, 3)
    both = np.concatenate([np.load(tmp_path / "shards" / f"{name}.npy") for name in "ab"])
    for path in (tmp_path / "shards").iterdir():  # the prepared data outlives them
        path.unlink()
    seen = data.stream("held_out", seed=1, window=8).batch(range(3)).tokens.numpy()
    assert sorted(map(tuple, seen)) == sorted(map(tuple, both[-3:].astype(np.int64)))
    seen = data.stream("train", seed=1, window=8).batch(range(297)).tokens.numpy()
    assert sorted(map(tuple, seen)) == sorted(map(tuple, both[:-3].astype(np.int64)))


def test_padding_in_shards_is_not_learned(tmp_path):
    job = npy_job(tmp_path)
    write_npy(tmp_path / "shards" / "a.npy", where=(slice(None), slice(20, None)), to=1)  # <|pad|>
    targets = prepared(job, tmp_path / "data").stream("train", seed=1, window=8).row(0).targets
    assert (targets[19:] == -100).all()
    assert (targets[:19] >= 0).all()


def test_daisys_bin_shards_are_read_as_rows(tmp_path):
    job = npy_job(tmp_path, kind="bin", path="shards/*.bin")
    ids = np.random.default_rng(0).integers(2, 256, 200 * SEQ_LEN + 5).astype("<u2")
    header = np.zeros(256, "<i4")
    header[:3] = 20240520, 1, len(ids)
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "train_000.bin").write_bytes(header.tobytes() + ids.tobytes())
    data = prepared(job, tmp_path / "data")
    assert (data.report["train_rows"], data.report["held_out_rows"]) == (198, 2)
    seen = data.stream("train", seed=1, window=8).batch(range(198)).tokens.numpy()
    assert sorted(map(tuple, seen)) == sorted(
        map(tuple, ids.reshape(-1)[: 198 * 32].reshape(198, 32))
    )


def test_a_truncated_npy_is_refused_before_any_work(tmp_path):
    job = npy_job(tmp_path)
    write_npy(tmp_path / "shards" / "a.npy")
    write_npy(tmp_path / "shards" / "b.npy")
    content = (tmp_path / "shards" / "b.npy").read_bytes()
    (tmp_path / "shards" / "b.npy").write_bytes(content[:-100])
    with pytest.raises(BadInput, match=r"b\.npy: truncated"):
        prepared(job, tmp_path / "data")
    assert not list((tmp_path / "data").rglob("*.npy"))


def test_ids_beyond_the_vocabulary_are_refused_with_file_and_row(tmp_path):
    job = npy_job(tmp_path)
    write_npy(tmp_path / "shards" / "a.npy", where=(17, 5), to=50_000)
    with pytest.raises(BadInput, match=r"a\.npy: row 17 has id 50,000"):
        prepared(job, tmp_path / "data")


def test_shards_without_an_end_of_text_are_refused_before_any_work(tmp_path):
    text = {"kind": "jsonl", "path": "corpus.jsonl"}
    shards = {"kind": "npy", "path": "shards"}
    write_corpus(tmp_path / "corpus.jsonl")
    write_npy(tmp_path / "shards" / "a.npy")
    job = npy_job(tmp_path)
    job.data.sources = make_job(tmp_path, data={"sources": [text, shards]}).data.sources
    job.data.documents = True
    with pytest.raises(BadInput, match=r"data\.sources\.1: there is no end-of-text"):
        prepared(job, tmp_path / "data")
    assert not list((tmp_path / "data").rglob("*.npy"))
    job.data.documents = False
    assert prepared(job, tmp_path / "data").report["train_rows"]


def test_one_end_of_text_in_the_last_of_the_shards_is_enough(tmp_path):
    job = npy_job(tmp_path)
    job.data.documents = True
    write_npy(tmp_path / "shards" / "a.npy")
    write_npy(tmp_path / "shards" / "b.npy", 100, where=(-1, -1), to=0)  # <|endoftext|>
    assert prepared(job, tmp_path / "data").report["train_rows"] == 297


def test_text_of_a_single_document_needs_no_end_of_text(tmp_path):
    (tmp_path / "corpus.txt").write_text("one long document without an end. \n" * 3000)
    job = make_job(
        tmp_path,
        data={"sources": [{"kind": "text", "path": "corpus.txt"}], "documents": True},
        tokenizer={"train": {"vocab_size": 260}},
    )
    train = prepared(job, tmp_path / "data").stream("train", seed=1, window=1)
    assert not (train.batch(range(train.total_rows)).tokens == 0).any()  # <|endoftext|>


def test_a_tokenizer_cannot_be_trained_on_ids(tmp_path):
    write_npy(tmp_path / "shards" / "a.npy")
    job = make_job(tmp_path, data={"sources": [{"kind": "npy", "path": "shards"}]})
    with pytest.raises(BadInput, match=r"no text to train on\. Set tokenizer\.file"):
        prepared(job, tmp_path / "data")


# ---------------------------------------------------------------- the Hub


def hub_npy_files(shards, rows):
    files = {}
    for number in range(shards):
        file = io.BytesIO()
        rng = np.random.default_rng(number)
        np.save(file, rng.integers(2, 256, (rows, SEQ_LEN)).astype(np.int32))
        files[f"shard_{number}.npy"] = file.getvalue()
    return files


def test_hub_shards_stay_on_the_hub_and_stream_through_a_cache(hub, tmp_path):
    files = hub_npy_files(shards=4, rows=100)
    hub.add_repo("user/shards", "dataset", files)
    job = npy_job(tmp_path, kind="hub-npy", repo="user/shards")
    data = prepared(job, tmp_path / "data")
    assert (data.report["train_rows"], data.report["held_out_rows"]) == (396, 4)
    assert not list((tmp_path / "data" / "0" / "train").glob("*.npy"))
    last = np.load(io.BytesIO(files["shard_3.npy"]))
    held_out = data.stream("held_out", seed=1, window=2).batch(range(4)).tokens.numpy()
    assert sorted(map(tuple, held_out)) == sorted(map(tuple, last[-4:]))

    caches = []

    def cache():
        caches.append(ShardCache(tmp_path / "cache", 3 * len(files["shard_0.npy"])))
        return caches[0]

    stream = data.stream("train", seed=1, window=2, cache=cache)
    seen = np.concatenate([stream.batch(range(i, i + 36)).tokens for i in range(0, 396, 36)])
    caches[0].close()
    everything = np.concatenate([np.load(io.BytesIO(content)) for content in files.values()])
    assert sorted(map(tuple, seen)) == sorted(map(tuple, everything[:396]))


def test_hub_shards_of_another_tokenizer_are_refused(hub, tmp_path):
    file = io.BytesIO()
    np.save(file, np.full((200, SEQ_LEN), 40_000, np.int32))
    hub.add_repo("user/shards", "dataset", {"shard_0.npy": file.getvalue()})
    job = npy_job(tmp_path, kind="hub-npy", repo="user/shards")
    with pytest.raises(BadInput, match=r"user/shards/shard_0\.npy: row 0 has id 40,000"):
        prepared(job, tmp_path / "data")


def test_hub_shards_without_an_end_of_text_are_refused(hub, tmp_path, monkeypatch):
    hub.add_repo("user/shards", "dataset", hub_npy_files(shards=2, rows=100))
    job = npy_job(tmp_path, kind="hub-npy", repo="user/shards")
    job.data.documents = True
    with pytest.raises(BadInput, match=r"no end-of-text .* the first 1,048,576 ids of user/sh"):
        prepared(job, tmp_path / "data")
    assert not list((tmp_path / "data").rglob("*.npy"))

    second = hub_npy_files(shards=2, rows=100)
    ids = np.load(io.BytesIO(second["shard_1.npy"]))
    ids[0, 0] = 0  # <|endoftext|>
    np.save(file := io.BytesIO(), ids)
    hub.add_repo("user/more", "dataset", second | {"shard_1.npy": file.getvalue()})
    more = npy_job(tmp_path, kind="hub-npy", repo="user/more")
    more.data.documents = True
    data, cache = prepared(more, tmp_path / "more"), ShardCache(tmp_path / "cache", 10**6)
    stream = data.stream("train", seed=1, window=1, cache=lambda: cache, documents=True)
    batch = stream.batch(range(198))
    cache.close()
    assert batch.documents.sum() == SEQ_LEN  # in one row, everything follows the end-of-text
    monkeypatch.setattr("pipeline.data.foreign_shards.REMOTE_IDS", 100 * SEQ_LEN)
    with pytest.raises(BadInput, match=r"no end-of-text .* the first 3,200 ids of user/more"):
        prepared(more, tmp_path / "less")


def test_a_hub_data_set_is_read_at_the_commit_it_was_first_seen_at(hub, tmp_path):
    corpus = write_corpus(tmp_path / "corpus.jsonl").read_bytes()
    hub.add_repo("user/text", "dataset", {"train.jsonl": corpus})
    job = job_by_file(tmp_path, data={"sources": [{"kind": "hub", "repo": "user/text"}]})
    interrupt_after_shards(job, tmp_path / "data", 1)
    hub.add_repo("user/text", "dataset", {"train.jsonl": b'{"text": "something else"}\n'})
    data = prepared(job, tmp_path / "data")
    assert data.report["documents"] == 300


def test_a_hub_tokenizer_is_kept_with_the_data(hub, tmp_path):
    write_corpus(tmp_path / "corpus.jsonl")
    save_tokenizer(tmp_path / "tokenizer.json")
    hub.add_repo("user/model", files={"tokenizer.json": (tmp_path / "tokenizer.json").read_bytes()})
    job = make_job(tmp_path, tokenizer={"hub": "user/model"}, model=model_of(400))
    data = prepared(job, tmp_path / "data")
    assert data.tokenizer_path.read_bytes() == (tmp_path / "tokenizer.json").read_bytes()
