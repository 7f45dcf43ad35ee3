"""prepare: text to shards; what it writes, what it refuses, how it resumes."""

import errno
import json
import os
import re
import shutil
import threading

import pytest

from pion.data.tokens.tokenizer import Tokenizer
from pion.errors import BadInput, Interrupted
from pipeline.console.messages import Note, PrepareProgress
from pipeline.stages.prepare import open_data
from tests.support.corpora import (
    files_of,
    interrupt_after_shards,
    job_by_file,
    make_job,
    model_of,
    prepare,
    prepared,
    sentences,
    texts_of,
    write_corpus,
)
from tests.support.tokenizer_kinds import without_bytes, write_files

# ---------------------------------------------------------------- text


def test_every_document_is_in_one_split_and_none_is_lost(tmp_path):
    write_corpus(tmp_path / "corpus.jsonl")
    data = prepared(make_job(tmp_path), tmp_path / "data")
    train, held_out = texts_of(data, "train"), texts_of(data, "held_out")
    wanted = {sentences(i, 6) for i in range(300)}
    # The ids after the last full row are dropped, so the last text of a split may be cut.
    assert set(train[:-1]) | set(held_out[:-1]) <= wanted
    assert not set(train[:-1]) & set(held_out[:-1])
    assert len(train[:-1]) + len(held_out[:-1]) >= 296
    assert 10 <= len(held_out) <= 60
    assert data.report["documents"] == 300


def test_what_is_held_out_does_not_depend_on_where_or_how_often_a_text_appears(tmp_path):
    write_corpus(tmp_path / "corpus.jsonl")
    before = set(texts_of(prepared(make_job(tmp_path), tmp_path / "one"), "held_out")[:-1])
    lines = (tmp_path / "corpus.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "corpus.jsonl").write_text("".join(reversed(lines)) + lines[0])
    after = set(texts_of(prepared(make_job(tmp_path), tmp_path / "two"), "held_out"))
    assert len(before - after) <= 1  # the text that is cut at the end now


def test_a_corpus_of_one_long_file_gives_its_end_to_the_held_out_split(tmp_path):
    (tmp_path / "book.txt").write_text("\n".join(sentences(i, 6) for i in range(600)))
    job = make_job(tmp_path, data={"sources": [{"kind": "text", "path": "book.txt"}]})
    data = prepared(job, tmp_path / "data")
    book, text = (tmp_path / "book.txt").read_text(), texts_of(data, "held_out")[0]
    assert 0.89 < book.index(text) / len(book) < 0.91
    assert 0.08 < data.report["held_out_tokens"] / data.report["train_tokens"] < 0.13


def test_characters_that_the_vocabulary_lacks_are_counted_and_named(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(sentences(i, 6) for i in range(600)) + "\x04\x06")
    (tmp_path / "tokenizer.json").write_text(json.dumps(without_bytes()))
    sources = {"sources": [{"kind": "text", "path": "*.txt"}]}
    job = make_job(
        tmp_path, data=sources, tokenizer={"file": "tokenizer.json"}, model=model_of(400)
    )
    (tmp_path / "b.txt").symlink_to("a.txt")
    (source,) = prepared(job, tmp_path / "data").report["sources"]
    again = source["remarks"].pop(0)
    assert again == f"left out, read already by another name: 1, such as {tmp_path}/b.txt"
    assert source["remarks"][0].startswith("2 characters are not in the model's vocabulary")
    assert "a.txt#" in source["remarks"][0]


def test_entries_of_a_vocabulary_that_the_text_does_not_have_are_said(tmp_path):
    write_corpus(tmp_path / "corpus.jsonl")
    changes = {"tokenizer": {"train": {"vocab_size": 50_000}}, "model": model_of(50_000)}
    notes = []
    data = tmp_path / "data"
    job = make_job(tmp_path, **changes)
    prepare(job, data, lambda m: notes.append(getattr(m, "text", "")))
    got = Tokenizer.from_file(data / "tokenizer.json").vocab_size
    assert any(f"50,000 entries asked for, {got:,} found in the text" in note for note in notes), (
        notes
    )
    assert any(f"{50_000 - got:,} of the model's 50,000 embedding rows" in note for note in notes)
    assert any(re.search(r"pretrain data: \d+ rows \(\S+K tokens\)", note) for note in notes), notes


def test_a_trained_tokenizer_has_not_seen_the_held_out_documents(tmp_path):
    write_corpus(tmp_path / "corpus.jsonl")
    whole = prepared(make_job(tmp_path), tmp_path / "whole")
    held_out = set(texts_of(whole, "held_out")[:-1])
    lines = (tmp_path / "corpus.jsonl").read_text().splitlines(keepends=True)
    # Held-out documents come ten times now. If merges were learned from them, they would differ.
    again = [line for line in lines if json.loads(line)["text"] in held_out]
    (tmp_path / "corpus.jsonl").write_text("".join(lines + 9 * again))
    more = prepared(make_job(tmp_path), tmp_path / "more")
    assert more.report["held_out_rows"] > 5 * whole.report["held_out_rows"]
    assert more.tokenizer_path.read_bytes() == whole.tokenizer_path.read_bytes()


def test_it_says_how_fast_and_a_finished_folder_is_reported_again_without_work(tmp_path):
    write_corpus(tmp_path / "corpus.jsonl")
    job = make_job(tmp_path)
    said = []
    first = prepare(job, tmp_path / "data", said.append)
    assert {type(m) for m in said} == {Note, PrepareProgress}
    assert any("MB/s" in m.text for m in said if isinstance(m, Note))
    assert first.report["sources"][0]["mb_per_second"] > 0
    said.clear()
    assert prepare(job, tmp_path / "data", said.append) == first
    assert {m.what for m in said if isinstance(m, PrepareProgress)} == {"read data.sources.0"}


def test_a_folder_that_was_finished_from_other_bytes_is_prepared_again(tmp_path):
    write_corpus(tmp_path / "corpus.jsonl")
    job = make_job(tmp_path)
    first = prepare(job, tmp_path / "data")
    write_corpus(tmp_path / "corpus.jsonl", documents=200)
    second = prepare(job, tmp_path / "data")
    assert first.fingerprint != second.fingerprint
    assert (first.report["documents"], second.report["documents"]) == (300, 200)


# ---------------------------------------------------------------- interruptions


@pytest.mark.parametrize("endless", ["train_bpe", "texts"])
def test_a_stop_is_heard_while_a_vocabulary_is_learned_or_text_is_read(
    endless, tmp_path, monkeypatch
):
    write_corpus(tmp_path / "corpus.jsonl")
    over = threading.Event()

    def never(*_):
        over.wait()
        yield from ()

    def say(message):
        if isinstance(message, PrepareProgress) and not message.what.startswith("read data"):
            raise Interrupted("Ctrl-C")

    job = job_by_file(tmp_path) if endless == "texts" else make_job(tmp_path)
    stand_in = never if endless == "texts" else lambda *_: next(never(), None)
    module = "pipeline.data.tokenizer" if endless == "train_bpe" else "pipeline.data.source_reading"
    monkeypatch.setattr(f"{module}.{endless}", stand_in)
    try:
        with pytest.raises(Interrupted):
            prepare(job, tmp_path / "data", say)
    finally:
        over.set()


def test_interrupted_it_continues_to_the_same_bytes_and_keeps_finished_shards_of_the_same_source(
    tmp_path,
):
    write_corpus(tmp_path / "corpus.jsonl", documents=1500)
    job, data = job_by_file(tmp_path), tmp_path / "data"
    interrupt_after_shards(job, data, 2)
    with pytest.raises(BadInput, match="no prepared data here"):
        open_data(data)
    finished = {p: p.stat().st_mtime_ns for p in (data / "0").rglob("shard_*.npy")}
    shutil.copytree(data, tmp_path / "edited")
    resumed, unbroken = prepare(job, data), prepare(job, tmp_path / "unbroken")
    assert len(finished) >= 2
    assert {p: p.stat().st_mtime_ns for p in finished} == finished
    assert files_of(data) == files_of(tmp_path / "unbroken")
    for name in ("documents", "bytes", "train_rows", "held_out_rows"):
        assert resumed.report[name] == unbroken.report[name]
    lines = (tmp_path / "corpus.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "corpus.jsonl").write_text("".join(lines[500:]))
    os.utime(tmp_path / "corpus.jsonl", (1, 1))
    prepare(job, tmp_path / "edited")
    prepare(job, tmp_path / "fresh")
    assert files_of(tmp_path / "edited") == files_of(tmp_path / "fresh")


# ---------------------------------------------------------------- continuation questions


def test_of_files_that_change_meanwhile_nothing_counts_even_once_they_are_restored(tmp_path):
    corpus = write_corpus(tmp_path / "corpus.jsonl")
    before, times = corpus.read_bytes(), corpus.stat()
    job = make_job(tmp_path)
    prepared(job, tmp_path / "unbroken")

    def edit(shown):
        if isinstance(shown, Note) and "training a BPE" in shown.text:
            corpus.write_bytes(before.replace(b'"text": "', b'"text": "x '))

    with pytest.raises(BadInput, match=r"data\.sources\.0: the files have changed while"):
        prepare(job, tmp_path / "data", edit)
    corpus.write_bytes(before)
    os.utime(corpus, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert prepared(job, tmp_path / "data").report["documents"] == 300
    assert files_of(tmp_path / "data") == files_of(tmp_path / "unbroken")


def test_what_a_killed_process_left_of_a_file_is_no_content(tmp_path):
    write_corpus(tmp_path / "corpus.jsonl")
    job = job_by_file(tmp_path)
    names = []
    prepare(job, tmp_path / "data", find=names.append)
    for left in ("dataset.json.tmp", "choices.jsonl.tmp", ".tokenizer.json.tmp"):
        (tmp_path / "data" / left).write_bytes(b"half of it")
    prepare(job, tmp_path / "data", find=names.append)
    assert names[0] == names[1]


def test_the_questions_continue_with_held_out_text_and_no_place_is_the_favourite(tmp_path):
    write_corpus(tmp_path / "corpus.jsonl", documents=1500)
    data = prepared(job_by_file(tmp_path), tmp_path / "data")
    held_out = " ".join(texts_of(data, "held_out"))
    train = " ".join(texts_of(data, "train"))
    questions = [json.loads(line) for line in (data.folder / "choices.jsonl").open()]
    assert len(questions) > 100
    for question in questions:
        right = question["choices"][question["answer"]]
        assert question["context"] + right in held_out
        assert question["context"] + right not in train
        assert len(question["choices"]) == len(set(question["choices"])) == 4
        for choice in question["choices"]:
            assert choice in held_out
            assert abs(len(choice) - len(right)) < 40
    answers = [question["answer"] for question in questions]
    for place in range(4):
        assert 0.15 < answers.count(place) / len(answers) < 0.35


# ---------------------------------------------------------------- bad input


def test_a_missing_file_is_named_with_its_key_before_anything_is_done(tmp_path):
    write_corpus(tmp_path / "corpus.jsonl")
    sources = [{"kind": "jsonl", "path": "corpus.jsonl"}, {"kind": "text", "path": "nowhere.txt"}]
    job = make_job(tmp_path, data={"sources": sources})
    with pytest.raises(BadInput, match=r"data\.sources\.1\.path: no such file.*nowhere\.txt"):
        prepared(job, tmp_path / "data")
    assert not any((tmp_path / "data").iterdir())


@pytest.mark.parametrize("before", [False, True], ids=["new", "prepared for a smaller batch"])
def test_a_corpus_smaller_than_one_batch_is_refused_with_both_numbers(before, tmp_path):
    write_corpus(tmp_path / "corpus.jsonl")
    if before:
        prepared(make_job(tmp_path), tmp_path / "data")
    pretrain = {"steps": 10, "global_batch": 5000, "warmup_steps": 1}
    why = r"smaller than one batch.*[\d,]+ rows of 32 ids, .* needs 5,000"
    with pytest.raises(BadInput, match=why):
        prepared(make_job(tmp_path, pretrain=pretrain), tmp_path / "data")


def test_too_little_text_to_hold_any_out_is_refused(tmp_path):
    write_corpus(tmp_path / "corpus.jsonl", documents=20)
    job = make_job(tmp_path, data={"held_out": 0.0001})
    with pytest.raises(
        BadInput, match=r"held_out split does not fill a row of 32 ids.*raise data\.held_out"
    ):
        prepared(job, tmp_path / "data")


def test_a_tokenizer_that_does_not_fit_the_model_is_refused_before_anything_is_tokenised(tmp_path):
    write_corpus(tmp_path / "corpus.jsonl")
    job = job_by_file(tmp_path, model=model_of(300))
    with pytest.raises(BadInput, match=r"tokenizer\.json: the tokenizer doesn't fit the model"):
        prepared(job, tmp_path / "data")
    assert not list((tmp_path / "data").rglob("*.npy"))


def test_a_folder_that_cannot_be_written_is_bad_input(tmp_path):
    write_corpus(tmp_path / "corpus.jsonl")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BadInput, match=r"file/data: can't be written \(Not a directory\)"):
        prepared(make_job(tmp_path), tmp_path / "file" / "data")


@pytest.mark.slow
def test_a_full_disk_is_bad_input_and_the_finished_shards_are_used_afterwards(
    tmp_path, monkeypatch
):
    write_corpus(tmp_path / "corpus.jsonl", documents=1000)
    job = make_job(tmp_path)
    sync = os.fsync

    def full_disk(file):
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


def test_a_tokenizer_that_gguf_can_not_express_is_refused_before_training(tmp_path):
    write_corpus(tmp_path / "corpus.jsonl")
    write_files("qwen", tmp_path / "qwen")
    file = tmp_path / "qwen" / "tokenizer.json"
    file.write_text(file.read_text().replace('"NFC"', '"NFKC"'))
    job = make_job(
        tmp_path,
        model=model_of(500),
        tokenizer={"file": str(file)},
        publish={"to": str(tmp_path / "out"), "gguf": True},
    )
    with pytest.raises(BadInput, match=r"publish\.gguf: .*NFKC.*Nothing was trained"):
        prepare(job, tmp_path / "data")
