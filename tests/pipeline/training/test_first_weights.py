"""`init_from` takes what an import or an export of the same model gives."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import pion
from pion.config.lora import Adapter, BaseModel, Lora
from pion.config.model_config import ModelConfig
from pion.data.tokens.tokenizer import train_bpe
from pion.errors import BadInput
from pion.formats.export import export_model
from pion.formats.seeds import import_seed
from pion.formats.weights import write_safetensors
from pion.model.decoder import Decoder
from pion.model.lora_projections import adapted, additions
from pion.model.parameters import tensors_sha256
from pion.model.saved_weights import Tensors
from pion.train.settings import ComputePlan
from pipeline.job import Job
from pipeline.job.model_section import Base
from pipeline.training.first_weights import first_model, frozen_base
from pipeline.training.reference.of_stage import Start, name_of
from pipeline.training.stage_model import with_additions
from pipeline.training.train_request import Group
from tests.paths import SEEDS
from tests.support.jobs import tiny_dict, tiny_job
from tests.support.tiny_config import tiny_config

TACHYON = SEEDS / "tachyon_moe_ckpt.pt"
CORE = ("d_model", "n_layers", "n_heads", "n_kv_heads", "d_ff", "vocab_size", "seq_len")


def first(model: dict[str, Any], source: Path) -> Decoder:
    """Return the first weights of a job with this model and `init_from`."""
    job = tiny_job(model=model, sft=None, pretrain__init_from=str(source))
    context: Any = SimpleNamespace(job=job, fetch=lambda bring: bring())
    return first_model(context, "pretrain")[0]


def tachyon(**changes: int) -> dict[str, Any]:
    """Return the `model` section that describes the seed."""
    config = import_seed(TACHYON).config
    names = ("n", "top_k", "shared", "d_shared")
    experts = {name: getattr(config.experts, name) for name in names} | changes
    return {name: getattr(config, name) for name in CORE} | {"experts": experts}


def test_an_imported_mixture_of_experts_is_continued() -> None:
    weights = import_seed(TACHYON).state_dict()
    started = first(tachyon(), TACHYON)
    assert started.config.experts.balance == "row"  # the seed's is "batch"
    for name, tensor in started.state_dict().items():
        assert torch.equal(tensor, weights[name]), name


def test_another_number_of_experts_is_refused() -> None:
    with pytest.raises(BadInput, match=r"experts\.n: job 9, model 5"):
        first(tachyon(n=9), TACHYON)


def test_an_export_without_the_rows_that_no_token_has_is_continued(tmp_path: Path) -> None:
    tokenizer = train_bpe(["some text to learn bytes from"], 262)
    tokenizer.save(tmp_path / "tokenizer.json")
    changes = {"n_layers": 6, "d_model": 32, "n_heads": 2, "n_kv_heads": 2, "d_ff": 48}
    changes |= {"vocab_size": tokenizer.vocab_size, "seq_len": 64}
    model = Decoder(ModelConfig.preset("daisy-pico", **changes))
    with torch.no_grad():
        model.lm_head.weight.normal_()  # else its rows start as 0
    export_model(model, tmp_path / "tokenizer.json", tmp_path / "export", chat=False)

    started = first({"preset": "daisy-pico", **changes}, tmp_path / "export")
    rows, padded = tokenizer.vocab_size, 384
    assert len(started.lm_head.weight) == len(model.lm_head.weight) == padded
    assert not started.lm_head.weight[rows:].any()
    expected = model.state_dict()
    for name, tensor in started.state_dict().items():
        count = rows if name == "lm_head.weight" else len(tensor)
        assert torch.equal(tensor[:count], expected[name][:count]), name


def ternary(**primitives: Any) -> dict[str, Any]:
    """Return the `model` section of a small ternary PILON."""
    shape = {"d_model": 32, "n_layers": 2, "n_heads": 2, "n_kv_heads": 2, "d_ff": 48}
    shape |= {"vocab_size": 262, "seq_len": 64, "positions": "learned", "activation": "relu2"}
    banks = {"n": 4, "rank": 4, "top_k": 4, "bands": [[0, 1]], "ternary": True} | primitives
    return shape | {"heads": {"qk_norm": False}, "primitives": banks}


def published(folder: Path, model: dict[str, Any]) -> Path:
    """Publish random weights of a model, and return the folder."""
    train_bpe(["some text to learn bytes from"], 262).save(folder / "tokenizer.json")
    decoder = Decoder(ModelConfig.of(model))
    export_model(decoder, folder / "tokenizer.json", folder / "export", chat=False)
    return folder / "export"


def test_a_packed_model_is_continued_and_its_rounding_is_said(tmp_path: Path) -> None:
    folder = published(tmp_path, ternary())
    job = tiny_job(model=ternary(), sft=None, pretrain__init_from=str(folder))
    context: Any = SimpleNamespace(job=job, fetch=lambda bring: bring())
    started, origin = first_model(context, "pretrain")
    assert origin == f"starts from {folder}, whose ternary weights are already rounded"
    again, _ = pion.load(folder)
    tokens = torch.arange(60).view(2, 30)
    with torch.no_grad():
        assert (started(tokens) - again(tokens)).abs().max() <= 1e-4


def test_a_packed_model_without_its_unused_primitives_is_refused(tmp_path: Path) -> None:
    model = ternary(top_k=1)
    folder = published(tmp_path, model)
    with pytest.raises(BadInput, match="primitives that no layer used were left out") as refusal:
        first(model, folder)
    assert f"init_from {folder}" in str(refusal.value)


def test_a_damaged_packed_model_is_refused_by_name(tmp_path: Path) -> None:
    folder = published(tmp_path, ternary())
    file, damages = folder / "model.safetensors", dict[str, Any]()
    tensors = load_file(file)
    damages["packed is damaged: a byte above 242"] = lambda packed: packed.clone().fill_(250)
    damages["numbers is damaged: it must have rising numbers"] = lambda numbers: numbers.flip(0)
    damages["scales is damaged: a scale is not finite"] = lambda scales: scales * float("nan")
    for message, damage in damages.items():
        name = f"decoder.bands.0.down.{message.split()[0]}"
        write_safetensors(file, tensors | {name: damage(tensors[name])}, {"format": "pt"})
        with pytest.raises(BadInput, match=rf"export: bands\.0\.down\.{message}"):
            first(ternary(), folder)


def test_a_context_beyond_the_learned_positions_is_refused(tmp_path: Path) -> None:
    folder = published(tmp_path, ternary())
    assert first(ternary() | {"seq_len": 32}, folder).config.seq_len == 32
    with pytest.raises(BadInput, match="learned 64 positions, but the job's context has 128"):
        first(ternary() | {"seq_len": 128}, folder)


def test_a_published_model_whose_primitives_are_multiplied_out_is_refused(tmp_path: Path) -> None:
    plain = ternary(ternary=False) | {"positions": "rotary"}
    folder = published(tmp_path, plain)
    assert pion.load(folder)[0].config.feedforward_bias
    with pytest.raises(BadInput, match="has its primitives multiplied out") as refusal:
        first(plain, folder)
    assert "runs/NAME@pretrain" in str(refusal.value)


def test_a_model_gets_new_gates_and_keeps_all_else(tmp_path: Path) -> None:
    folder = published(tmp_path, ternary())
    plain = first(ternary(), folder).state_dict()
    gated = first(ternary() | {"gates": True}, folder).state_dict()
    added = {f"blocks.{layer}.gate.{name}" for layer in (0, 1) for name in ("weight", "bias")}
    assert gated.keys() - plain.keys() == added
    for name, tensor in plain.items():
        assert torch.equal(gated[name], tensor), name


def test_learned_gates_are_continued_or_left_out(tmp_path: Path) -> None:
    train_bpe(["some text to learn bytes from"], 262).save(tmp_path / "tokenizer.json")
    model = Decoder(ModelConfig.of(ternary() | {"gates": True}))
    with torch.no_grad():
        for block in model.blocks:
            block.gate.weight.normal_()
    export_model(model, tmp_path / "tokenizer.json", tmp_path / "export", chat=False)
    again = first(ternary() | {"gates": True}, tmp_path / "export").state_dict()
    assert torch.equal(again["blocks.1.gate.weight"], model.state_dict()["blocks.1.gate.weight"])
    without = first(ternary(), tmp_path / "export").state_dict()
    assert not any(".gate." in name for name in without)


# ---------------------------------------------------------------- preferences after fine-tuning


@pytest.fixture
def after_sft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Decoder], Any]:
    """The start of a run and its model after `sft`, and the context of a stage that follows."""
    models = {}
    for seed, name in enumerate(("start", "sft")):
        torch.manual_seed(seed)
        models[name] = Decoder(tiny_config(seq_len=96))
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(models[name].config.to_dict()))
        save_file(models[name].state_dict(), folder / "model.safetensors")
    module = "pipeline.training.first_weights"
    monkeypatch.setattr(f"{module}.bring_base", lambda store, base_hash: tmp_path / "start")
    monkeypatch.setattr(f"{module}._bring_trained", lambda run, stage: (stage, tmp_path / stage))
    base = Base("base", "a" * 64, "b" * 64, tiny_config(seq_len=96).to_dict())
    prefer = {"sources": [{"kind": "jsonl", "path": "pairs.jsonl"}], "lora": {"rank": 2}}
    values = tiny_dict(model={"from": "base"}, pretrain=None, prefer=prefer)
    del values["tokenizer"]
    job = Job.model_validate(values, context={"base": base})
    assert job.train_stages == ["sft", "prefer"]
    run = SimpleNamespace(store=None)
    return models, SimpleNamespace(job=job, run=run, fetch=lambda bring: bring())


def test_preferences_after_fine_tuning_start_from_the_fine_tuned_model(after_sft):
    """Also with LoRA: the base of the job is not what the additions, or the reference, are of."""
    models, context = after_sft
    start, after = (tensors_sha256(models[name].state_dict()) for name in ("start", "sft"))
    assert start != after
    assert tensors_sha256(first_model(context, "prefer")[0].state_dict()) == after
    config, weights, identity = frozen_base(context, "prefer")
    assert tensors_sha256(Tensors(weights)) == identity.sha256 == after
    model, plan = Decoder.from_state(config, dict(Tensors(weights))), ComputePlan()
    for adapter in (None, Adapter(Lora(rank=2), identity)):
        assert name_of(Start(model, adapter, plan)) == after


def test_additions_that_are_trained_further_are_brought_once(after_sft, tmp_path, monkeypatch):
    """To bring them may hash the whole base."""
    models, context = after_sft
    lora, brought = {"rank": 2}, list[str]()
    base = Base("base", "a" * 64, "b" * 64, tiny_config(seq_len=96).to_dict())
    changes = {"sft": context.job.sft.model_dump(exclude_unset=True) | {"lora": lora}}
    values = context.job.model_dump(mode="json", exclude_unset=True) | changes
    context.job = Job.model_validate(values, context={"base": base})
    context.group = Group()
    identity = BaseModel("_bases/x", tensors_sha256(models["start"].state_dict()))
    (tmp_path / "adapter.json").write_bytes(Adapter(Lora(rank=2), identity).to_json())
    trained = adapted(Decoder(tiny_config(seq_len=96)), Lora(rank=2), seed=3, dtype=torch.float32)
    save_file(additions(trained), tmp_path / "model.safetensors")

    def bring(run: Any, stage: str) -> tuple[str, Path]:
        brought.append(stage)
        return stage, tmp_path

    monkeypatch.setattr("pipeline.training.first_weights._bring_trained", bring)
    data: Any = None
    model, _, _, adapter = with_additions(context, "prefer", data, ComputePlan(), None)
    assert brought == ["sft"]
    assert adapter.base.sha256 == identity.sha256
    found = additions(model)
    assert all(torch.equal(found[name], tensor) for name, tensor in additions(trained).items())
