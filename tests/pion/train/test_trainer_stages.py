"""Each stage trains each part of a model, by itself and under LoRA, or leaves the part as it is."""

from dataclasses import fields

import pytest
import torch

from pion.config.lora import ATTENTION, Lora
from pion.config.model_config import APART_ROLES, ModelConfig
from pion.model.lora_projections import adapted, additions, merge
from pion.model.parameters import parameter_roles
from pion.train.preference import Preference
from pion.train.reinforce import Reinforcement
from pion.train.rollout_feed import Judged, Prompts
from pion.train.trainer import ComputePlan, Trainer, TrainSettings
from pipeline.job.stages import TRAINING
from tests.families.families import FAMILIES, SEQ_LEN, VOCAB, Family
from tests.pion.train.conftest import open_stream, run
from tests.support.pair_rows import Pair, PairRows

MODELS = FAMILIES | {"two biases": Family({"activation": "gelu", "feedforward_bias": True})}
LEARNING = {
    "pretrain": {},
    "sft": {},
    "prefer": {"learning": Preference("dpo")},
    "reinforce": {"learning": Reinforcement(answers=2, max_tokens=8)},
}
STEADY = {"steps": 2, "global_batch": 2, "lr": 1e-2, "schedule": "constant", "weight_decay": 0.0}
TOKENS = torch.arange(48).view(2, 24)


def first_is_better(rows, groups):
    return Judged(torch.tensor([[1.0, 0.0] for _ in groups], dtype=torch.float64), {})


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """What each stage reads. All texts have a whole segment of slots."""
    config, folder = MODELS["pion"].config(), tmp_path_factory.mktemp("rows")
    for stage in ("pretrain", "sft"):
        (folder / stage).mkdir()
    pair = Pair([5, 9, 7, 11, 13], [17, 8, 30, 6, 2], [40, 41, 3, 29], (-9.0, -12.0))
    return {
        "pretrain": open_stream(folder / "pretrain", config=config),
        "sft": open_stream(folder / "sft", config=config, conversations=True),
        "prefer": PairRows([[pair]]).as_stream(),
        "reinforce": Prompts(
            lambda row: [7 + row, 9, 5], first_is_better, SEQ_LEN, 3, frozenset([3]), VOCAB
        ),
    }


def test_each_stage_and_each_part_is_tried():
    usual = ModelConfig.preset("pion-nano")
    parts = {each.name for each in fields(usual) if getattr(usual, each.name) in (None, False)}
    tried = {name for family in MODELS.values() for name in family.model}
    assert parts - tried == {"imported", "came_as"}
    assert tuple(LEARNING) == TRAINING


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
@pytest.mark.parametrize("stage", LEARNING)
@pytest.mark.parametrize("name", MODELS)
def test_each_tensor_learns_in_two_steps_if_the_stage_has_a_loss_for_it(name, stage, lora, rows):
    model = MODELS[name].decoder()
    roles = parameter_roles(model)
    without_loss = APART_ROLES | {"gate"} if stage == "reinforce" else ()
    learn = {name for name, role in roles.items() if role not in without_loss}
    if lora:
        base, dense = model(TOKENS), model.config.feedforward == "dense"
        settings = Lora(rank=4) if dense else Lora(rank=4, targets=ATTENTION)
        model = adapted(model, settings, seed=0, dtype=torch.float32)
        assert torch.equal(model(TOKENS), base)
        learn = additions(model).keys()
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    settings, plan = TrainSettings(**STEADY, **LEARNING[stage]), ComputePlan(threads=1)
    trainer = Trainer(model, rows[stage], settings, plan)
    assert all(step["grad_norm"] > 0 for step in run(trainer, 2))
    assert trainer.state().model.keys() == (learn if lora else model.state_dict().keys())
    trainer.close()
    after = dict(model.named_parameters())
    assert {name for name in after if not torch.equal(after[name], before[name])} == learn
    if lora:
        torch.testing.assert_close(merge(model)(TOKENS), model(TOKENS), rtol=1e-3, atol=1e-3)
