"""The first weights of a sharded stage: those of a whole model, read where they are needed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pion.config.draft import Draft
from pion.config.lora import Adapter, Lora
from pion.config.model_config import ModelConfig
from pion.config.parts import Experts
from pion.errors import BadInput
from pion.formats.huggingface.architectures import to_transformers
from pion.formats.load import identify, load_decoder
from pion.model.decoder import Decoder
from pion.model.lazy_lora import lazily_adapted
from pion.model.lora_projections import adapted, add_lora, additions
from pion.model.saved_weights import Tensors, Whole
from pion.train.settings import ComputePlan
from pipeline.job import Job
from pipeline.job.model_section import Base
from pipeline.models.find import find_model
from pipeline.models.load import load_model
from pipeline.state.record_json import to_json
from pipeline.training.first_weights import first_model, first_parts
from pipeline.training.stage_model import with_additions
from pipeline.training.train_request import Group
from tests.support.jobs import tiny_dict, tiny_job
from tests.support.reference_world import Threads
from tests.support.tiny_config import tiny_config

MODULE = "pipeline.training.first_weights"


def same_start(context: Any, stage: str) -> dict[str, torch.Tensor]:
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


def context_of(job: Job, group: Group | None = None) -> Any:
    run = SimpleNamespace(store=None)
    return SimpleNamespace(job=job, run=run, fetch=lambda bring: bring(), group=group or Group())


def test_random_weights_have_the_same_bits() -> None:
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
    base = Base("base", "a" * 64, "b" * 64, config.to_dict())
    values = tiny_dict(model={"from": "base"}, pretrain=None)
    del values["tokenizer"]
    same_start(context_of(Job.model_validate(values, context={"base": base})), "sft")


# ---------------------------------------------------------------- models from elsewhere

EXPERTS = {"n": 4, "top_k": 2, "shared": 0}
SHAPE = ("d_model", "n_layers", "n_heads", "n_kv_heads", "d_ff", "vocab_size", "seq_len")
SECTION = {name: getattr(tiny_config(seq_len=96), name) for name in SHAPE}


def drawn(config: ModelConfig) -> Decoder:
    torch.manual_seed(7)
    return Decoder(config)


def of_transformers(folder: Path, model: Decoder) -> Path:
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


def context_from(source: Path, model: dict[str, Any], group: Group | None = None) -> Any:
    job = tiny_job(model=model, sft=None, pretrain__init_from=str(source))
    return context_of(job, group)


@pytest.mark.parametrize("experts", [None, EXPERTS])
def test_a_model_of_other_people_is_read_where_it_is_needed(tmp_path, experts):
    """Each expert is a tensor for itself in its files."""
    config = tiny_config(seq_len=96, experts=None if experts is None else Experts(**experts))
    folder = of_transformers(tmp_path / "theirs", drawn(config))
    section = {name: getattr(config, name) for name in SHAPE}
    section |= {} if experts is None else {"experts": experts}
    expected = drawn(config).state_dict()
    for changes in ({}, {"seq_len": 48}, {"gates": True}):
        found = same_start(context_from(folder, section | changes), "pretrain")
        for name, tensor in expected.items():
            assert torch.equal(found[name], tensor.bfloat16().float()), name


def test_rows_of_the_head_that_no_token_has_are_filled_up(tmp_path: Path) -> None:
    shape = {"n_layers": 6, "d_model": 32, "n_heads": 2, "n_kv_heads": 2, "d_ff": 48}
    shape |= {"vocab_size": 262, "seq_len": 64}
    model = Decoder(ModelConfig.preset("daisy-pico", **shape))
    with torch.no_grad():
        model.lm_head.weight.normal_()  # else its rows start as 0
    folder = of_transformers(tmp_path / "theirs", model)
    found = same_start(context_from(folder, {"preset": "daisy-pico", **shape}), "pretrain")
    head, expected = found["lm_head.weight"], model.lm_head.weight.bfloat16().float()
    assert len(head) == len(expected) > 262
    assert torch.equal(head[:262], expected[:262])
    assert not head[262:].any()


def test_weights_that_do_not_fit_are_refused_before_they_are_read(tmp_path: Path) -> None:
    config = tiny_config(seq_len=96)
    folder = of_transformers(tmp_path / "theirs", drawn(config))
    settings = json.loads((folder / "config.json").read_text()) | {"intermediate_size": 64}
    (folder / "config.json").write_text(json.dumps(settings))
    section = {name: getattr(config, name) for name in SHAPE} | {"d_ff": 64}
    misfit = r"theirs: blocks\.0\.feedforward\.[\w.]+ has shape \(48, 32\)"
    with pytest.raises(BadInput, match=misfit):
        first_parts(context_from(folder, section), "pretrain")


# ---------------------------------------------------------------- what each rank has found


def starts_from(folder: Path, group: Group) -> None:
    first_parts(context_from(folder, SECTION, group), "pretrain")


def adapts(folder: Path, group: Group) -> None:
    lora = {"sft__init_from": str(folder), "sft__lora": {"rank": 2}}
    context = context_of(tiny_job(model=SECTION, pretrain=None, **lora), group)
    data: Any = None  # nothing is computed
    with_additions(context, "sft", data, ComputePlan(), None)


def refusals(start: Callable[[Path, Group], None], folders: list[Path]) -> list[str | None]:
    """Return why each of the ranks, which are threads, can't start from its folder."""
    threads = Threads(len(folders))

    def refusal(rank: int) -> str | None:
        try:
            start(folders[rank], threads.group(rank))
        except BadInput as error:
            return str(error)
        except BaseException:
            threads.barrier.abort()
            raise
        return None

    with ThreadPoolExecutor(len(folders)) as pool:
        return list(pool.map(refusal, range(len(folders))))


@pytest.mark.parametrize("start", [starts_from, adapts])
def test_ranks_that_found_different_weights_are_refused(tmp_path, start):
    """A folder of one name may have another model on another machine. Its shapes may be equal."""
    model = drawn(tiny_config(seq_len=96))
    here, there = of_transformers(tmp_path / "here", model), tmp_path / "there"
    with torch.no_grad():
        model.norm.weight[-1] += 1
    of_transformers(there, model)
    for reason in refusals(start, [here, here, there]):
        assert "worker 0 has the tensors" in reason
        assert "worker 2 has the tensors" in reason
        assert "Nothing was changed" in reason


def test_ranks_that_found_the_same_weights_start(tmp_path: Path) -> None:
    here = of_transformers(tmp_path / "here", drawn(tiny_config(seq_len=96)))
    there = Path(shutil.copytree(here, tmp_path / "there"))
    assert refusals(starts_from, [here, there]) == [None, None]


# ---------------------------------------------------------------- LoRA


def trained_adapter(folder: Path, base: Path, lora: Lora) -> Path:
    """Save what LoRA has trained on a base."""
    model = load_decoder(base)
    adapter = Adapter(lora, identify(model, str(base)))
    config = model.config
    add_lora(model, lora, seed=1)
    torch.manual_seed(2)
    for tensor in additions(model).values():
        tensor.normal_(std=0.1)
    folder.mkdir()
    (folder / "adapter.json").write_bytes(adapter.to_json())
    (folder / "config.json").write_text(to_json(config.to_dict()))
    save_file(additions(model), folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("base_dtype", [None, "bfloat16"])
def test_what_lora_has_trained_is_merged_matrix_by_matrix(tmp_path: Path, base_dtype: Any) -> None:
    config = tiny_config(seq_len=96)
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text(to_json(config.to_dict()))
    save_file(drawn(config).state_dict(), base / "model.safetensors")
    folder = trained_adapter(tmp_path / "added", base, Lora(rank=2, base_dtype=base_dtype))
    section = {name: getattr(config, name) for name in SHAPE}
    found = same_start(context_from(folder, section), "pretrain")
    for name, tensor in load_model(find_model(str(folder))).state_dict().items():
        assert torch.equal(found[name], tensor), name
    (base / "model.safetensors").unlink()
    save_file(Decoder(config).state_dict(), base / "model.safetensors")
    with pytest.raises(BadInput, match="added"):
        first_parts(context_from(folder, section), "pretrain")


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("base_dtype", [None, "bfloat16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_frozen_base_is_kept_as_a_whole_one_is(dtype, base_dtype, stored):
    base, lora = drawn(tiny_config()), Lora(rank=2, base_dtype=base_dtype)
    state = {name: tensor.to(stored) for name, tensor in base.state_dict().items()}
    whole = adapted(Decoder.from_state(base.config, state), lora, seed=3, dtype=dtype)
    model, weights = lazily_adapted(base.config, Whole(state), lora, seed=3, dtype=dtype)
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


def test_wrong_ids_of_the_draft_block_of_a_frozen_base_are_refused() -> None:
    base = drawn(tiny_config(draft=Draft(ids=50)))
    ids = base.state_dict()["draft.ids"]
    for wrong in (ids.flip(0), ids + base.config.vocab_size, ids - 1):
        state = base.state_dict() | {"draft.ids": wrong}
        with pytest.raises(BadInput, match=r"draft\.ids: not 50 rising ids of 0"):
            lazily_adapted(base.config, Whole(state), Lora(rank=2), seed=3, dtype=torch.float32)
