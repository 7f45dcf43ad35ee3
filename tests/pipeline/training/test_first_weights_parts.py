"""The first weights of a sharded stage: those of a whole model, read where they are needed. A rank
never has much more of them than its part."""

import json
import weakref
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from pion.config.draft import Draft
from pion.config.lora import Lora
from pion.config.parts import Experts
from pion.errors import BadInput
from pion.formats.huggingface.architectures import to_transformers
from pion.formats.model_tensors import SavedTensors
from pion.garbage_collection import without_collection
from pion.model.decoder import Decoder
from pion.model.lazy_lora import lazily_adapted
from pion.model.lora_projections import adapted, additions
from pion.model.saved_weights import Tensors
from pion.train.memory_trace.live_bytes import LiveBytes
from pion.train.settings import ComputePlan
from pion.train.sharding import Shards, own_part, sharded
from pipeline.base.find import read_config
from pipeline.state.record_json import to_json
from pipeline.training.first_weights import cost_of_rounding, first_model, first_parts, frozen_base
from pipeline.training.train_request import Group
from tests.cuda_rehearsal.fake_group import fake_group
from tests.support.jobs import job_from, tiny_dict, tiny_job
from tests.support.preference_files import tokenizer_in
from tests.support.reference_world import config_of_the_world, make_world, model_of_the_world
from tests.support.tiny_config import tiny_config

MODULE = "pipeline.training.first_weights"


def same_start(context, stage):
    """Check that a sharded stage starts from the bits of `first_model`, without having them; return
    these."""
    whole, why = first_model(context, stage)
    model, saved, also_why = first_parts(context, stage)
    assert also_why == why
    assert saved is not None
    without = {name for name, tensor in model.state_dict().items() if tensor.is_meta}
    assert {"embed.weight", "blocks.1.attention.q_proj.weight"} <= without
    assert without <= saved.layout().keys()
    assert model.config == whole.config
    expected = whole.state_dict()
    for name, (shape, _) in saved.layout().items():
        found = saved.part(name, 0, shape.numel()).to(expected[name].dtype)
        assert torch.equal(found.view(shape), expected[name]), name
    for name in expected.keys() - saved.layout().keys():
        assert torch.equal(model.state_dict()[name], expected[name]), name
    return expected


def context_of(job):
    run = SimpleNamespace(store=None)
    return SimpleNamespace(job=job, run=run, fetch=lambda bring: bring(), group=Group())


def test_random_weights_have_the_same_bits():
    same_start(context_of(tiny_job(sft=None)), "pretrain")


def test_the_weights_of_the_stage_before_are_read_from_its_checkpoint(tmp_path, monkeypatch):
    job = tiny_job()
    config = job.model_config_resolved()
    (tmp_path / "config.json").write_text(to_json(config.to_dict()))
    save_file(Decoder(config).state_dict(), tmp_path / "model.safetensors")
    monkeypatch.setattr(f"{MODULE}._bring_trained", lambda run, stage: (stage, tmp_path))
    same_start(context_of(job), "sft")


def test_the_weights_of_a_base_are_fitted_to_the_job(tmp_path, monkeypatch):
    config = tiny_config(seq_len=96)
    save_file(
        {name: tensor.bfloat16() for name, tensor in Decoder(config).state_dict().items()},
        tmp_path / "model.safetensors",
    )
    (tmp_path / "config.json").write_text(to_json(config.to_dict()))
    monkeypatch.setattr(f"{MODULE}.bring_base", lambda store, base_hash: tmp_path)
    same_start(context_of(job_from(config, pretrain=None)), "sft")


# ---------------------------------------------------------------- models from elsewhere

EXPERTS = Experts(n=4, top_k=2, shared=0)


def drawn(config):
    torch.manual_seed(7)
    return Decoder(config)


def of_transformers(folder, model):
    """Save a model as transformers does: by its names, in bf16, in two files."""
    folder.mkdir()
    settings, state = to_transformers(model.config, model.state_dict())
    (folder / "config.json").write_text(to_json(settings))
    shard_of = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(sorted(state))}
    for shard in set(shard_of.values()):
        own = {name: state[name].bfloat16() for name in state if shard_of[name] == shard}
        save_file(own, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shard_of}))
    return folder


def context_from(source, patch, **changes):
    """Return the context of a job that starts from the model in the folder `source`."""
    patch.setattr(f"{MODULE}.bring_base", lambda store, base_hash: source)
    return context_of(job_from(read_config(source / "config.json"), **{"sft": None} | changes))


@pytest.mark.parametrize("experts", [None, EXPERTS])
def test_a_model_of_other_people_is_read_where_it_is_needed(tmp_path, monkeypatch, experts):
    """Each expert is a tensor for itself in its files."""
    config = tiny_config(seq_len=96, experts=experts)
    folder = of_transformers(tmp_path / "theirs", drawn(config))
    expected = drawn(config).state_dict()
    for changes in ({}, {"model__seq_len": 48}, {"model__gates": True}):
        found = same_start(context_from(folder, monkeypatch, **changes), "pretrain")
        for name, tensor in expected.items():
            assert torch.equal(found[name], tensor.bfloat16().float()), name


def test_weights_that_do_not_fit_are_refused_before_they_are_read(tmp_path, monkeypatch):
    config = tiny_config(seq_len=96)
    folder = of_transformers(tmp_path / "theirs", drawn(config))
    settings = json.loads((folder / "config.json").read_text()) | {"intermediate_size": 64}
    (folder / "config.json").write_text(json.dumps(settings))
    misfit = r"theirs: blocks\.0\.feedforward\.[\w.]+ has shape \(48, 32\)"
    with pytest.raises(BadInput, match=misfit):
        first_parts(context_from(folder, monkeypatch), "pretrain")


# ---------------------------------------------------------------- LoRA


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("base_dtype", [None, "bfloat16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_frozen_base_is_kept_as_a_whole_one_is(dtype, base_dtype, stored):
    base, lora = drawn(tiny_config()), Lora(rank=2, base_dtype=base_dtype)
    state = {name: tensor.to(stored) for name, tensor in base.state_dict().items()}
    whole = adapted(Decoder.from_state(base.config, state), lora, seed=3, dtype=dtype)
    model, weights = lazily_adapted(base.config, SavedTensors.of(state), lora, seed=3, dtype=dtype)
    expected, found = whole.state_dict(), model.state_dict()
    assert list(found) == list(expected)
    for name, tensor in Tensors(weights).items():
        own = torch.empty_like(found[name], device="cpu").copy_(tensor)
        assert own.dtype == expected[name].dtype
        assert torch.equal(own, expected[name]), name
    added = additions(whole)
    assert expected.keys() - weights.layout().keys() == added.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in added.items())
    learned = {name for name, param in model.named_parameters() if param.requires_grad}
    assert learned == added.keys()


def test_wrong_ids_of_the_draft_block_of_a_frozen_base_are_refused():
    base = drawn(tiny_config(draft=Draft(ids=50)))
    ids = base.state_dict()["draft.ids"]
    for wrong in (ids.flip(0), ids + base.config.vocab_size, ids - 1):
        weights = SavedTensors.of(base.state_dict() | {"draft.ids": wrong})
        with pytest.raises(BadInput, match=r"draft\.ids: not 50 rising ids of 0"):
            lazily_adapted(base.config, weights, Lora(rank=2), seed=3, dtype=torch.float32)


# ---------------------------------------------------------------- what a rank has at most

RANKS = 4
CONFIG = tiny_config(seq_len=96, d_model=64, d_ff=128, n_layers=8)
LORA = Lora(rank=2, base_dtype="bfloat16")
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
