"""A job with a draft block takes the model's weights, and its block if it has one."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from pion.config.model_config import ModelConfig
from pion.data.tokens.tokenizer import train_bpe
from pion.errors import BadInput
from pion.formats.weights import write_safetensors
from pion.model import draft_block
from pion.model.decoder import Decoder
from pion.model.saved_weights import Tensors
from pipeline.training.first_weights import first_model, frozen_base, show_first_rows
from tests.support.jobs import tiny_job

SHAPE: dict[str, Any] = {
    "d_model": 32,
    "n_layers": 2,
    "n_heads": 2,
    "n_kv_heads": 2,
    "d_ff": 48,
    "vocab_size": 262,
    "seq_len": 64,
}


def saved(folder: Path, **changes: Any) -> Decoder:
    """Save a model as a checkpoint does, and return it."""
    torch.manual_seed(7)
    model = Decoder(ModelConfig.of(SHAPE | changes))
    folder.mkdir()
    train_bpe(["some text to learn bytes from"], 262).save(folder / "tokenizer.json")
    (folder / "config.json").write_text(json.dumps(model.config.to_dict()))
    write_safetensors(folder / "model.safetensors", model.state_dict())
    return model


def first(source: Path, seed: int = 0, **changes: Any) -> Decoder:
    model = SHAPE | changes
    job = tiny_job(model=model, sft=None, pretrain__init_from=str(source), seed=seed)
    context: Any = SimpleNamespace(job=job, fetch=lambda bring: bring())
    return first_model(context, "pretrain")[0]


def block_of(model: Decoder) -> dict[str, torch.Tensor]:
    block = draft_block.block_of(model)
    return block.state_dict()


def test_a_model_gets_a_new_block_by_the_seed_and_keeps_all_else(tmp_path: Path) -> None:
    plain = saved(tmp_path / "plain").state_dict()
    one, again, other = (first(tmp_path / "plain", seed, draft={"ids": 50}) for seed in (1, 1, 2))
    for name, tensor in plain.items():
        assert torch.equal(one.state_dict()[name], tensor), name
    weight = "mix.weight"
    assert torch.equal(block_of(one)[weight], block_of(again)[weight])
    assert not torch.equal(block_of(one)[weight], block_of(other)[weight])
    assert block_of(one)[weight].std() > 0


def test_a_learned_block_is_continued_replaced_or_left_out(tmp_path: Path) -> None:
    model = saved(tmp_path / "drafted", draft={"ids": 50})
    own = block_of(model)
    for steps in (3, 1):  # the steps change no tensor
        same = block_of(first(tmp_path / "drafted", draft={"ids": 50, "steps": steps}))
        assert all(torch.equal(same[name], own[name]) for name in own)
    other = block_of(first(tmp_path / "drafted", draft={"ids": 60}))
    assert len(other["ids"]) == 60
    assert not torch.equal(other["mix.weight"], own["mix.weight"])
    assert draft_block.block_of(first(tmp_path / "drafted")) is None


def adapted_from(source: Path, **changes: Any) -> Decoder:
    """Return the frozen base of a job that adapts the model in `source` with LoRA."""
    lora = {"sft__init_from": str(source), "sft__lora": {"rank": 4}, "sft__seq_len": 32}
    job = tiny_job(model=SHAPE | changes, pretrain=None, **lora)
    context: Any = SimpleNamespace(job=job, fetch=lambda bring: bring())
    config, weights, _ = frozen_base(context, "sft")
    return Decoder.from_state(config, dict(Tensors(weights)))


def test_lora_keeps_the_block_of_its_base_and_needs_one_that_has_learned(tmp_path: Path) -> None:
    own = block_of(saved(tmp_path / "drafted", draft={"ids": 50}))
    kept = block_of(adapted_from(tmp_path / "drafted", draft={"ids": 50, "steps": 1}))
    assert all(torch.equal(kept[name], own[name]) for name in own)
    assert draft_block.block_of(adapted_from(tmp_path / "drafted")) is None
    saved(tmp_path / "plain")
    for source, which in (("plain", "no draft block"), ("drafted", "a draft block of other ids")):
        with pytest.raises(BadInput, match=f"has {which}, so the new block would learn nothing"):
            adapted_from(tmp_path / source, draft={"ids": 60})


def test_a_block_guesses_the_ids_that_the_training_rows_have_most_often(tmp_path: Path) -> None:
    saved(tmp_path / "plain")
    model = first(tmp_path / "plain", draft={"ids": 3})
    tokens = torch.tensor([[9, 9, 9, 5, 5, 200], [200, 200, 200, 5, 7, 8]])
    rows: Any = SimpleNamespace(
        total_rows=2, row=lambda n: SimpleNamespace(tokens=tokens[n].numpy())
    )
    show_first_rows(model, rows)
    assert block_of(model)["ids"].tolist() == [5, 9, 200]
    assert draft_block.most_frequent(tokens, 4, 262).tolist() == [
        5,
        7,
        9,
        200,
    ]  # of 7 and 8, the lower id


@pytest.mark.parametrize(
    ("draft", "message"),
    [
        ({"ids": 263}, "draft.ids is 263; it must be from 1 to 262"),
        ({"ids": 0}, "draft.ids is 0"),
        ({"steps": 0}, "draft.steps is 0"),
        ({"steps": 17}, "draft.steps"),
    ],
)
def test_a_block_that_no_model_has_is_refused(draft: dict[str, int], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        ModelConfig.of(SHAPE | {"draft": draft})
    with pytest.raises(ValidationError, match=r"model\.draft|draft\."):
        tiny_job(model=SHAPE | {"draft": draft}, sft=None)


def test_a_phase_that_trains_only_a_block_needs_one() -> None:
    phases = [{"rates": {"draft": 1, "others": 0}}]
    job = tiny_job(model=SHAPE | {"draft": {}}, sft=None, pretrain__phases=phases)
    assert job.pretrain is not None
    with pytest.raises(ValidationError, match="only draft would be trained: the model has none"):
        tiny_job(model=SHAPE, sft=None, pretrain__phases=phases)
