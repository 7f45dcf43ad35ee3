"""The built-in instructions in the evaluate stage: only tuned models are asked."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pion.errors import BadInput, Interrupted
from pion.evaluation.item_scores import unpack
from pipeline.report.result_tables import Table, result_blocks
from tests.pipeline.stages import test_evaluate
from tests.pipeline.stages.test_evaluate import Folder, World

FEW: dict[str, Any] = {"instructions": 24, "ngram_order": 0, "continuations": 0}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    with pytest.MonkeyPatch.context() as patch:  # prompts and answers need room
        patch.setattr(test_evaluate, "SEQ_LEN", 512)
        return World(tmp_path_factory.mktemp("world"))


@pytest.fixture(autouse=True)
def long_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_evaluate, "SEQ_LEN", 512)


def test_the_tuned_model_is_asked_and_its_answers_are_kept_apart(world: World) -> None:
    parts, job = Folder(), world.job(**FEW)
    results, said = world.run(job, parts)
    assert "evaluate: sft model on 24 instructions" in said
    assert "instructions" not in results["pretrain"]
    found = results["sft"]["instructions"]
    assert (found["met"]["prompts"], len(found["kinds"])) == (24, 12)
    assert "items" not in found
    kept = json.loads(parts.kept["by_item"])["sft.instructions"]
    assert kept["key"]["rule"] == "instructions/pion-1"
    assert unpack(kept).scores.mean() == pytest.approx(found["met"]["strict"]["share"])
    assert world.run(job, parts) == (results, [])

    blocks = result_blocks(job, results)
    words = next(block for block in blocks if str(block).startswith("Of built-in instructions"))
    assert "no more than by accident: at chance, no claim" in words  # it has learned nothing
    table = next(b for b in blocks if isinstance(b, Table) and b.header[0] == "it was told to")
    assert len(table.rows) == 12
    assert table not in result_blocks(job, results, brief=True)


def test_a_stop_between_two_answers_keeps_nothing_of_them(world: World) -> None:
    parts = Folder()

    def stop(seconds: float) -> None:
        if "sft.responses" in parts.kept:
            raise Interrupted("SIGTERM")

    with pytest.raises(Interrupted):
        world.run(world.job(**FEW), parts, sleep=stop)
    assert "sft.instructions" not in parts.kept


def test_a_number_that_is_no_multiple_of_the_kinds_is_refused_first(world: World) -> None:
    parts = Folder()
    with pytest.raises(BadInput, match=r"evaluate\.instructions: the number of instructions is 25"):
        world.run(world.job(**{**FEW, "instructions": 25}), parts)
    assert not parts.kept


def test_a_job_without_fine_tuning_has_nobody_to_ask(world: World) -> None:
    job, parts = world.job(**FEW), Folder()
    job.sft = None
    with pytest.raises(BadInput, match="no `sft` section"):
        world.run(job, parts)
    assert not parts.kept
