"""Ranks that keep parts of a model compute the numbers of a reference together."""

import json
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist

import pion.train.sharding  # noqa: F401 (once, and not in each fork)
from pion.config.lora import Adapter, BaseModel, Lora
from pion.formats.model_tensors import SavedTensors
from pion.model.lazy_lora import lazily_adapted
from pion.model.saved_weights import without_values
from pion.train.settings import ComputePlan
from pipeline.training.reference.of_stage import with_reference
from pipeline.training.stage_model import StageModel
from pipeline.training.train_request import Group
from tests.support.ranks import run_ranks
from tests.support.reference_world import (
    World,
    config_of_the_world,
    make_world,
    model_of_the_world,
    numbers_of,
)

RANKS = 3
ADAPTER = Adapter(Lora(rank=2), BaseModel("the base", "0" * 64))


def in_parts(plan, *, lora):
    """Return the start of a stage whose weights no rank has."""
    weights, config = SavedTensors.of(model_of_the_world().state_dict()), config_of_the_world()
    if not lora:
        return StageModel(without_values(config), plan, weights=weights)
    model, base = lazily_adapted(config, weights, ADAPTER.lora, seed=0, dtype=torch.float32)
    return StageModel(model, plan, adapter=ADAPTER, weights=base)


def work(rank, folder, *, lora):
    """Compute, and find, as a stage that begins, and one that resumes."""
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS
    )
    world, said = World(folder), list[Any]()
    plan = ComputePlan(micro_batch=2, threads=1, world_size=RANKS, sharded=True)
    with world.context(group=Group(rank, RANKS, True)) as context:
        for resumes in (False, True):
            start = in_parts(plan, lora=lora)
            found, start = with_reference(context, world.streams(), start, None, resumes=resumes)
            # Only LoRA compares its base when it resumes. Then the stage has these parts.
            assert (start.shards is None) == (resumes and not lora)
            said.append({"sums": sums_in(found), "record": found.record.decode()})
    (folder / f"{rank}.json").write_text(json.dumps(said))
    dist.destroy_process_group()


def sums_in(reference):
    """Return the numbers of each split, one after the other."""
    rows = {split: numbers_of(stream) for split, stream in reference.streams.items()}
    return {split: [number for row in some for number in row] for split, some in rows.items()}


@pytest.mark.parametrize("lora", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_they_get_the_numbers_of_one_process_and_its_key(tmp_path, lora):
    """The last round has no rows for the last ranks. LoRA begins with the base's own results."""
    world = make_world(tmp_path)
    alone = world.make("alone")
    (tmp_path / "runs").rename(tmp_path / "others")  # they would find its numbers there
    run_ranks(partial(work, lora=lora), tmp_path, RANKS)
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(RANKS)]
    assert ranks == [ranks[0]] * RANKS
    found, again = ranks[0]
    assert again == found
    same_key = json.loads(found["record"])["key"] == json.loads(alone.record)["key"]
    assert same_key == (not lora)
    for split, sums in sums_in(alone).items():
        assert found["sums"][split] == pytest.approx(sums, abs=1e-4)
