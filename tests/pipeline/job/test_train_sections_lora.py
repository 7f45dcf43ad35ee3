"""`sft.lora` in the job file: rates are resolved before digesting, and mistakes name keys."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pion.config.lora import Lora
from pipeline.job import Job
from pipeline.job.digest import digest_job
from pipeline.training.train_request import TrainRequest
from tests.support.jobs import refusal, tiny_job

NO_RATES: dict[str, Any] = {
    "steps": 10,
    "global_batch": 4,
    "warmup_steps": 1,
    "sources": [{"kind": "jsonl", "path": "talks.jsonl"}],
}


def lora_job(lora: dict[str, Any] | None, **rates: Any) -> Job:
    return tiny_job(sft=NO_RATES | rates | ({} if lora is None else {"lora": lora}))


def test_lora_has_its_own_rates_unless_they_are_given() -> None:
    sft = lora_job({}).sft
    assert sft is not None
    assert (sft.lr, sft.min_lr, sft.weight_decay) == (2e-4, 2e-5, 0)
    assert lora_job({}).lora("sft") == Lora(16, 32.0, "all-linear")
    given = lora_job({}, lr=1e-3, weight_decay=0.1).sft
    assert given is not None
    assert (given.lr, given.min_lr, given.weight_decay) == (1e-3, 2e-5, 0.1)
    without = lora_job(None).sft
    assert without is not None
    assert (without.lr, without.min_lr, without.weight_decay) == (2e-5, 2e-6, 0.01)


def test_the_rates_are_resolved_before_digesting() -> None:
    implied, stated = lora_job({}), lora_job({}, lr=2e-4, min_lr=2e-5, weight_decay=0.0)
    assert digest_job(implied).stages == digest_job(stated).stages
    assert digest_job(implied).inputs["sft"]["sft.lr"] == 2e-4


def test_each_setting_of_lora_moves_the_digest_of_sft_and_none_before_it() -> None:
    jobs = [
        lora_job(lora)
        for lora in (
            None,
            {},
            {"rank": 8},
            {"alpha": 16},
            {"targets": ["q_proj"]},
            {"base_dtype": "bfloat16"},
        )
    ]
    digests = [digest_job(job).stages for job in jobs]
    assert len({found["sft"] for found in digests}) == len(jobs)
    assert len({found["pretrain"] for found in digests}) == 1


def test_a_job_that_says_no_lora_has_the_digest_of_one_that_says_nothing() -> None:
    assert (
        digest_job(tiny_job(sft=NO_RATES | {"lora": None})).stages
        == digest_job(lora_job(None)).stages
    )


def test_the_workers_get_the_resolved_rates() -> None:
    job = lora_job({"rank": 8})
    dumped = job.model_dump(mode="json", exclude_unset=True)
    request = TrainRequest(dumped, ".", "file:///x", {}, [], {})
    again = request.load_job()
    assert digest_job(again).stages == digest_job(job).stages
    assert again.lora("sft") == Lora(8)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sft__lora": {"rank": 0}}, "sft.lora.rank: 0 should be greater than 0"),
        ({"sft__lora": {"rank": 17}}, "sft.lora.rank: 17 is above 16, the smaller side of k_proj"),
        ({"sft__lora": {"alpha": float("inf")}}, "sft.lora.alpha: inf"),
        ({"sft__lora": {"alpha": -1}}, "sft.lora.alpha: -1 should be greater than 0"),
        ({"sft__lora": {"targets": "all"}}, "sft.lora.targets: 'all' should be all-linear or a"),
        ({"sft__lora": {"targets": []}}, "sft.lora.targets: [] should be all-linear or a list"),
        ({"sft__lora": {"targets": [1]}}, "sft.lora.targets: [1] should be all-linear or a list"),
        ({"sft__lora": {"targets": ["q"]}}, "sft.lora.targets: the model has no projection 'q'"),
        ({"sft__lora": {"targets": ["lm_head"]}}, "it has q_proj, k_proj, v_proj, o_proj, gate"),
        ({"sft__lora": {"dropout": 0.1}}, "sft.lora.dropout: 0.1: LoRA trains without dropout"),
        ({"sft__lora": {"base_dtype": "int4"}}, "sft.lora.base_dtype: unknown value 'int4'"),
        ({"sft__lora": {}, "sft__optimizer": "muon"}, "sft.optimizer: LoRA trains with adamw"),
        ({"sft__lora": {}, "sft__head_lr": 1e-3}, "sft.head_lr: LoRA trains only its additions"),
        (
            {
                "sft__lora": {"rank": 8},
                "model__primitives": {"n": 4, "rank": 4, "top_k": 2, "bands": [[0, 1]]},
                "model__activation": "gelu",
            },
            "sft.lora.targets: all-linear can't reach the primitives",
        ),
        (
            {"sft__lora": {"rank": 8}, "model__experts": {"n": 4, "d_shared": 16}},
            "sft.lora.targets: all-linear can't reach the experts",
        ),
        (
            {"publish": {"to": "out", "adapter": True}},
            "publish.adapter: only a job with sft.lora trains an adapter",
        ),
        (
            {
                "sft__lora": {"rank": 8},
                "publish": {"to": "o", "adapter": True, "dtype": "bfloat16"},
            },
            "publish.dtype: an adapter is published in float32",
        ),
    ],
)
def test_a_mistake_is_one_message_that_names_the_key(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    message = refusal(tmp_path, **changes)
    assert words in message
    assert "has 1 mistake;" in message
