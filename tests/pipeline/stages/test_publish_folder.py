"""An adapter that nobody could use is refused before training."""

import dataclasses

import pytest

from pion.errors import BadInput
from pipeline.stages.publish_folder import check_adapter
from tests.support.jobs import job_from, tiny_job
from tests.support.tiny_config import tiny_config

LORA = {"rank": 4}


PREFER = {"steps": 5, "lora": LORA, "sources": [{"kind": "jsonl", "path": "pairs.jsonl"}]}
# A `prefer` that trains the additions of `sft` further.
TWICE = {"sft__lora": LORA, "prefer": PREFER}


def test_the_base_of_additions_that_were_trained_twice_is_that_of_the_first_stage():
    with pytest.raises(BadInput, match="adapter, the pretrained model of this run, exists only"):
        check_adapter(tiny_job(**TWICE), to_hub=True)
    check_adapter(tiny_job(**TWICE), to_hub=False)


def test_they_can_go_to_the_hub_if_their_base_is_there():
    job = job_from(tiny_config(seq_len=96), "user/base", pretrain=None, **TWICE)
    with pytest.raises(BadInput, match="the base of the adapter, user/base, exists only here"):
        check_adapter(job, to_hub=True)
    job._base = dataclasses.replace(job.base, commit="c" * 40)
    check_adapter(job, to_hub=True)
