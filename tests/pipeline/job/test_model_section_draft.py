"""`model.draft` in the job file: next to `from`, next to LoRA, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pion.config.draft import Draft
from pion.errors import BadInput
from pipeline.job import Job
from pipeline.job.file import load_job
from pipeline.job.model_section import Base
from tests.support.jobs import refusal, tiny_dict
from tests.support.tiny_config import tiny_config

LEARNED: dict[str, Any] = {"steps": 2, "ids": 40}
ALONE = {"rates": {"draft": 1, "others": 0}}


def from_base(
    folder: Path, learned: dict[str, Any] | None, model: dict[str, Any], **changes: Any
) -> Job:
    """Return a job that fine-tunes a model with this draft block, whose shape is looked up."""
    base = Base("base", "a" * 64, "b" * 64, tiny_config(seq_len=96, draft=learned).to_dict())
    given = {"model": {"from": "base"} | model, "tokenizer": None, "pretrain": None, **changes}
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(tiny_dict(**given)))
    return load_job(path, find_base=lambda values: base)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({}, Draft(steps=2, ids=40)),
        ({"draft": None}, None),
        ({"draft": {}}, Draft(steps=2, ids=40)),
        ({"draft": {"steps": 3}}, Draft(steps=3, ids=40)),  # so the block is kept
        ({"draft": {"ids": 50}}, Draft(steps=2, ids=50)),
        ({"draft": {"ids": None}}, Draft(steps=2)),
    ],
)
def test_a_job_keeps_changes_or_takes_away_the_block_of_its_base(
    tmp_path: Path, model: dict[str, Any], expected: Draft | None
) -> None:
    config = from_base(tmp_path, LEARNED, model).model_config_resolved()
    assert config.draft == expected


@pytest.mark.parametrize(
    ("learned", "model"),
    [
        (LEARNED, {}),
        (LEARNED, {"draft": {"steps": 3}}),
        (LEARNED, {"draft": None}),
        (None, {}),
    ],
)
def test_lora_keeps_or_drops_the_block_of_its_base(
    tmp_path: Path, learned: dict[str, Any] | None, model: dict[str, Any]
) -> None:
    assert from_base(tmp_path, learned, model, sft__lora={"rank": 4}).lora("sft") is not None


@pytest.mark.parametrize(
    ("learned", "which"), [(None, "no draft block"), (LEARNED, "a draft block of other ids")]
)
def test_lora_does_not_train_a_new_block(
    tmp_path: Path, learned: dict[str, Any] | None, which: str
) -> None:
    with pytest.raises(BadInput) as refused:
        from_base(tmp_path, learned, {"draft": {"ids": 50}}, sft__lora={"rank": 4})
    message = str(refused.value)
    assert refused.value.exit_code == 2
    assert f"the model it starts from has {which}, so" in message
    assert "Nothing was lost. Remove model.draft." in message


def test_lora_after_pretraining_keeps_the_block_that_pretraining_taught(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(tiny_dict(model__draft={}, sft__lora={"rank": 4})))
    assert load_job(path).model_config_resolved().draft == Draft()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model__draft": {"ids": "many"}}, "model.draft.ids"),
        ({"model__draft": {"ids": 321}}, "draft.ids is 321; it must be from 1 to 320, the ids of"),
        ({"model__draft": {"ids": 0}}, "draft.ids is 0; it must be from 1 to 320"),
        ({"model__draft": {"ids": 1.5}}, "model.draft.ids"),
        ({"model__draft": {"ids": 10**30}}, "draft.ids is 1000"),
        ({"model__draft": {"steps": 0}}, "draft.steps is 0; it must be a whole number of at least"),
        ({"model__draft": {"steps": 17}}, "draft.steps is 17; it must be at most 16"),
        ({"model__draft": {"steps": None}}, "draft.steps is None; it must be a whole number"),
        ({"model__draft": {"depth": 1}}, "model.draft.depth: unknown key"),
        ({"model__draft": True}, "model.draft"),
        ({"pretrain__phases": [ALONE]}, "only draft would be trained: the model has none"),
        (
            {"pretrain__phases": [{"until": 0.5}, ALONE]},
            "pretrain.phases.1.rates: only draft would be trained: the model has none",
        ),
        (
            {"model__draft": {}, "sft__lora": {}, "sft__phases": [ALONE]},
            "sft.phases: LoRA trains only its additions; remove `phases`",
        ),
    ],
)
def test_a_block_that_can_not_be_is_refused_with_its_field(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    assert words in refusal(tmp_path, **changes)


def test_a_phase_of_the_block_alone_may_follow_others(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    phases = [{"until": 0.5}, ALONE]
    path.write_text(yaml.safe_dump(tiny_dict(model__draft={}, pretrain__phases=phases)))
    assert load_job(path).model_config_resolved().draft == Draft()
