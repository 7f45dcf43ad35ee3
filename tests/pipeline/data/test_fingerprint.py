"""A fingerprint changes with everything that decides rows, and with nothing else."""

import json
import os
import shutil
import sys

import pytest

from pipeline.data import fingerprint as module
from pipeline.data.fingerprint import changed_sources, fingerprint_of
from pipeline.data.sources import find_input
from pipeline.job import JsonlFiles
from pipeline.job.sft_and_lora_sections import Sft
from pipeline.machine import file_hashes
from pipeline.stages.prepare import PrepareOptions, prepare_part
from tests.support.corpora import make_job, model_of, save_tokenizer, write_corpus

BY_FILE = {"tokenizer": {"file": "tokenizer.json"}, "model": model_of(400)}


class Found(Exception):
    """Ends prepare before it works."""


def fingerprint(folder, **changes):
    """Return the fingerprint of the pretraining data of a job in `folder`."""
    asked = []

    def find(name):
        asked.append(name)
        raise Found

    job, how = make_job(folder, **changes), PrepareOptions(find=find)
    with pytest.raises(Found):
        prepare_part(job, "pretrain", folder / "prepared", lambda message: None, how=how)
    return asked[0]


@pytest.fixture
def corpus(tmp_path):
    write_corpus(tmp_path / "corpus.jsonl")
    save_tokenizer(tmp_path / "tokenizer.json")
    return tmp_path


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "other"},
        {"store": "elsewhere"},
        {"hardware": {"workers": 4}},
        {"pretrain": {"steps": 99, "global_batch": 8, "lr": 0.5, "warmup_steps": 0}},
        {"data": {"window": 7}},
    ],
    ids=str,
)
def test_what_only_training_uses_does_not_change_it(corpus, changes):
    assert fingerprint(corpus, **changes) == fingerprint(corpus)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 5},
        {"tokenizer": {"train": {"vocab_size": 399}}},
        BY_FILE,
        {"data": {"seq_len": 33}},
        {"data": {"held_out": 0.2}},
        {"data": {"shard_rows": 99}},
        {"data": {"sources": [{"kind": "jsonl", "path": "corpus.jsonl", "weight": 2}]}},
        {"data": {"sources": [{"kind": "jsonl", "path": "corpus.jsonl"}] * 2}},
        {"data": {"sources": [{"kind": "text", "path": "corpus.jsonl"}]}},
        {"data": {"sources": [{"kind": "python-docs"}]}},
    ],
    ids=str,
)
def test_what_decides_rows_changes_it(corpus, changes):
    assert fingerprint(corpus, **changes) != fingerprint(corpus)


def test_another_place_and_another_time_of_the_same_bytes_do_not_change_it(corpus):
    before = fingerprint(corpus)
    (corpus / "corpus.jsonl").rename(corpus / "moved.jsonl")
    os.utime(corpus / "moved.jsonl", (1, 1))
    assert (
        fingerprint(corpus, data={"sources": [{"kind": "jsonl", "path": "moved.jsonl"}]}) == before
    )


def test_one_more_byte_in_the_same_place_changes_it(corpus):
    before = fingerprint(corpus)
    status = (corpus / "corpus.jsonl").stat()
    content = (corpus / "corpus.jsonl").read_text().replace("river", "rider", 1)
    (corpus / "corpus.jsonl").write_text(content)
    os.utime(corpus / "corpus.jsonl", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (corpus / "corpus.jsonl").stat().st_size == status.st_size
    assert fingerprint(corpus) != before


def test_another_start_reads_no_text_again_and_finds_the_same(corpus, monkeypatch):
    monkeypatch.setattr(file_hashes, "JUST_CHANGED", -1e6)
    before = fingerprint(corpus)

    def refuse(file, name):
        raise AssertionError("the text was read again")

    monkeypatch.setattr(file_hashes.hashlib, "file_digest", refuse)
    assert fingerprint(corpus, seed=5) != before
    assert fingerprint(corpus) == before


def test_a_tokenizer_counts_by_its_bytes_and_not_by_its_place(corpus):
    before = fingerprint(corpus, **BY_FILE)
    (corpus / "tokenizer.json").rename(corpus / "moved.json")
    moved = BY_FILE | {"tokenizer": {"file": "moved.json"}}
    assert fingerprint(corpus, **moved) == before
    save_tokenizer(corpus / "moved.json", 390)
    assert fingerprint(corpus, **moved) != before


def test_another_way_to_read_texts_makes_other_data_of_texts_only(corpus, monkeypatch):
    text = {"sources": [{"kind": "text", "path": "corpus.jsonl"}]}
    standard = {"sources": [{"kind": "python-docs"}]}
    before = [fingerprint(corpus, data=data) for data in (text, standard)]
    lines = fingerprint(corpus)
    monkeypatch.setattr(module, "TEXT_FORMAT", 1)
    assert fingerprint(corpus, data=text) != before[0]
    assert fingerprint(corpus, data=standard) == before[1]
    assert fingerprint(corpus) != lines


def test_another_way_to_read_records_makes_other_data_of_conversations_only(corpus, monkeypatch):
    job, text = make_job(corpus), fingerprint(corpus)
    talks = find_input(job, JsonlFiles(kind="jsonl", path="corpus.jsonl"), "sft.sources.0")

    def of_talks():
        return fingerprint_of(job, "sft", [talks], corpus, lambda message: None, trains=False)

    job.sft = Sft(steps=1, sources=[{"kind": "jsonl", "path": "corpus.jsonl"}])
    before = of_talks()
    monkeypatch.setattr(module, "RECORD_FORMAT", 1)
    assert of_talks() != before
    assert fingerprint(corpus) == text


@pytest.mark.parametrize("what", ["python", "format"])
def test_another_python_and_another_prepare_make_other_data(corpus, monkeypatch, what):
    standard = {"sources": [{"kind": "python-docs"}]}
    before = fingerprint(corpus, data=standard)
    change = {
        "python": lambda: monkeypatch.setattr(sys, "version", "3.99"),
        "format": lambda: monkeypatch.setattr(module, "FORMAT", 99),
    }[what]
    change()
    assert fingerprint(corpus, data=standard) != before


def test_other_items_of_an_evaluation_set_and_other_rules_are_other_data(corpus, monkeypatch):
    data, found = {"clean": {"decontaminate": ["pack.jsonl"]}}, []
    for answer in ("a", "b"):
        question = {"context": "why", "choices": ["no", answer], "answer": 1}
        (corpus / "pack.jsonl").write_text(json.dumps(question) + "\n")
        found.append(fingerprint(corpus, data=data))
    monkeypatch.setattr(module, "CLEAN_RULES", 99)
    found.append(fingerprint(corpus, data=data))
    assert len({*found}) == 3


def touched(folder):
    os.utime(folder / "texts/a.jsonl", (1, 1))


def edited(folder):
    write_corpus(folder / "texts/a.jsonl", 41)


def added(folder):
    write_corpus(folder / "texts/c.jsonl", 1)


def removed(folder):
    (folder / "texts/b.jsonl").unlink()


def gone(folder):
    shutil.rmtree(folder / "texts")


@pytest.mark.parametrize(
    ("change", "is_named"),
    [(touched, False), (edited, True), (added, True), (removed, True), (gone, False)],
)
def test_sources_that_change_after_prepare_are_named(corpus, change, is_named):
    for name in ("a", "b"):
        (corpus / "texts").mkdir(exist_ok=True)
        write_corpus(corpus / f"texts/{name}.jsonl")
    job = make_job(corpus, data={"sources": [{"kind": "jsonl", "path": "texts"}]})
    report = prepare_part(job, "pretrain", corpus / "prepared", lambda message: None).report
    assert not list(changed_sources(job, {"pretrain": report}))
    change(corpus)
    named = [("data.sources.0", "texts")] if is_named else []
    assert list(changed_sources(job, {"pretrain": report})) == named
    assert not list(changed_sources(job, {}))  # of a version that kept no digest
