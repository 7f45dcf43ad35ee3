"""A corpus that is too small for its settings is found before the run, however large it is."""

import numpy as np
import pytest

from pion.errors import BadInput
from pipeline.rent.check.texts import check_corpus, text_bytes
from tests.support.finished_run import tiny_tokenizer

PRETRAIN_ONLY = {"sft": None, "model__vocab_size": 320}


@pytest.fixture(autouse=True)
def _every_corpus_is_large(monkeypatch):
    monkeypatch.setattr("pipeline.rent.check.texts.PREPARED_BYTES", 0)


def said(job):
    """Return what the check says: "", a warning, or the refusal after a ✗."""
    try:
        return "; ".join(row.words for row in check_corpus(job))
    except BadInput as error:
        return f"✗ {error}"


def test_a_larger_corpus_is_refused_only_if_it_is_surely_too_small(case):
    rows = (text_bytes(case.job(), "data") or 0) // 32  # an id is a byte at least

    def of_batch(rows):
        return said(case.job(pretrain__global_batch=rows))

    assert of_batch(rows // 4) == ""
    assert f"fills a batch of {rows:,} rows of 32 ids. Its files have about" in of_batch(rows)
    assert f"{rows // 4:,} rows, at 4 bytes an id. `pion run JOB --until prepare`" in of_batch(rows)
    assert "✗ pretrain: the corpus is smaller than one batch: it has" in of_batch(rows + 1)


def test_a_larger_corpus_with_small_splits_is_warned_about(case):
    assert "data.sources.0: it is not known whether both splits fill a row of 32 ids" in said(
        case.job(data__held_out=0.0001)
    )
    assert "65,536 ids" in said(case.job(data__seq_len=65536, pretrain__global_batch=1))


def test_shards_are_counted_too(case):
    np.save(case.folder / "shard.npy", np.zeros((50, 32), dtype=np.uint16))
    source = {"kind": "npy", "path": "shard.npy"}
    tiny_tokenizer().save(case.folder / "tokenizer.json")

    def of(**changes):
        file = {"file": "tokenizer.json"}
        return said(case.job(**PRETRAIN_ONLY, tokenizer=file, data__sources=[source], **changes))

    assert of(pretrain__global_batch=49) == ""
    assert "it has 49 rows" in of(pretrain__global_batch=50)
    np.save(case.folder / "shard.npy", np.full((50, 32), 5, dtype=np.uint16))
    assert "can't tell where a document begins" in of(data__documents=True)


def test_few_conversations_are_found_although_their_vocabulary_is_not_trained_yet(
    case, monkeypatch
):
    monkeypatch.setattr("pipeline.rent.check.texts.PREPARED_BYTES", 10**6)
    assert said(case.job()) == ""
    assert "sft: the corpus is smaller than one batch" in said(case.job(sft__global_batch=900))
