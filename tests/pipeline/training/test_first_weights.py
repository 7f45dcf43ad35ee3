"""A stage takes the weights of the model that the run starts from, or of the stage before."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from pion.config.draft import Draft
from pion.config.lora import Adapter, BaseModel, Lora
from pion.config.model_config import ModelConfig
from pion.data.tokens.tokenizer import train_bpe
from pion.formats.export import export_model
from pion.model import draft_block
from pion.model.decoder import Decoder
from pion.model.lora_projections import adapted, additions
from pion.model.parameters import tensors_sha256
from pion.model.saved_weights import Tensors
from pion.train.settings import ComputePlan
from pipeline.base.find import read_config
from pipeline.training.first_weights import first_model, frozen_base, show_first_rows
from pipeline.training.stage_model import StageModel, with_additions
from tests.pipeline.training.test_first_weights_parts import MODULE, context_of
from tests.support.jobs import job_from
from tests.support.tiny_config import tiny_config


@pytest.fixture
def first(monkeypatch):
    """`first(source, **given)`: the first weights of a job from this model; `given` are next to
    `from`."""

    def first(source, seed=0, **given):
        monkeypatch.setattr(f"{MODULE}.bring_base", lambda store, base_hash: source)
        config = read_config(source / "config.json")
        changes = {f"model__{name}": value for name, value in given.items()}
        job = job_from(config, sft=None, seed=seed, **changes)
        return first_model(context_of(job), "pretrain")[0]

    return first


def test_an_export_without_the_rows_that_no_token_has_is_continued(tmp_path, first):
    tokenizer = train_bpe(["some text to learn bytes from"], 262)
    tokenizer.save(tmp_path / "tokenizer.json")
    changes = {"n_layers": 6, "d_model": 32, "n_heads": 2, "n_kv_heads": 2, "d_ff": 48}
    changes |= {"vocab_size": tokenizer.vocab_size, "seq_len": 64}
    model = Decoder(ModelConfig.preset("daisy-pico", **changes))
    with torch.no_grad():
        model.lm_head.weight.normal_()  # else its rows start as 0
    export_model(model, tmp_path / "tokenizer.json", tmp_path / "export", chat=False)

    started = first(tmp_path / "export")
    assert len(started.lm_head.weight) == 262 < len(model.lm_head.weight)
    expected = model.state_dict()
    for name, tensor in started.state_dict().items():
        assert torch.equal(tensor, expected[name][: len(tensor)]), name


def saved(folder, seed=7, **changes):
    """Save a model as a checkpoint does, and return it."""
    torch.manual_seed(seed)
    model = Decoder(tiny_config(**{"seq_len": 64} | changes))
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(model.config.to_dict()))
    save_file(model.state_dict(), folder / "model.safetensors")
    return model


def test_a_shorter_context_has_fewer_learned_positions(tmp_path, first):
    table = saved(tmp_path, positions="learned").state_dict()["positions.weight"]
    short = first(tmp_path, seq_len=32)
    assert short.config.seq_len == 32
    assert torch.equal(short.state_dict()["positions.weight"], table[:32])


def test_a_model_gets_new_gates_and_keeps_all_else(tmp_path, first):
    plain = saved(tmp_path).state_dict()
    gated = first(tmp_path, gates=True).state_dict()
    added = {f"blocks.{layer}.gate.{name}" for layer in (0, 1) for name in ("weight", "bias")}
    assert gated.keys() - plain.keys() == added
    for name, tensor in plain.items():
        assert torch.equal(gated[name], tensor), name


def test_learned_gates_are_continued_or_left_out(tmp_path, first):
    learned = saved(tmp_path, gates=True).state_dict()
    learned["blocks.1.gate.weight"].normal_()
    save_file(learned, tmp_path / "model.safetensors")
    again = first(tmp_path).state_dict()
    assert torch.equal(again["blocks.1.gate.weight"], learned["blocks.1.gate.weight"])
    without = first(tmp_path, gates=False).state_dict()
    assert not any(".gate." in name for name in without)


# ---------------------------------------------------------------- drafts


def block_of(model):
    block = draft_block.block_of(model)
    return block.state_dict()


def test_a_model_gets_a_new_block_by_the_seed_and_keeps_all_else(tmp_path, first):
    plain = saved(tmp_path).state_dict()
    one, again, other = (first(tmp_path, seed=seed, draft={"ids": 50}) for seed in (1, 1, 2))
    for name, tensor in plain.items():
        assert torch.equal(one.state_dict()[name], tensor), name
    weight = "mix.weight"
    assert torch.equal(block_of(one)[weight], block_of(again)[weight])
    assert not torch.equal(block_of(one)[weight], block_of(other)[weight])
    assert block_of(one)[weight].std() > 0


def test_a_learned_block_is_continued_replaced_or_left_out(tmp_path, first):
    own = block_of(saved(tmp_path, draft=Draft(ids=50)))
    for steps in (3, 1):  # the steps change no tensor
        same = block_of(first(tmp_path, draft={"steps": steps}))
        assert all(torch.equal(same[name], own[name]) for name in own)
    other = block_of(first(tmp_path, draft={"ids": 60}))
    assert len(other["ids"]) == 60
    assert not torch.equal(other["mix.weight"], own["mix.weight"])
    assert draft_block.block_of(first(tmp_path, draft=None)) is None


def test_a_block_guesses_the_ids_that_the_training_rows_have_most_often(tmp_path, first):
    saved(tmp_path, vocab_size=262)
    model = first(tmp_path, draft={"ids": 3})
    tokens = torch.tensor([[9, 9, 9, 5, 5, 200], [200, 200, 200, 5, 7, 8]])
    rows = SimpleNamespace(total_rows=2, row=lambda n: SimpleNamespace(tokens=tokens[n].numpy()))
    show_first_rows(model, rows)
    assert block_of(model)["ids"].tolist() == [5, 9, 200]
    four = draft_block.most_frequent(tokens, 4, 262)
    assert four.tolist() == [5, 7, 9, 200]  # of 7 and 8, the lower id


def test_lora_keeps_the_block_of_its_base(tmp_path, first):
    model = saved(tmp_path, draft=Draft(ids=50))
    first(tmp_path)  # so that this base is found
    fields = {"model__draft": {"steps": 1}, "pretrain": None, "sft__seq_len": 32}
    job = job_from(model.config, sft__lora={"rank": 4}, **fields)
    config, weights, _ = frozen_base(context_of(job), "sft")
    kept = block_of(Decoder.from_state(config, dict(Tensors(weights))))
    assert all(torch.equal(kept[name], tensor) for name, tensor in block_of(model).items())


# ---------------------------------------------------------------- preferences after fine-tuning


@pytest.fixture
def after_sft(tmp_path, monkeypatch):
    """The start of a run and its model after `sft`, and the context of a stage that follows."""
    models = {
        name: saved(tmp_path / name, seed, seq_len=96) for seed, name in enumerate(("start", "sft"))
    }
    monkeypatch.setattr(f"{MODULE}.bring_base", lambda store, base_hash: tmp_path / "start")
    monkeypatch.setattr(f"{MODULE}._bring_trained", lambda run, stage: (stage, tmp_path / stage))
    prefer = {"sources": [{"kind": "jsonl", "path": "pairs.jsonl"}], "lora": {"rank": 2}}
    job = job_from(tiny_config(seq_len=96), pretrain=None, prefer=prefer)
    assert job.train_stages == ["sft", "prefer"]
    return models, context_of(job)


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
        assert StageModel(model, plan, adapter=adapter).weights_sha256() == after


def test_additions_that_are_trained_further_are_brought_once(after_sft, tmp_path, monkeypatch):
    """To bring them may hash the whole base."""
    models, context = after_sft
    lora, brought = {"rank": 2}, list[str]()
    section = context.job.prefer.model_dump(exclude_unset=True)
    fields = {"pretrain": None, "sft__lora": lora, "prefer": section}
    context.job = job_from(tiny_config(seq_len=96), **fields)
    identity = BaseModel("_bases/x", tensors_sha256(models["start"].state_dict()))
    (tmp_path / "adapter.json").write_bytes(Adapter(Lora(rank=2), identity).to_json())
    trained = adapted(Decoder(tiny_config(seq_len=96)), Lora(rank=2), seed=3, dtype=torch.float32)
    save_file(additions(trained), tmp_path / "model.safetensors")

    def bring(run, stage):
        brought.append(stage)
        return stage, tmp_path

    monkeypatch.setattr("pipeline.training.first_weights._bring_trained", bring)
    data = None
    start = with_additions(context, "prefer", data, ComputePlan(), None)
    assert brought == ["sft"]
    assert start.adapter.base.sha256 == identity.sha256
    found = additions(start.model)
    assert all(torch.equal(found[name], tensor) for name, tensor in additions(trained).items())
