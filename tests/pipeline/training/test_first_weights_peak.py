"""The most bytes that a rank of a sharded stage has of the model that the stage starts from."""

import weakref
from collections.abc import Callable

import pytest
import torch

from pion.collection import without_collection
from pion.config.lora import Lora
from pion.formats.saved_tensors import SavedTensors
from pion.model.decoder import Decoder
from pion.model.lazy_lora import lazily_adapted
from pion.model.saved_weights import Saved
from pion.train.memory_trace.live_bytes import LiveBytes
from pion.train.settings import ComputePlan
from pion.train.sharding import Shards, own_part, sharded
from pipeline.training.first_weights import cost_of_rounding, first_parts, frozen_base
from tests.cuda_rehearsal.fake_group import fake_group
from tests.pipeline.training.test_first_weights_parts import (
    EXPERTS,
    context_from,
    drawn,
    of_transformers,
)
from tests.support.jobs import tiny_dict
from tests.support.preference_files import tokenizer_in
from tests.support.reference_world import config_of_the_world, make_world, model_of_the_world
from tests.support.tiny_config import tiny_config

RANKS = 4
CONFIG = tiny_config(seq_len=96, d_model=64, d_ff=128, n_layers=8)
LORA = Lora(rank=2, base_dtype="bfloat16")
Start = Callable[[], tuple[Decoder, Saved | None]]
Patch = pytest.MonkeyPatch
# Gains are whole on each rank, and every tensor is rounded up.
REST = 1.05


class Taken(LiveBytes):
    """Counts the bytes that operations take. What is mapped from files takes none."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.set_.source_Storage:
            mapped = func(*args, **(kwargs or {}))
            self._known[mapped.untyped_storage()] = 0
            return mapped
        return super().__torch_dispatch__(func, types, args, kwargs)

    def _count(self, tensor):
        super()._count(own_part(tensor))


def theirs(folder, patch):
    """A model of other people, each of whose experts is a tensor for itself."""
    config = tiny_config(seq_len=96, d_model=64, d_ff=128, n_layers=8, experts=EXPERTS)
    source = of_transformers(folder / "theirs", drawn(config))
    context = context_from(source, patch)
    return lambda: first_parts(context, "pretrain")[:2]


def frozen(folder, patch):
    """A base of LoRA, which is hashed, and rounded."""
    source = of_transformers(folder / "theirs", drawn(CONFIG))
    changes = {"pretrain": None, "sft": tiny_dict()["sft"], "sft__lora": {"rank": 2}}
    context = context_from(source, patch, **changes)

    def start():
        config, weights, _ = frozen_base(context, "sft")
        return lazily_adapted(config, weights, LORA, seed=0, dtype=torch.float32)

    return start


# By how many of the largest tensors a rank may have more than its part. A product of LoRA is
# scaled, compared and added. The additions themselves take as much as two.
@pytest.mark.parametrize(("of", "tensors"), [(theirs, 1), (frozen, 3)])
def test_a_rank_has_its_part_and_one_tensor_at_a_time(tmp_path, monkeypatch, of, tensors):
    start = of(tmp_path, monkeypatch)
    with fake_group(RANKS), Taken("cpu", {}) as taken:
        model, weights = start()
        sizes = [4 * tensor.numel() for tensor in model.state_dict().values()]
        shards = Shards(model, torch.device("cpu"), torch.float32, 0, RANKS)
        if weights is not None:
            shards.fill(weights, weights.layout())
    assert max(taken.history) <= REST * sum(sizes) / RANKS + tensors * max(sizes) < sum(sizes) / 2
    assert max(taken.history) >= sum(sizes) / RANKS  # else nothing was counted


def test_a_model_that_was_only_measured_is_gone(tmp_path, monkeypatch):
    """Its modules refer to each other, and nobody else may collect them before the stage begins."""
    world, models = make_world(tmp_path, pairs=8), list[weakref.ref[Decoder]]()
    base = config_of_the_world(), SavedTensors.of(model_of_the_world().state_dict())
    plan = ComputePlan(micro_batch=2, threads=1, world_size=2, sharded=True)

    def noting(model, *given):
        models.append(weakref.ref(model))
        return sharded(model, *given)

    monkeypatch.setattr("pion.train.sharding.sharded", noting)
    held_out, tokenizer = world.streams()["held_out"], tokenizer_in(tmp_path / "model", None)
    with without_collection():
        with fake_group(2), world.context() as context:
            cost_of_rounding(context, base, held_out, tokenizer, plan)
        left = [model() for model in models]
    assert left == [None]
