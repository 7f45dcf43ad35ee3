"""A step of preferences in the trainer: what its loss is, and what it must not depend on."""

from dataclasses import replace

import pytest
import torch

from pion.config.lora import Lora
from pion.errors import BadInput
from pion.model.lora_projections import add_lora
from pion.train.preference import Preference
from pion.train.preference_losses import METRICS, answer_sums, example_losses, metrics
from pion.train.trainer import ComputePlan, Trainer, TrainSettings
from tests.pion.train.conftest import open_stream, run
from tests.support.pair_rows import CONFIG, PairRows, random_pairs
from tests.support.tiny_config import drawn

ROWS = 8
LOSSES = [
    Preference("dpo"),
    Preference("dpo-norm", sft_weight=0.3),
    Preference("apo-zero", unpaired=True, undesirable_weight=2.0),
]


def trainer(rows, preference, *, micro_batch=3, dtype="float32", model=None):
    steady = {"lr": 1e-2, "schedule": "constant", "weight_decay": 0.0}
    settings = TrainSettings(steps=4, global_batch=ROWS, learning=preference, **steady)
    plan = ComputePlan(micro_batch=micro_batch, threads=1, dtype=dtype)
    return Trainer(model or drawn(CONFIG), rows.as_stream(), settings, plan)


def one_step(rows, preference, **options):
    """Return the metrics of a step, and the gradients, which are clipped to a norm of 1."""
    made = trainer(rows, preference, **options)
    found = {}
    update = made.optimizer.step

    def look(plan):
        found.update(
            {n: p.grad.clone() for n, p in made.model.named_parameters() if p.grad is not None}
        )
        update(plan)

    made.optimizer.step = look
    (measured,) = run(made, 1)
    made.close()
    return measured, found


def assert_equal(one, other, tolerance):
    for name in ("loss", "grad_norm", *METRICS):
        assert one[0][name] == pytest.approx(other[0][name], rel=tolerance, abs=tolerance), name
    for name, gradient in one[1].items():
        torch.testing.assert_close(gradient, other[1][name], rtol=10 * tolerance, atol=tolerance)


def single(preference):
    return not preference.paired


# ---------------------------------------------------------------- what a step is


@pytest.mark.parametrize("preference", LOSSES, ids=str)
def test_a_step_is_the_mean_over_all_examples_however_it_is_cut(preference):
    """Rows have between 1 and 3 pairs, so a mean of means would differ."""
    rows = PairRows(random_pairs(ROWS), single=single(preference))
    assert len({len(row) for row in rows.rows}) > 1
    whole = one_step(rows, preference, micro_batch=ROWS)
    for micro_batch in (1, 2, 3, 4):
        assert_equal(one_step(rows, preference, micro_batch=micro_batch), whole, 1e-6)


@pytest.mark.parametrize("preference", LOSSES, ids=str)
def test_the_ids_of_padding_change_no_bit(preference):
    pairs = random_pairs(ROWS)
    (one, gradients), (other, changed) = (
        one_step(PairRows(pairs, single=single(preference), pad=pad), preference) for pad in (0, 9)
    )
    assert {n: one[n] for n in ("loss", *METRICS)} == {n: other[n] for n in ("loss", *METRICS)}
    assert all(torch.equal(gradients[name], changed[name]) for name in gradients)


def test_metrics_are_means_over_the_step():
    rows = PairRows(random_pairs(ROWS))
    measured, _ = one_step(rows, Preference("dpo"))
    batch = rows.batch(range(ROWS))
    with torch.no_grad():
        sums, _ = answer_sums(drawn(CONFIG), batch)
    every = [len(row) for row in rows.rows]
    numbers = metrics(Preference("dpo"), sums, batch.sequences)
    tokens = sum(len(pair.chosen) for row in rows.rows for pair in row)
    for name, value in numbers.items():
        count = {"chosen_nll": tokens, "pairs": 1}.get(name, sum(every))
        assert measured[name] == pytest.approx(value.item() / count, rel=1e-5), name
    assert measured["pairs"] == sum(every)
    losses = example_losses(Preference("dpo"), sums, batch.sequences)
    assert measured["loss"] == pytest.approx(losses.sum().item() / sum(every), rel=1e-6)
    assert measured["tokens"] == int((batch.targets != -100).sum())


# ---------------------------------------------------------------- other models and plans


def test_bf16_is_near_fp32():
    rows = PairRows(random_pairs(ROWS))
    exact, rounded = (
        one_step(rows, Preference("dpo"), dtype=dtype)[0] for dtype in ("float32", "bfloat16")
    )
    assert rounded["loss"] == pytest.approx(exact["loss"], rel=2e-2)
    assert rounded["loss"] != exact["loss"]


def test_lora_has_the_loss_of_its_base_and_learns():
    rows = PairRows(random_pairs(ROWS))
    model = drawn(CONFIG)
    add_lora(model, Lora(rank=4), seed=1)
    made = trainer(rows, Preference("dpo"), model=model)
    losses = [step["loss"] for step in run(made, 4)]
    made.close()
    assert losses[0] == pytest.approx(one_step(rows, Preference("dpo"))[0]["loss"], rel=1e-6)
    assert losses[-1] < losses[0]


def test_auxiliary_losses_are_those_of_a_step_without_preferences():
    model = drawn(replace(CONFIG, gates=True))
    batch = PairRows(random_pairs(ROWS)).batch(range(ROWS))
    given = {"positions": batch.positions, "documents": batch.documents}
    usual = model.losses(batch.tokens, batch.targets, **given)
    ours = model.log_probs(batch.tokens, batch.targets, **given)
    assert usual.aux > 0
    assert torch.equal(ours.aux, usual.aux)
    assert ours.stats.keys() == usual.stats.keys()


# ---------------------------------------------------------------- refusals


def test_rows_without_answers_are_refused(tmp_path):
    settings = TrainSettings(steps=2, global_batch=4, lr=1e-3, learning=Preference())
    stream = open_stream(tmp_path, conversations=True, config=CONFIG)
    made = Trainer(drawn(CONFIG), stream, settings, ComputePlan(micro_batch=2, threads=1))
    with pytest.raises(BadInput, match="rows have no chosen and rejected answers"):
        made.train_step()
    made.close()
