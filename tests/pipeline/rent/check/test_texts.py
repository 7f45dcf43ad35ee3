"""A corpus that is too small for its settings is found before the run, however large it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pion.data.tokens.tokenizer import count_words, train_bpe
from pion.errors import BadInput
from pipeline.data.sources import find_input, texts
from pipeline.job import Job
from pipeline.rent.check.texts import check_corpus
from pipeline.stages.prepare import prepare_part
from tests.pipeline.rent.check.checked_job import Case

PRETRAIN_ONLY: dict[str, Any] = {"sft": None, "model__vocab_size": 320}


@pytest.fixture(autouse=True)
def _every_corpus_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.rent.check.texts.PREPARED_BYTES", 0)
    monkeypatch.setattr("pipeline.rent.check.texts.BATCH_CHARS", 500)


def said(job: Job) -> str:
    """Return what the check says: "", a warning, or the refusal after a ✗."""
    try:
        return "; ".join(row.words for row in check_corpus(job))
    except BadInput as error:
        return f"✗ {error}"


def refusal_of_run(job: Job, folder: Path) -> str:
    try:
        prepare_part(job, "pretrain", folder, lambda message: None)
    except BadInput as error:
        return f"✗ {error}"
    return ""


def with_a_tokenizer(case: Case, **changes: Any) -> Job:
    """Return a job whose tokenizer is a file, so that its rows can be counted exactly."""
    job = case.job(**changes, **PRETRAIN_ONLY)
    corpus = [text for _, text in texts(job, find_input(job, job.data.sources[0], "data"))]
    train_bpe(corpus, 320).save(case.folder / "tokenizer.json")
    return case.job(**changes, **PRETRAIN_ONLY, tokenizer={"file": "tokenizer.json"})


@pytest.mark.parametrize(
    "changes",
    [
        {"pretrain__global_batch": 4},
        {"pretrain__global_batch": 5000},
        {"data__held_out": 0.0001},
        {"data__seq_len": 65536},
    ],
)
def test_with_a_tokenizer_the_check_says_what_prepare_says(
    changes: dict[str, Any], case: Case
) -> None:
    job = with_a_tokenizer(case, **changes)
    expected = refusal_of_run(job, case.folder / "prepared")
    assert bool(expected) is (changes != {"pretrain__global_batch": 4})
    assert said(job) == expected


def test_the_last_row_counts(case: Case) -> None:
    job = with_a_tokenizer(case)
    rows = prepare_part(job, "pretrain", case.folder / "prepared", lambda message: None).report
    full = case.job(
        **PRETRAIN_ONLY,
        tokenizer={"file": "tokenizer.json"},
        pretrain__global_batch=rows["train_rows"],
    )
    assert said(full) == ""
    assert full.pretrain is not None
    full.pretrain.global_batch += 1
    assert "smaller than one batch" in said(full)


def test_before_its_vocabulary_is_trained_a_corpus_is_refused_only_if_it_is_surely_too_small(
    case: Case,
) -> None:
    def of_batch(rows: int) -> str:
        return said(case.job(pretrain__global_batch=rows))

    assert of_batch(100) == ""
    assert "it was not found out whether the corpus fills a batch" in of_batch(1200)
    assert "it has" in of_batch(5000)
    assert "✗" in of_batch(5000)


def test_words_are_fewer_than_the_ids_of_any_vocabulary() -> None:
    odd = ["Zwölf Boxkämpfer, 3 × 4!\n\n  jagen\tViktor…", "", " ", "aaa" * 50, "🦜 don't"]
    for size in (258, 400):
        tokenizer = train_bpe(odd * 20, size)
        ids = [len(found) for found in tokenizer.encode_batch(odd)]
        sizes = [len(text.encode()) for text in odd]
        assert all(a <= b <= c for a, b, c in zip(count_words(odd), ids, sizes, strict=True))


def test_reading_ends_when_there_is_enough(case: Case) -> None:
    many = [f'{{"text": "{number} {"some words " * 20}"}}\n' for number in range(2000)]
    (case.folder / "corpus.jsonl").write_text("".join(many) + "no JSON\n")
    source = {"kind": "jsonl", "path": "corpus.jsonl"}
    assert said(case.job(data__sources=[source])) == ""


def test_what_could_not_be_read_in_time_is_said(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.rent.check.texts.SECONDS", -1.0)
    words = said(case.job(data__held_out=0.0001))
    assert "whether both splits fill a row of 32 ids: the first" in words
    assert "0 held out. `pion run JOB --until prepare` counts exactly" in words


def test_shards_are_counted_too(case: Case) -> None:
    np.save(case.folder / "shard.npy", np.zeros((50, 32), dtype=np.uint16))
    source = {"kind": "npy", "path": "shard.npy"}
    with_a_tokenizer(case)

    def of(**changes: Any) -> str:
        file = {"file": "tokenizer.json"}
        return said(case.job(**PRETRAIN_ONLY, tokenizer=file, data__sources=[source], **changes))

    assert of(pretrain__global_batch=49) == ""
    assert "it has 49 rows" in of(pretrain__global_batch=50)
    np.save(case.folder / "shard.npy", np.full((50, 32), 5, dtype=np.uint16))
    assert "can't tell where a document begins" in of(data__documents=True)


def test_few_conversations_are_found_although_their_vocabulary_is_not_trained_yet(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.rent.check.texts.PREPARED_BYTES", 10**6)
    assert said(case.job()) == ""
    assert "sft: the corpus is smaller than one batch" in said(case.job(sft__global_batch=900))
