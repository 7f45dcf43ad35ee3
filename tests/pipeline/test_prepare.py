"""prepare: sources to shards; what it leaves behind, what it refuses, how it goes on."""

import errno
import gzip
import hashlib
import importlib
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from pion.data.python_docs import is_held_out, prose
from pion.data.shards import Rows
from pion.data.tokenizer import Tokenizer, train_bpe
from pion.errors import BadInput
from pipeline.data_sources import conversations, find_input, texts
from pipeline.job import Job
from pipeline.job_file import load_job
from pipeline.shard_cache import ShardCache
from pipeline.stages.prepare import PreparedData, open_data, prepare_pretrain, prepare_sft
from tests.hub_server import HubServer, hub_server

SEQ_LEN = 32
WORDS = re.findall(
    r"\w+",
    """the a river mountain quietly runs over under small green stone house with many windows and
    children who sing while old trees whisper about winter bread maps letters ships""",
)


def sentences(seed: int, count: int) -> str:
    rng = random.Random(seed)
    made = [" ".join(rng.choices(WORDS, k=rng.randint(5, 14))).capitalize() for _ in range(count)]
    return ". ".join(made) + "."


def write_corpus(path: Path, documents: int = 300) -> Path:
    """A JSONL corpus of `documents` short texts."""
    lines = (json.dumps({"text": sentences(i, 6)}) + "\n" for i in range(documents))
    path.write_text("".join(lines))
    return path


def make_job(folder: Path, **sections: Any) -> Job:
    """A job file in `folder` that trains a tokenizer on corpus.jsonl, with sections replaced."""
    fields: dict[str, Any] = {
        "name": "test",
        "model": {"d_model": 32, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "d_ff": 64},
        "tokenizer": {"train": {"vocab_size": 400}},
        "data": {
            "seq_len": SEQ_LEN,
            "shard_rows": 100,
            "held_out": 0.1,
            "sources": [{"kind": "jsonl", "path": "corpus.jsonl"}],
        },
        "pretrain": {"steps": 10, "global_batch": 4, "warmup_steps": 1},
    }
    for name, section in sections.items():
        replaced = isinstance(section, dict) and name == "data"
        fields[name] = fields[name] | section if replaced else section
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in fields.items() if v is not None}))
    return load_job(path)


def prepared(job: Job, folder: Path) -> PreparedData:
    prepare_pretrain(job, folder, lambda message: None)
    return open_data(folder)


def files_of(folder: Path) -> dict[str, str]:
    """sha256 of every file but those that hold measured times."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != "dataset.json"
    }


def texts_of(data: PreparedData, split: str) -> list[str]:
    """The documents in a split's rows, in order; the last may be cut."""
    tokenizer = Tokenizer.from_file(data.tokenizer_path)
    texts = []
    for source in data.sources:
        manifest = data.manifest(source, split)
        place = data.folder / source.folder / split
        rows = Rows(manifest, lambda shard, place=place: place / shard.name)
        ids = [
            int(i)
            for shard, count in enumerate(manifest.shard_rows)
            for row in range(count)
            for i in rows.row(shard, row).tokens
        ]
        text = tokenizer.decode(ids, specials=True)
        texts += text.split(tokenizer.end_of_text_token)
    return texts


def save_tokenizer(path: Path, vocab_size: int = 400) -> Tokenizer:
    tokenizer = train_bpe([sentences(i, 6) for i in range(50)], vocab_size)
    tokenizer.save(path)
    return tokenizer


# ---------------------------------------------------------------- text


def test_every_document_is_in_one_split_and_none_is_lost(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus.jsonl")
    data = prepared(make_job(tmp_path), tmp_path / "data")
    train, held_out = texts_of(data, "train"), texts_of(data, "held_out")
    wanted = {sentences(i, 6) for i in range(300)}
    # The ids after the last whole row are dropped, so the last text of a split may be cut.
    assert set(train[:-1]) | set(held_out[:-1]) <= wanted
    assert not set(train[:-1]) & set(held_out[:-1])
    assert len(train[:-1]) + len(held_out[:-1]) >= 296
    assert 10 <= len(held_out) <= 60
    assert data.report["documents"] == 300


def test_the_same_job_gives_the_same_bytes(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus.jsonl")
    job = make_job(tmp_path)
    prepared(job, tmp_path / "one")
    prepared(job, tmp_path / "two")
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


def test_what_is_held_out_does_not_depend_on_where_or_how_often_a_text_appears(
    tmp_path: Path,
) -> None:
    write_corpus(tmp_path / "corpus.jsonl")
    before = set(texts_of(prepared(make_job(tmp_path), tmp_path / "one"), "held_out")[:-1])
    lines = (tmp_path / "corpus.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "corpus.jsonl").write_text("".join(reversed(lines)) + lines[0])
    after = set(texts_of(prepared(make_job(tmp_path), tmp_path / "two"), "held_out"))
    assert len(before - after) <= 1  # the one that is cut at the end now


def test_a_corpus_of_one_long_file_gives_its_end_to_the_held_out_split(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("\n".join(sentences(i, 6) for i in range(600)))
    job = make_job(tmp_path, data={"sources": [{"kind": "text", "path": "book.txt"}]})
    data = prepared(job, tmp_path / "data")
    book, text = (tmp_path / "book.txt").read_text(), texts_of(data, "held_out")[0]
    assert 0.89 < book.index(text) / len(book) < 0.91
    assert 0.08 < data.report["held_out_tokens"] / data.report["train_tokens"] < 0.13


def test_a_gzipped_corpus_gives_the_same_rows_as_the_plain_one(tmp_path: Path) -> None:
    plain = write_corpus(tmp_path / "corpus.jsonl")
    with gzip.open(tmp_path / "corpus.jsonl.gz", "wb") as file:
        file.write(plain.read_bytes())
    sources = [{"kind": "jsonl", "path": "corpus.jsonl.gz"}]
    one = prepared(make_job(tmp_path), tmp_path / "one")
    two = prepared(make_job(tmp_path, data={"sources": sources}), tmp_path / "two")
    assert texts_of(one, "train") == texts_of(two, "train")


def test_several_sources_are_mixed_by_weight(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus.jsonl")
    (tmp_path / "book.txt").write_text("\n".join(sentences(i + 999, 6) for i in range(600)))
    sources = [
        {"kind": "jsonl", "path": "corpus.jsonl", "weight": 3},
        {"kind": "text", "path": "book.txt", "weight": 1},
    ]
    data = prepared(make_job(tmp_path, data={"sources": sources}), tmp_path / "data")
    stream = data.stream("train", seed=1, window=8)
    assert [s.folder for s in data.sources] == ["0", "1"]
    assert stream.total_rows == data.report["train_rows"]
    assert stream.batch(range(8)).tokens.shape == (8, SEQ_LEN)


def test_a_finished_folder_is_reported_again_without_work(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus.jsonl")
    job = make_job(tmp_path)
    first = prepare_pretrain(job, tmp_path / "data", lambda message: None)
    (tmp_path / "corpus.jsonl").unlink()  # reading anything now would fail
    assert prepare_pretrain(job, tmp_path / "data", lambda message: None) == first


def test_it_says_what_it_does_and_how_fast(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus.jsonl")
    said: list[dict[str, Any]] = []
    report = prepare_pretrain(make_job(tmp_path), tmp_path / "data", said.append)
    assert {m["type"] for m in said} == {"note", "prepare"}
    assert any("MB/s" in m.get("text", "") for m in said)
    assert report["sources"][0]["mb_per_second"] > 0


def test_half_a_surrogate_pair_in_json_is_no_crash(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus.jsonl")
    with (tmp_path / "corpus.jsonl").open("a") as file:
        file.write('{"text": "broken \\ud83d emoji"}\n')
    data = prepared(make_job(tmp_path), tmp_path / "data")
    assert data.report["documents"] == 301


# ---------------------------------------------------------------- interruptions

SCRIPT = """
import sys
from pathlib import Path
from pipeline.job_file import load_job
from pipeline.stages.prepare import prepare_pretrain
import pipeline.text_rows
pipeline.text_rows.BATCH_BYTES = 20_000
prepare_pretrain(load_job(sys.argv[1]), Path(sys.argv[2]), lambda message: None)
"""


def test_killed_in_the_middle_it_goes_on_to_the_same_bytes_and_keeps_finished_shards(
    tmp_path: Path,
) -> None:
    write_corpus(tmp_path / "corpus.jsonl", documents=6000)
    job = make_job(tmp_path)
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "job.yaml"), str(tmp_path / "data")]
    process = subprocess.Popen(command)
    third = tmp_path / "data" / "0" / "train" / "shard_00002.json"
    while not third.exists() and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL, "it ended before it could be killed"
    assert not (tmp_path / "data" / "dataset.json").exists()
    with pytest.raises(BadInput, match="no finished data here"):
        open_data(tmp_path / "data")
    finished = {
        p.with_suffix(".npy"): p.with_suffix(".npy").stat().st_mtime_ns
        for p in (tmp_path / "data" / "0").rglob("shard_*.json")
    }

    resumed = prepare_pretrain(job, tmp_path / "data", lambda message: None)
    unbroken = prepare_pretrain(job, tmp_path / "unbroken", lambda message: None)
    assert len(finished) >= 3
    assert {p: p.stat().st_mtime_ns for p in finished} == finished
    assert files_of(tmp_path / "data") == files_of(tmp_path / "unbroken")
    for name in ("documents", "bytes", "train_rows", "held_out_rows"):
        assert resumed[name] == unbroken[name]


def test_a_source_edited_after_an_interruption_is_not_mixed_with_its_old_shards(
    tmp_path: Path,
) -> None:
    write_corpus(tmp_path / "corpus.jsonl", documents=3000)
    job = make_job(tmp_path, tokenizer={"file": "tokenizer.json"}, model=model_of(400))
    save_tokenizer(tmp_path / "tokenizer.json")
    interrupt_after_shards(job, tmp_path / "data", 1)
    write_corpus(tmp_path / "corpus.jsonl", documents=1000)
    os.utime(tmp_path / "corpus.jsonl", (1, 1))
    prepared(job, tmp_path / "data")
    prepared(job, tmp_path / "fresh")
    assert files_of(tmp_path / "data") == files_of(tmp_path / "fresh")


def model_of(vocab_size: int) -> dict[str, int]:
    shape = {"d_model": 32, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "d_ff": 64}
    return shape | {"vocab_size": vocab_size}


def interrupt_after_shards(job: Job, folder: Path, shards: int) -> None:
    """Stop, as Ctrl-C does between two batches, once so many shards are there."""
    import pipeline.text_rows as text_rows

    class Stop(Exception):
        pass

    def say(message: dict[str, Any]) -> None:
        if len(list(folder.rglob("shard_*.json"))) >= shards:
            raise Stop

    before, text_rows.BATCH_BYTES = text_rows.BATCH_BYTES, 20_000
    try:
        with pytest.raises(Stop):
            prepare_pretrain(job, folder, say)
    finally:
        text_rows.BATCH_BYTES = before


# ---------------------------------------------------------------- continuation questions


def test_the_questions_go_on_with_held_out_text(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus.jsonl")
    data = prepared(make_job(tmp_path), tmp_path / "data")
    held_out = " ".join(texts_of(data, "held_out"))
    train = " ".join(texts_of(data, "train"))
    questions = [json.loads(line) for line in (data.folder / "choices.jsonl").open()]
    assert len(questions) > 20
    for question in questions:
        right = question["choices"][question["answer"]]
        assert question["context"] + right in held_out
        assert question["context"] + right not in train
        assert len(question["choices"]) == len(set(question["choices"])) == 4
        for choice in question["choices"]:
            assert choice in held_out
            assert abs(len(choice) - len(right)) < 40


def test_the_right_answer_is_in_no_favourite_place(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus.jsonl", documents=1500)
    data = prepared(make_job(tmp_path), tmp_path / "data")
    answers = [json.loads(line)["answer"] for line in (data.folder / "choices.jsonl").open()]
    for place in range(4):
        assert 0.15 < answers.count(place) / len(answers) < 0.35


# ---------------------------------------------------------------- shards made elsewhere


def npy_job(folder: Path, **source: Any) -> Job:
    save_tokenizer(folder / "tokenizer.json")
    sources = [source or {"kind": "npy", "path": "shards"}]
    data = {"sources": sources}
    return make_job(folder, data=data, tokenizer={"file": "tokenizer.json"}, model=model_of(400))


def write_npy(path: Path, rows: int = 200, dtype: Any = np.int32, row_ids: int = SEQ_LEN) -> None:
    path.parent.mkdir(exist_ok=True)
    ids = np.random.default_rng(rows).integers(2, 256, (rows, row_ids))
    np.save(path, ids.astype(dtype))


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.int64])
def test_npy_shards_are_taken_over_unchanged_and_their_last_rows_held_out(
    tmp_path: Path, dtype: Any
) -> None:
    job = npy_job(tmp_path)
    write_npy(tmp_path / "shards" / "a.npy", dtype=dtype)
    write_npy(tmp_path / "shards" / "b.npy", 100, dtype)
    data = prepared(job, tmp_path / "data")
    assert (data.report["train_rows"], data.report["held_out_rows"]) == (297, 3)
    both = np.concatenate([np.load(tmp_path / "shards" / f"{name}.npy") for name in "ab"])
    seen = data.stream("held_out", seed=1, window=8).batch(range(3)).tokens.numpy()
    assert sorted(map(tuple, seen)) == sorted(map(tuple, both[-3:].astype(np.int64)))
    seen = data.stream("train", seed=1, window=8).batch(range(297)).tokens.numpy()
    assert sorted(map(tuple, seen)) == sorted(map(tuple, both[:-3].astype(np.int64)))


def test_the_prepared_data_outlives_the_folder_it_came_from(tmp_path: Path) -> None:
    job = npy_job(tmp_path)
    write_npy(tmp_path / "shards" / "a.npy")
    data = prepared(job, tmp_path / "data")
    (tmp_path / "shards" / "a.npy").unlink()
    assert data.stream("train", seed=1, window=8).batch(range(198)).tokens.shape[0] == 198


def test_padding_in_shards_is_not_learned(tmp_path: Path) -> None:
    job = npy_job(tmp_path)
    write_npy(tmp_path / "shards" / "a.npy")
    ids = np.load(tmp_path / "shards" / "a.npy")
    ids[:, 20:] = 1  # <|pad|>
    np.save(tmp_path / "shards" / "a.npy", ids)
    targets = prepared(job, tmp_path / "data").stream("train", seed=1, window=8).row(0).targets
    assert (targets[19:] == -100).all()
    assert (targets[:19] >= 0).all()


def test_daisys_bin_shards_are_read_as_rows(tmp_path: Path) -> None:
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


def test_a_truncated_npy_is_refused_before_any_work(tmp_path: Path) -> None:
    job = npy_job(tmp_path)
    write_npy(tmp_path / "shards" / "a.npy")
    write_npy(tmp_path / "shards" / "b.npy")
    content = (tmp_path / "shards" / "b.npy").read_bytes()
    (tmp_path / "shards" / "b.npy").write_bytes(content[:-100])
    with pytest.raises(BadInput, match=r"b\.npy: truncated"):
        prepared(job, tmp_path / "data")
    assert not list((tmp_path / "data").rglob("*.npy"))


def test_an_npy_without_integers_is_refused(tmp_path: Path) -> None:
    job = npy_job(tmp_path)
    write_npy(tmp_path / "shards" / "a.npy", dtype=np.float32)
    with pytest.raises(BadInput, match=r"a\.npy: holds float32"):
        prepared(job, tmp_path / "data")


def test_ids_beyond_the_vocabulary_are_refused_with_file_and_row(tmp_path: Path) -> None:
    job = npy_job(tmp_path)
    write_npy(tmp_path / "shards" / "a.npy")
    ids = np.load(tmp_path / "shards" / "a.npy")
    ids[17, 5] = 50_000
    np.save(tmp_path / "shards" / "a.npy", ids)
    with pytest.raises(BadInput, match=r"a\.npy: row 17 holds id 50,000"):
        prepared(job, tmp_path / "data")


def test_a_tokenizer_cannot_be_trained_on_ids(tmp_path: Path) -> None:
    write_npy(tmp_path / "shards" / "a.npy")
    job = make_job(tmp_path, data={"sources": [{"kind": "npy", "path": "shards"}]})
    with pytest.raises(BadInput, match="no text to train on; name the tokenizer"):
        prepared(job, tmp_path / "data")


# ---------------------------------------------------------------- the Hub


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with hub_server() as server:
        server.use(monkeypatch, tmp_path / "hf")
        yield server


def hub_npy_files(shards: int, rows: int) -> dict[str, bytes]:
    files = {}
    for number in range(shards):
        file = io.BytesIO()
        rng = np.random.default_rng(number)
        np.save(file, rng.integers(2, 256, (rows, SEQ_LEN)).astype(np.int32))
        files[f"shard_{number}.npy"] = file.getvalue()
    return files


def test_hub_shards_stay_on_the_hub_and_stream_through_a_cache(
    hub: HubServer, tmp_path: Path
) -> None:
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

    def cache() -> ShardCache:
        caches.append(ShardCache(tmp_path / "cache", 3 * len(files["shard_0.npy"])))
        return caches[0]

    stream = data.stream("train", seed=1, window=2, cache=cache)
    seen = np.concatenate([stream.batch(range(i, i + 36)).tokens for i in range(0, 396, 36)])
    caches[0].close()
    everything = np.concatenate([np.load(io.BytesIO(content)) for content in files.values()])
    assert sorted(map(tuple, seen)) == sorted(map(tuple, everything[:396]))


def test_hub_shards_of_another_tokenizer_are_refused(hub: HubServer, tmp_path: Path) -> None:
    file = io.BytesIO()
    np.save(file, np.full((200, SEQ_LEN), 40_000, np.int32))
    hub.add_repo("user/shards", "dataset", {"shard_0.npy": file.getvalue()})
    job = npy_job(tmp_path, kind="hub-npy", repo="user/shards")
    with pytest.raises(BadInput, match=r"user/shards/shard_0\.npy: row 0 holds id 40,000"):
        prepared(job, tmp_path / "data")


def test_a_hub_data_set_is_read_at_the_commit_it_was_first_seen_at(
    hub: HubServer, tmp_path: Path
) -> None:
    corpus = write_corpus(tmp_path / "corpus.jsonl").read_bytes()
    hub.add_repo("user/text", "dataset", {"train.jsonl": corpus})
    sources = [{"kind": "hub", "repo": "user/text"}]
    save_tokenizer(tmp_path / "tokenizer.json")
    job = make_job(
        tmp_path,
        data={"sources": sources},
        tokenizer={"file": "tokenizer.json"},
        model=model_of(400),
    )
    interrupt_after_shards(job, tmp_path / "data", 1)
    hub.add_repo("user/text", "dataset", {"train.jsonl": b'{"text": "something else"}\n'})
    data = prepared(job, tmp_path / "data")
    assert data.report["documents"] == 300


def test_a_hub_tokenizer_is_kept_with_the_data(hub: HubServer, tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus.jsonl")
    save_tokenizer(tmp_path / "tokenizer.json")
    hub.add_repo("user/model", files={"tokenizer.json": (tmp_path / "tokenizer.json").read_bytes()})
    job = make_job(tmp_path, tokenizer={"hub": "user/model"}, model=model_of(400))
    data = prepared(job, tmp_path / "data")
    assert data.tokenizer_path.read_bytes() == (tmp_path / "tokenizer.json").read_bytes()


def test_a_hub_repository_that_is_not_there_is_bad_input(hub: HubServer, tmp_path: Path) -> None:
    job = make_job(tmp_path, data={"sources": [{"kind": "hub", "repo": "user/nothing"}]})
    with pytest.raises(BadInput, match="user/nothing: there is no such repository"):
        prepared(job, tmp_path / "data")


def test_a_private_hub_repository_without_a_token_says_how_to_give_one(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_repo("user/text", "dataset", {"train.jsonl": b"{}"}, private=True)
    monkeypatch.delenv("HF_TOKEN")
    job = make_job(tmp_path, data={"sources": [{"kind": "hub", "repo": "user/text"}]})
    with pytest.raises(BadInput, match="export HF_TOKEN="):
        prepared(job, tmp_path / "data")


# ---------------------------------------------------------------- conversations


def openhermes(question: str, answer: str) -> dict[str, Any]:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"conversations": turns}


def sft_job(folder: Path, **source: Any) -> Job:
    save_tokenizer(folder / "tokenizer.json")
    sft = {
        "steps": 10,
        "global_batch": 4,
        "warmup_steps": 1,
        "held_out": 0.1,
        "sources": [{"kind": "jsonl", "path": "chat.jsonl"} | source],
    }
    return make_job(
        folder,
        pretrain=None,
        data={"sources": []},
        sft=sft | {"init_from": "model"},
        tokenizer={"file": "tokenizer.json"},
        model=model_of(400),
    )


def write_chats(path: Path, count: int = 400) -> None:
    lines = (json.dumps(openhermes(sentences(i, 1), sentences(i + 999, 1))) for i in range(count))
    path.write_text("\n".join(lines))


def prepared_sft(job: Job, folder: Path) -> PreparedData:
    prepare_sft(job, folder, None, lambda message: None)
    return open_data(folder)


def test_conversations_are_packed_with_their_loss_mask_and_none_is_lost(tmp_path: Path) -> None:
    write_chats(tmp_path / "chat.jsonl")
    job = sft_job(tmp_path)
    job = job.model_copy(update={"sft": job.sft.model_copy(update={"seq_len": 128})})  # type: ignore[union-attr]
    data = prepared_sft(job, tmp_path / "data")
    tokenizer = Tokenizer.from_file(data.tokenizer_path)
    stream = data.stream("train", seed=1, window=8)
    answers: set[str] = set()
    for i in range(stream.total_rows):
        row = stream.row(i)
        assert row.documents is not None
        for document in range(row.documents.max() + 1):
            targets = row.targets[(row.documents == document) & (row.targets >= 0)]
            assert targets[-1] == tokenizer.end_of_text
            answers.add(tokenizer.decode(targets).strip())
    held_out = data.report["sources"][0]["held_out_conversations"]
    assert 20 <= held_out <= 70
    assert len(answers & {sentences(i + 999, 1) for i in range(400)}) == 400 - held_out


def test_the_messages_layout_gives_the_same_rows(tmp_path: Path) -> None:
    write_chats(tmp_path / "chat.jsonl", 150)
    one = prepared_sft(sft_job(tmp_path), tmp_path / "one")
    lines = []
    for line in (tmp_path / "chat.jsonl").open():
        roles = {"human": "user", "gpt": "assistant"}
        turns = json.loads(line)["conversations"]
        messages = [{"role": roles[t["from"]], "content": t["value"]} for t in turns]
        lines.append(json.dumps({"messages": messages, "id": 7}))
    (tmp_path / "chat.jsonl").write_text("\n".join(lines))
    two = prepared_sft(sft_job(tmp_path), tmp_path / "two")
    assert texts_of(one, "train") == texts_of(two, "train")


def test_interrupted_packing_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pipeline.conversation_rows as conversation_rows

    monkeypatch.setattr(conversation_rows, "BUFFER", 300)
    write_chats(tmp_path / "chat.jsonl", 3000)
    job = sft_job(tmp_path)
    tokenised = 0
    tokenize = conversation_rows.tokenize_batch

    def stop_at_1500(tokenizer: Tokenizer, turns: Any) -> Any:
        nonlocal tokenised
        tokenised += 1
        if tokenised == 6:
            raise KeyboardInterrupt
        return tokenize(tokenizer, turns)

    monkeypatch.setattr(conversation_rows, "tokenize_batch", stop_at_1500)
    with pytest.raises(KeyboardInterrupt):
        prepare_sft(job, tmp_path / "data", None, lambda message: None)
    finished = {
        p.with_suffix(".npy"): p.with_suffix(".npy").stat().st_mtime_ns
        for p in (tmp_path / "data").rglob("shard_*.json")
    }
    assert len(finished) > 2
    tokenised = 100  # from here on only a count of what is tokenised again
    resumed = prepare_sft(job, tmp_path / "data", None, lambda message: None)
    assert tokenised - 100 < 8  # 10 training buffers and 1 held out; the first ones are not redone
    monkeypatch.setattr(conversation_rows, "tokenize_batch", tokenize)
    unbroken = prepare_sft(job, tmp_path / "unbroken", None, lambda message: None)
    assert {p: p.stat().st_mtime_ns for p in finished} == finished
    assert files_of(tmp_path / "data") == files_of(tmp_path / "unbroken")
    assert resumed["sources"] == unbroken["sources"]


def test_a_conversation_without_an_assistant_turn_is_named(tmp_path: Path) -> None:
    write_chats(tmp_path / "chat.jsonl", 10)
    with (tmp_path / "chat.jsonl").open("a") as file:
        file.write('\n{"conversations": [{"from": "human", "value": "Hello?"}]}\n')
    with pytest.raises(BadInput, match=r"chat\.jsonl:11: a conversation with no assistant turn"):
        prepared_sft(sft_job(tmp_path), tmp_path / "data")


def test_sft_uses_the_tokenizer_of_pretraining(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus.jsonl")
    write_chats(tmp_path / "chat.jsonl")
    sft = {"steps": 10, "global_batch": 4, "warmup_steps": 1}
    sft |= {"held_out": 0.1, "sources": [{"kind": "jsonl", "path": "chat.jsonl"}]}
    job = make_job(tmp_path, sft=sft)
    pretrain = prepared(job, tmp_path / "one")
    prepare_sft(job, tmp_path / "two", pretrain.tokenizer_path, lambda message: None)
    kept = open_data(tmp_path / "two").tokenizer_path.read_bytes()
    assert kept == pretrain.tokenizer_path.read_bytes()


def test_the_standard_library_is_held_out_by_file_in_both_parts(tmp_path: Path) -> None:
    sft = {"steps": 10, "global_batch": 4, "warmup_steps": 1, "held_out": 0.3}
    job = make_job(
        tmp_path,
        data={"held_out": 0.05, "sources": [{"kind": "python-docs"}]},
        sft=sft | {"sources": [{"kind": "python-docs-qa"}]},
    )
    assert job.sft is not None
    docs = find_input(job, job.data.sources[0], "data.sources.0")
    questions = find_input(job, job.sft.sources[0], "sft.sources.0")
    read = [text for held_out, text in texts(job, docs) if held_out]
    asked = " ".join(
        turn.text for held_out, turns in conversations(job, questions) if held_out for turn in turns
    )
    for module in ("textwrap", "pprint", "shutil", "gzip", "glob", "hashlib", "lzma", "heapq"):
        held_out = is_held_out(f"{module}.py", 0.05)
        assert (re.search(rf"[\s`]{module}\.", asked) is not None) == held_out, module
        first, *_ = prose(importlib.import_module(module).__doc__ or "").split("\n\n")
        assert not first or any(first in text for text in read) == held_out, module


# ---------------------------------------------------------------- bad input


def test_a_missing_file_is_named_with_its_key_before_anything_is_done(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus.jsonl")
    sources = [{"kind": "jsonl", "path": "corpus.jsonl"}, {"kind": "text", "path": "nowhere.txt"}]
    job = make_job(tmp_path, data={"sources": sources})
    with pytest.raises(BadInput, match=r"data\.sources\.1\.path: no such file.*nowhere\.txt"):
        prepared(job, tmp_path / "data")
    assert not any((tmp_path / "data").iterdir())


def test_an_empty_corpus_is_refused(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text("")
    with pytest.raises(BadInput, match="corpus is empty"):
        prepared(make_job(tmp_path), tmp_path / "data")


def test_a_corpus_smaller_than_one_batch_is_refused_with_both_numbers(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus.jsonl")
    pretrain = {"steps": 10, "global_batch": 5000, "warmup_steps": 1}
    with pytest.raises(BadInput, match=r"[\d,]+ rows of 32 ids were found, .* needs 5,000"):
        prepared(make_job(tmp_path, pretrain=pretrain), tmp_path / "data")


def test_it_is_refused_again_when_only_the_batch_was_raised_since(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus.jsonl")
    prepared(make_job(tmp_path), tmp_path / "data")
    pretrain = {"steps": 10, "global_batch": 5000, "warmup_steps": 1}
    with pytest.raises(BadInput, match="smaller than one batch"):
        prepared(make_job(tmp_path, pretrain=pretrain), tmp_path / "data")


def test_too_little_text_to_hold_any_out_is_refused(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus.jsonl", documents=20)
    job = make_job(tmp_path, data={"held_out": 0.0001})
    with pytest.raises(BadInput, match=r"the held_out split has not one row of 32 ids.*raise held"):
        prepared(job, tmp_path / "data")


def test_a_broken_line_is_named_with_file_and_line(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus.jsonl", documents=20)
    with (tmp_path / "corpus.jsonl").open("a") as file:
        file.write('{"text": "cut o')
    with pytest.raises(BadInput, match=r"corpus\.jsonl:21: broken JSON"):
        prepared(make_job(tmp_path), tmp_path / "data")


def test_a_tokenizer_that_does_not_fit_the_model_is_refused_before_anything_is_tokenised(
    tmp_path: Path,
) -> None:
    write_corpus(tmp_path / "corpus.jsonl")
    save_tokenizer(tmp_path / "tokenizer.json")
    job = make_job(tmp_path, tokenizer={"file": "tokenizer.json"}, model=model_of(300))
    with pytest.raises(BadInput, match=r"tokenizer\.json: a tokenizer that doesn't fit the model"):
        prepared(job, tmp_path / "data")
    assert not list((tmp_path / "data").rglob("*.npy"))


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus.jsonl")
    (tmp_path / "tokenizer.json").write_text('{"hello": 1}')
    job = make_job(tmp_path, tokenizer={"file": "tokenizer.json"}, model=model_of(400))
    with pytest.raises(BadInput, match=r"tokenizer\.json: not a tokenizer"):
        prepared(job, tmp_path / "data")


def test_a_folder_that_cannot_be_written_is_bad_input(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus.jsonl")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BadInput, match=r"file/data: can't be written \(Not a directory\)"):
        prepared(make_job(tmp_path), tmp_path / "file" / "data")


def test_a_full_disk_is_bad_input_and_the_finished_shards_are_used_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_corpus(tmp_path / "corpus.jsonl", documents=1000)
    job = make_job(tmp_path)
    sync = os.fsync

    def full_disk(file: int) -> None:
        if (tmp_path / "data" / "0" / "train" / "shard_00001.json").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(file)

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(BadInput, match=r"the disk is full.*finished before it is safe"):
        prepared(job, tmp_path / "data")
    monkeypatch.setattr(os, "fsync", sync)
    prepared(job, tmp_path / "data")
    prepared(job, tmp_path / "unbroken")
    assert files_of(tmp_path / "data") == files_of(tmp_path / "unbroken")


def test_data_that_was_changed_since_it_was_prepared_is_noticed(tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus.jsonl")
    data = prepared(make_job(tmp_path), tmp_path / "data")
    path = data.folder / "0" / "train" / "manifest.json"
    path.write_text(path.read_text().replace('"rows": 100', '"rows": 99'))
    with pytest.raises(BadInput, match="changed since it was written"):
        data.stream("train", seed=1, window=8)
