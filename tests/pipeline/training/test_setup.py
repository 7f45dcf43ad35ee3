"""What a worker opens at the start of a stage."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from pipeline.data.hub import download_shard
from pipeline.job.digest import digest_job
from pipeline.stages.prepare import prepare_pretrain
from pipeline.state.owner import Owner
from pipeline.training.setup import _open
from pipeline.training.train_request import TrainRequest
from tests.support.corpora import make_job, write_corpus


@pytest.mark.parametrize("documents", [True, False])
def test_a_worker_trains_and_evaluates_within_documents_if_the_job_says_so(
    tmp_path: Path, documents: bool
) -> None:
    write_corpus(tmp_path / "corpus.jsonl")
    job = make_job(tmp_path, data={"documents": documents}, store=str(tmp_path / "runs"))
    prepare_pretrain(job, tmp_path / "data", lambda message: None)
    request = TrainRequest.of(job, digest_job(job), Owner.me(), ["pretrain"])
    arrived = TrainRequest(**json.loads(json.dumps(dataclasses.asdict(request))))
    data = _open(arrived.load_job(), tmp_path / "data", download_shard)
    for stream in (data.train, data.held_out):
        batch = stream.batch(range(8))
        if not documents:
            assert batch.documents is None
            continue
        begins = batch.tokens == data.tokenizer.end_of_text
        assert begins.any()
        assert batch.documents is not None
        assert torch.equal(batch.documents, begins.cumsum(dim=1))
