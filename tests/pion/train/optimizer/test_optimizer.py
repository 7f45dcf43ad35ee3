"""How each parameter is updated, and optimizer state that survives a round trip."""

from dataclasses import replace

import pytest
import torch

from pion.config.model_config import ModelConfig
from pion.errors import BadInput
from pion.train.optimizer.optimizer import Optimizer
from pion.train.optimizer.rule import rule_of
from pion.train.optimizer.state_pieces import check_tensors
from pion.train.optimizers import OPTIMIZERS, Row
from pion.train.schedule import plan_at
from pion.train.settings import TrainSettings
from tests.support.tiny_config import drawn

TINY = ModelConfig(
    d_model=16, n_layers=2, n_heads=2, n_kv_heads=1, d_ff=24, vocab_size=32, seq_len=16
)


def settings(optimizer="adamw", weight_decay=0.1):
    return TrainSettings(
        steps=10, global_batch=2, lr=1e-2, optimizer=optimizer, weight_decay=weight_decay
    )


def at(scale, **fields):
    """Return the plan of a step whose rates are `scale` times the peak rates."""
    rising = replace(settings(**fields), warmup_steps=1000, steps=2000)
    return plan_at(rising, round(1000 * scale) - 1)


def give_gradients(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for param in model.parameters():
        param.grad = torch.randn(param.shape, generator=generator)


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_matrices_and_the_embedding_are_decayed_and_gains_are_not(kind):
    """With zero gradients, only decay changes a weight."""
    model = drawn(TINY)
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    before = weights(model)
    Optimizer(model, settings(kind)).step(at(1.0, optimizer=kind))
    for name, after in model.state_dict().items():
        assert torch.equal(after, before[name]) == (after.ndim < 2), name


def test_muon_takes_the_blocks_matrices_and_leaves_embedding_and_gains_to_adamw():
    names = Optimizer(drawn(TINY), settings("muon")).state_tensors()
    assert "blocks.1.feedforward.down_proj.weight.momentum" in names
    assert "embed.weight.exp_avg" in names
    assert "blocks.0.attention.q_norm.weight.exp_avg_sq" in names
    for name in names:
        matrix_of_a_block = name.startswith("blocks.") and "_proj." in name
        assert matrix_of_a_block == name.endswith(".momentum"), name


def test_both_rates_follow_the_schedule():
    model = drawn(TINY)
    give_gradients(model, seed=1)
    before = weights(model)
    Optimizer(model, settings("muon")).step(at(0.0, optimizer="muon"))
    for name, after in model.state_dict().items():
        assert torch.equal(after, before[name]), name


def test_adamw_state_is_refused_by_muon_naming_what_is_missing():
    saved = Optimizer(drawn(TINY), settings("adamw")).state_tensors()
    muon = Optimizer(drawn(TINY), settings("muon")).state_tensors()
    with pytest.raises(BadInput, match=r"has no tensor blocks\.0.*\.momentum and \d+ more"):
        check_tensors(saved, muon, "optimizer state")


def test_another_models_state_is_refused_naming_both_shapes():
    wider = ModelConfig.from_dict(TINY.to_dict() | {"d_ff": 32})
    saved = Optimizer(drawn(wider), settings()).state_tensors()
    with pytest.raises(BadInput, match=r"\(32, 16\).*\(24, 16\)"):
        check_tensors(saved, Optimizer(drawn(TINY), settings()).state_tensors(), "optimizer state")


def test_adamw_is_torchs():
    model, reference = drawn(TINY), drawn(TINY)
    ours = Optimizer(model, settings())
    decayed = [p for p in reference.parameters() if p.ndim >= 2]
    gains = [p for p in reference.parameters() if p.ndim < 2]
    theirs = torch.optim.AdamW(
        [{"params": decayed}, {"params": gains, "weight_decay": 0.0}],
        lr=1e-2,
        betas=(0.9, 0.95),
        weight_decay=0.1,
        foreach=False,
    )
    for step in range(4):
        give_gradients(model, seed=step)
        give_gradients(reference, seed=step)
        ours.step(at(1.0))
        theirs.step()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, reference.state_dict()[name])


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        ("lyon:Lyon", "optimizers.py names lyon:Lyon: No module"),
        ("torch:Lyon", "has no attribute 'Lyon'"),
        ("pion.train.optimizer.rule:Rule", "rule:Rule has no state and no step"),
    ],
)
def test_a_row_that_names_no_rule_is_refused(rule, why, monkeypatch):
    monkeypatch.setitem(OPTIMIZERS, "lyon", Row(rule, "Lyon", "of my own"))
    with pytest.raises(BadInput, match=why):
        rule_of("lyon", "matrix")
