"""Training a model with experts: cuts, optimizers, statistics, and the state that is saved."""

from dataclasses import replace

import pytest
import torch

from pion.config.parts import Experts
from pion.model.decoder import Decoder
from pion.train.trainer import ComputePlan, Trainer, TrainSettings
from tests.pion.train.conftest import CONFIG, run

MIXTURE = replace(CONFIG, experts=Experts(n=4, d_shared=16))
SETTINGS = TrainSettings(steps=30, global_batch=4, lr=1e-2, warmup_steps=2)


def trainer(stream, **plan):
    torch.manual_seed(0)
    return Trainer(Decoder(MIXTURE), stream, SETTINGS, ComputePlan(**plan))


def test_it_learns_and_reports_the_load_and_the_entropy_of_each_layer(text):
    rows = run(trainer(text, micro_batch=2), 30)
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.5
    for row in rows:
        assert len(row["expert_load"]) == len(row["router_entropy"]) == CONFIG.n_layers
        assert all(1 <= load <= 4 for load in row["expert_load"])
        assert all(
            0 < entropy <= torch.tensor(4.0).log() + 1e-6 for entropy in row["router_entropy"]
        )


def test_the_loss_is_the_cross_entropy_alone(text):
    losses, norms = [], []
    for weight in (0.0, 1e6):
        torch.manual_seed(0)
        experts = Experts(n=4, d_shared=16, z_weight=weight, balance_weight=weight)
        model = Decoder(replace(CONFIG, experts=experts))
        batch = text.batch(range(SETTINGS.global_batch))
        expected = model.loss(batch.tokens, batch.targets).item()
        training = Trainer(model, text, SETTINGS, ComputePlan(micro_batch=4))
        (row,) = run(training, 1)
        held_out = training.evaluate(text, range(4), micro_batch=4, end_of_text=0)
        losses.append(row["loss"])
        norms.append(row["grad_norm"])
        assert row["loss"] == pytest.approx(expected, rel=1e-6)
        assert held_out.loss < 1e2
    assert losses[0] == losses[1]
    assert norms[1] > 1e3 * norms[0]  # the auxiliary losses do train


def test_muon_orthogonalizes_each_expert_for_itself(text):
    torch.manual_seed(0)
    settings = replace(SETTINGS, optimizer="muon", muon_lr=0.1, weight_decay=0.0, clip=0.0)
    training = Trainer(Decoder(MIXTURE), text, settings, ComputePlan(micro_batch=4))
    name = "blocks.0.feedforward.down_proj"
    before = training.model.state_dict()[name].clone()
    training.train_step()
    moved = training.model.state_dict()[name] - before  # (experts, d_model, d_ff)
    for expert in moved:
        singular = torch.linalg.svdvals(expert)
        # Five iterations bring all but the smallest singular values near to each other.
        assert singular.max() / singular.quantile(0.2) < 1.5
    state = training.state()
    assert state.optimizer[f"{name}.momentum"].shape == before.shape
    assert f"{name}.exp_avg" not in state.optimizer
    assert "blocks.0.feedforward.router.exp_avg" in state.optimizer
