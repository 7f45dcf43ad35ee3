"""The held-out loss of preferences is that of training, whatever the batches."""

import math
from contextlib import closing

import pytest
import torch

from pion.errors import BadInput
from pion.train.preference import Preference
from pion.train.preference_losses import answer_sums
from pion.train.reference import sums_of
from pion.train.settings import ComputePlan, TrainSettings
from pion.train.trainer import Trainer
from tests.support.pair_rows import CONFIG, PairRows, Sums, random_pairs
from tests.support.tiny_config import drawn

ROWS = random_pairs(7, seed=3)


def sums_of_all():
    """Return the model's and the reference's sums of every pair."""
    batch = PairRows(ROWS).batch(range(len(ROWS)))
    with torch.no_grad():
        sums, _ = answer_sums(drawn(CONFIG), batch)
    side = batch.sequences.side
    both = [sums, batch.sequences.reference, batch.sequences.tokens.double()]
    (a, b), (r_w, r_l), (n_w, n_l) = ((each[side > 0], each[side < 0]) for each in both)
    return Sums(a, b, r_w, r_l, n_w, n_l)


def evaluated(preference, rows, micro_batch):
    stream, settings = PairRows(ROWS).as_stream(), TrainSettings(4, 2, 1e-3, learning=preference)
    with closing(Trainer(drawn(CONFIG), stream, settings, ComputePlan())) as trainer:
        return trainer.evaluate(stream, rows, micro_batch, end_of_text=0)


@pytest.mark.parametrize("micro_batch", [1, 3, 16])
def test_the_loss_and_the_accuracy_are_means_over_pairs(micro_batch):
    s = sums_of_all()
    margins = 0.3 * ((s.a - s.r_w) - (s.b - s.r_l))
    losses = -torch.nn.functional.logsigmoid(margins)
    found = evaluated(Preference("dpo", beta=0.3), range(7), micro_batch)
    assert found.loss == pytest.approx(float(losses.mean()), rel=1e-6)
    assert found.sem == pytest.approx(float(losses.std()) / math.sqrt(len(losses)), rel=1e-6)
    assert found.measures["accuracy"] == pytest.approx(float((margins > 0).double().mean()))
    assert found.measures["margin"] == pytest.approx(float(margins.mean()), rel=1e-6)
    assert found.rows == 7
    assert found.tokens == int(s.n_w.sum() + s.n_l.sum())


def test_the_cross_entropy_that_training_adds_counts():
    s = sums_of_all()
    plain, more = (evaluated(Preference("dpo", sft_weight=w), range(7), 4) for w in (0.0, 0.5))
    assert more.loss - plain.loss == pytest.approx(0.5 * float(-s.a.sum() / s.n_w.sum()), rel=1e-6)


def test_no_rows_are_refused():
    with pytest.raises(BadInput, match=r"raise prefer\.held_out"):
        evaluated(Preference(), range(0), 1)


@pytest.mark.parametrize("preference", [Preference("dpo"), Preference("dpo-norm")], ids=str)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dtype": "bfloat16"},
        {"dtype": "bfloat16", "residual": "bfloat16"},
        {"dtype": "bfloat16", "residual": "bfloat16", "recompute": True},
    ],
    ids=str,
)
def test_a_model_that_is_its_reference_has_the_loss_of_a_coin_exactly(changes, preference):
    plan = ComputePlan(threads=1, **changes)
    start, rows = drawn(CONFIG), PairRows(ROWS)
    numbers = sums_of(start, rows.batch(range(len(ROWS))), plan)
    own = [
        [
            pair._replace(reference=(numbers[row][2 * n], numbers[row][2 * n + 1]))
            for n, pair in enumerate(pairs)
        ]
        for row, pairs in enumerate(ROWS)
    ]
    stream = PairRows(own).as_stream()
    settings = TrainSettings(4, 2, 1e-3, learning=preference)
    trainer = Trainer(start, stream, settings, plan)
    for micro_batch in (7, 2):
        found = trainer.evaluate(stream, range(7), micro_batch, end_of_text=0)
        assert found.loss == pytest.approx(math.log(2), abs=1e-15)
        assert found.measures == {"accuracy": 0.5, "margin": 0.0}
    assert not any(param.grad is not None for param in start.parameters())
    trainer.close()
