"""z0 of kto: the distance from the reference over a whole step, before any gradient."""

from __future__ import annotations

import math
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

from pion.config.lora import Lora
from pion.data.sequences import Sequences
from pion.errors import BadInput
from pion.model.decoder import Decoder
from pion.model.lora_projections import add_lora
from pion.train import preference_losses
from pion.train import trainer as trainer_module
from pion.train.answer_sums import answer_sums
from pion.train.distance import apart, distance, z0_of
from pion.train.held_out_preferences import PreferenceScorer, evaluate_preferences
from pion.train.preference import Preference
from pion.train.reference import sums_as_trained, sums_of
from pion.train.settings import ComputePlan, TrainSettings
from pion.train.trainer import Trainer
from tests.support.pair_rows import CONFIG, PairRows, PlainModel, random_pairs, with_others
from tests.support.resumed_trainers import assert_resumed_equals_unbroken

ROWS = 8
PAIRS = random_pairs(ROWS, seed=5)
KTO = Preference("kto", beta=0.2, desirable_weight=1.5)


def decoder(seed: int = 0) -> Decoder:
    torch.manual_seed(seed)
    return Decoder(CONFIG)


def rows(**options: Any) -> PairRows:
    """Return rows whose reference is another model, from which ours is a positive distance away."""
    plain, made = PlainModel(decoder(seed=3), 1e-3), []
    count = sum(map(len, PAIRS))
    with torch.no_grad():
        for given in (PAIRS, with_others(PAIRS, [(0.0, 0.0)] * count)):
            sums = [plain.sums(row) for row in given]
            made.append(
                [
                    [
                        pair._replace(reference=(float(r_w) - 1, float(r_l) - 1))
                        for pair, r_w, r_l in zip(row, each.a, each.b, strict=True)
                    ]
                    for row, each in zip(given, sums, strict=True)
                ]
            )
    return PairRows(made[0], single=True, others=made[1], **options)


def expected_z0(given: PairRows, seed: int = 0) -> float:
    """Return z0 as a plain model in fp64 computes it, over all sequences."""
    assert given.others is not None
    with torch.no_grad():
        sums = PlainModel(decoder(seed), 1e-3).sums([pair for row in given.others for pair in row])
    apart = torch.cat([sums.a - sums.r_w, sums.b - sums.r_l])
    return max(0.0, float(apart.mean()))


def trainer(
    given: PairRows,
    *,
    micro_batch: int = 3,
    dtype: Any = "float32",
    model: Decoder | None = None,
) -> Trainer:
    settings = TrainSettings(
        steps=4, global_batch=ROWS, lr=1e-2, schedule="constant", preference=KTO
    )
    plan = ComputePlan(micro_batch=micro_batch, threads=1, dtype=dtype)
    return Trainer(model or decoder(), given.as_stream(), settings, plan)


def one_step(given: PairRows, **options: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    made, found = trainer(given, **options), {}
    update = made.optimizer.step

    def look(plan: Any) -> None:
        found.update(
            {n: p.grad.clone() for n, p in made.model.named_parameters() if p.grad is not None}
        )
        update(plan)

    made.optimizer.step = look  # type: ignore[method-assign]
    assert made.train_step()
    (measured,) = made.drain_metrics()
    made.close()
    return measured, found


# ---------------------------------------------------------------- what it is


def test_a_step_says_its_distance_over_all_its_rows() -> None:
    measured, _ = one_step(rows())
    assert measured["z0"] == pytest.approx(expected_z0(rows()), rel=1e-5)
    assert measured["z0"] > 0.1


def test_no_size_of_micro_batches_changes_a_step() -> None:
    whole, gradients = one_step(rows(), micro_batch=ROWS)
    for micro_batch in (1, 2, 3, 5):
        measured, own = one_step(rows(), micro_batch=micro_batch)
        for name in ("z0", "loss", "grad_norm", "margin", "accuracy"):
            assert measured[name] == pytest.approx(whole[name], rel=1e-5, abs=1e-6), name
        for name, gradient in own.items():
            torch.testing.assert_close(gradient, gradients[name], rtol=1e-4, atol=1e-6)


def test_the_order_of_rows_in_a_step_changes_nothing() -> None:
    one, _ = one_step(rows())
    other, _ = one_step(rows(order=[5, 2, 7, 0, 1, 6, 3, 4]))
    assert other["z0"] == pytest.approx(one["z0"], rel=1e-5)
    assert other["loss"] == pytest.approx(one["loss"], rel=1e-6)


def test_a_mean_below_0_is_0() -> None:
    assert float(z0_of(torch.tensor([-3.0, 2.0], dtype=torch.float64))) == 0.0
    assert float(z0_of(torch.tensor([3.0, 2.0], dtype=torch.float64))) == 1.5


def test_a_step_without_any_answer_of_others_has_no_distance() -> None:
    assert float(z0_of(torch.zeros(2, dtype=torch.float64))) == 0.0


def test_the_sum_and_the_count_leave_out_what_is_no_sequence() -> None:
    batch = rows().mismatched.batch(range(ROWS))  # type: ignore[union-attr]
    assert batch.sequences is not None
    assert (batch.sequences.side == 0).any()
    total = distance(decoder(), batch, ComputePlan())
    assert total.dtype == torch.float64
    assert float(total[1]) == float((batch.sequences.side != 0).sum())
    changed = torch.where(batch.sequences.side == 0, math.inf, batch.sequences.reference)
    others = Sequences(changed, batch.sequences.tokens, batch.sequences.side)
    again = type(batch)(batch.tokens, batch.targets, batch.positions, batch.documents, others)
    assert torch.equal(distance(decoder(), again, ComputePlan()), total)


def test_it_has_no_gradient_and_keeps_nothing_for_one() -> None:
    batch = rows().mismatched.batch(range(ROWS))  # type: ignore[union-attr]
    model, kept = decoder(), []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(weakref.ref(other := tensor.detach()))
        return other

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        total = distance(model, batch, ComputePlan())
    assert not total.requires_grad
    assert kept
    assert not any(tensor() is not None for tensor in kept)


def test_a_model_that_is_its_own_reference_has_no_distance() -> None:
    given = rows()
    assert given.others is not None
    found = sums_of(decoder(), given.mismatched.batch(range(ROWS)), ComputePlan())  # type: ignore[union-attr]
    own = [
        [
            pair._replace(reference=(a, b))
            for pair, a, b in zip(row, each[::2], each[1::2], strict=True)
        ]
        for row, each in zip(given.others, found, strict=True)
    ]
    measured, _ = one_step(PairRows(given.rows, single=True, others=own))
    assert measured["z0"] == pytest.approx(0, abs=1e-5)


@pytest.mark.soak
def test_a_compiled_model_in_bf16_is_as_far_from_its_reference_as_its_reference_says() -> None:
    """Without gradients, compiled blocks keep other numbers in fp32."""
    plan = ComputePlan(micro_batch=ROWS, threads=1, dtype="bfloat16", compile=True)
    batch = rows().mismatched.batch(range(ROWS))  # type: ignore[union-attr]
    model = decoder().train()
    sums = sums_as_trained(model, batch, plan)
    own = Sequences(sums, batch.sequences.tokens, batch.sequences.side)  # type: ignore[union-attr]
    given = type(batch)(batch.tokens, batch.targets, batch.positions, batch.documents, own)
    assert distance(model, given, plan)[0] == 0.0


def test_bf16_is_near_fp32() -> None:
    exact, rounded = (one_step(rows(), dtype=dtype)[0]["z0"] for dtype in ("float32", "bfloat16"))
    assert rounded == pytest.approx(exact, rel=0.05)
    assert rounded != exact


# ---------------------------------------------------------------- stopping and resuming


def test_a_stop_before_the_gradients_abandons_the_step() -> None:
    made = trainer(rows())
    before = {name: value.clone() for name, value in made.model.state_dict().items()}
    assert not made.train_step(lambda: True)
    for calls in range(1, 6):  # in the pass before the gradients, and between these
        asked = iter([False] * calls + [True] * 9)
        assert not made.train_step(lambda asked=asked: next(asked))  # type: ignore[misc]
    assert made.step == 0
    after = made.model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert made.train_step()
    made.close()


def test_a_resumed_run_ends_with_the_bytes_of_an_unbroken_one() -> None:
    assert_resumed_equals_unbroken(lambda: trainer(rows()))


def test_too_little_memory_for_the_pass_makes_micro_batches_smaller(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right, _ = one_step(rows(), micro_batch=2)

    def too_large(model: Any, batch: Any, *given: Any) -> Tensor:
        if len(batch.tokens) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return distance(model, batch, *given)

    monkeypatch.setattr(trainer_module, "distance", too_large)
    made = trainer(rows(), micro_batch=ROWS)
    changes: list[Any] = []
    made.on_step_down = changes.append
    assert made.train_step()
    assert [change.plan.micro_batch for change in changes] == [4, 2]
    (measured,) = made.drain_metrics()
    made.close()
    assert (measured["z0"], measured["loss"]) == (right["z0"], right["loss"])


def test_lora_has_the_distance_of_its_base_and_learns() -> None:
    model = decoder()
    add_lora(model, Lora(rank=4), seed=1)
    made = trainer(rows(), model=model)
    for _ in range(4):
        assert made.train_step()
    first, *_, last = made.drain_metrics()
    made.close()
    assert first["z0"] == pytest.approx(one_step(rows())[0]["z0"], rel=1e-6)
    assert last["loss"] < first["loss"]


# ---------------------------------------------------------------- held-out rows


@pytest.mark.parametrize("micro_batch", [1, 3, 16])
def test_the_held_out_loss_has_the_distance_of_all_held_out_rows(micro_batch: int) -> None:
    given = rows()
    z0 = expected_z0(given)
    with torch.no_grad():
        sums = PlainModel(decoder(), 1e-3).sums([pair for row in given.rows for pair in row])
    desired = 1.5 * torch.sigmoid(-0.2 * (sums.a - sums.r_w - z0))
    undesired = torch.sigmoid(-0.2 * (z0 - (sums.b - sums.r_l)))
    losses = torch.cat([desired, undesired])
    scorer = PreferenceScorer(decoder(), KTO, micro_batch, ComputePlan())
    found = evaluate_preferences(scorer, given.as_stream(), range(ROWS))
    assert found.measures["z0"] == pytest.approx(z0, rel=1e-5)
    assert found.loss == pytest.approx(float(losses.mean()), rel=1e-5)
    assert found.sem == pytest.approx(float(losses.std()) / math.sqrt(len(losses)), rel=1e-4)


# ---------------------------------------------------------------- refusals


def test_rows_without_answers_of_others_are_refused() -> None:
    alone = PairRows(PAIRS, single=True)
    with pytest.raises(BadInput, match="needs each row with the answers of others"):
        trainer(alone)
    scorer = PreferenceScorer(decoder(), KTO, 4, ComputePlan())
    with pytest.raises(BadInput, match="needs each row with the answers of others"):
        evaluate_preferences(scorer, alone.as_stream(), range(ROWS))


# ---------------------------------------------------------------- planted mistakes


def test_a_distance_with_a_gradient_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = one_step(rows(), micro_batch=ROWS)

    def margins(preference: Any, sums: Tensor, sequences: Any, z0: Tensor) -> Tensor:
        return preference.strength * sequences.side * (sums - sequences.reference - z0)  # type: ignore[no-any-return]

    monkeypatch.setattr(preference_losses, "_single_margins", margins)
    assert_same_gradients(one_step(rows(), micro_batch=ROWS), right)  # the same, until here

    def with_gradient(model: Decoder, batch: Any, plan: Any, parts: Any) -> Tensor:
        return apart(answer_sums(model, batch)[0], batch.sequences)

    monkeypatch.setattr(trainer_module, "distance", with_gradient)
    wrong = one_step(rows(), micro_batch=ROWS)
    assert wrong[0]["loss"] == pytest.approx(right[0]["loss"])
    with pytest.raises(AssertionError):
        assert_same_gradients(wrong, right)


def assert_same_gradients(one: tuple[Any, Any], other: tuple[Any, Any]) -> None:
    for name, gradient in one[1].items():
        torch.testing.assert_close(gradient, other[1][name], rtol=1e-5, atol=1e-7)


def test_a_distance_of_each_micro_batch_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some trainers have made this mistake."""

    def of_the_last(self: Trainer, batch: Any, plan: Any, stop: Any) -> Tensor | None:
        return z0_of(distance(self.model, batch.mismatched[-1], self.plan, plan.parts))

    monkeypatch.setattr(Trainer, "_distance", of_the_last)
    with pytest.raises(AssertionError):
        test_no_size_of_micro_batches_changes_a_step()
