"""An adapter that nobody could use is refused before training."""

from __future__ import annotations

from typing import Any

import pytest

from pion.errors import BadInput
from pipeline.job import Job
from pipeline.stages.publish_folder import check_adapter
from tests.support.jobs import tiny_job

LORA = {"rank": 4}


def with_lora_twice(**changes: Any) -> Job:
    """Return a job whose `prefer` trains the additions of `sft` further."""
    prefer = {"steps": 5, "lora": LORA, "sources": [{"kind": "jsonl", "path": "pairs.jsonl"}]}
    return tiny_job(sft__lora=LORA, prefer=prefer, **changes)


def test_the_base_of_additions_that_were_trained_twice_is_that_of_the_first_stage() -> None:
    with pytest.raises(BadInput, match="adapter, the pretrained model of this run, exists only"):
        check_adapter(with_lora_twice(), to_hub=True)
    check_adapter(with_lora_twice(), to_hub=False)


def test_they_can_go_to_the_hub_if_their_base_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_adapter(with_lora_twice(pretrain=None, sft__init_from="user/base"), to_hub=True)
