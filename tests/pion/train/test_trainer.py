"""The training loop in one process: each step, and that resuming changes nothing."""

import pytest
import torch
from torch.nn.functional import cross_entropy

from pion.errors import BadInput
from pion.train.trainer import ComputePlan, Trainer, TrainSettings
from tests.pion.train.conftest import open_stream, run, tiny_decoder
from tests.support.whole_state import whole_state


def settings(**fields):
    return TrainSettings(
        **{"steps": 6, "global_batch": 6, "lr": 1e-2, "warmup_steps": 2, "min_lr": 1e-3, **fields}
    )


def trainer(stream, *, seed=0, plan=None, **fields):
    return Trainer(
        tiny_decoder(seed), stream, settings(**fields), plan or ComputePlan(micro_batch=4)
    )


def assert_identical(a, b):
    for mine, other in ((a.model, b.model), (a.optimizer, b.optimizer)):
        assert mine.keys() == other.keys()
        for name in mine:
            assert mine[name].numpy().tobytes() == other[name].numpy().tobytes(), name
    assert a.meta == b.meta


# ---------------------------------------------------------------- resuming


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "dtype"),
    [
        ("adamw", "bfloat16"),
        ("muon", "float32"),
        ("adamw8bit", "float32"),
        pytest.param("adamw", "float32", marks=pytest.mark.soak),
        pytest.param("muon", "bfloat16", marks=pytest.mark.soak),
    ],
)
def test_a_resumed_run_ends_with_the_bytes_of_an_unbroken_one(text, optimizer, dtype):
    plan = ComputePlan(micro_batch=4, dtype=dtype, threads=1)
    unbroken = trainer(text, plan=plan, optimizer=optimizer)
    losses = run(unbroken, 6)

    first = trainer(text, plan=plan, optimizer=optimizer)
    run(first, 3)
    saved = whole_state(first)
    run(first, 1)  # work after the save that the interruption loses

    second = trainer(text, seed=99, plan=plan, optimizer=optimizer)
    torch.manual_seed(12345)
    second.load(saved)
    resumed = run(second, 3)

    assert_identical(whole_state(second), whole_state(unbroken))
    assert [m["loss"] for m in resumed] == [m["loss"] for m in losses[3:]]
    assert [m["rows"] for m in resumed] == [[18, 24], [24, 30], [30, 36]]


def test_skipped_rows_are_never_trained_on_even_when_the_batch_was_built_ahead(text):
    skipping = trainer(text)
    run(skipping, 1)
    skipping.skipped = [(8, 11)]
    (metrics,) = run(skipping, 1)
    assert metrics["rows"] == [6, 15]

    by_hand = [text.row(i) for i in (6, 7, 11, 12, 13, 14)]
    tokens = sum(int((row.targets != -100).sum()) for row in by_hand)
    assert metrics["tokens"] == tokens
    assert skipping.state().meta["skipped"] == [[8, 11]]


def test_a_state_of_another_optimizer_is_refused_and_changes_nothing(text):
    saved = whole_state(trainer(text, optimizer="adamw"))
    muon = trainer(text, seed=1, optimizer="muon")
    before = whole_state(muon)
    with pytest.raises(BadInput, match="optimizer state has no tensor"):
        muon.load(saved)
    assert_identical(whole_state(muon), before)


# ---------------------------------------------------------------- a step


def test_the_loss_is_the_mean_over_target_tokens_however_the_batch_is_cut(tmp_path):
    """Rows have between 1 and all of their tokens learned, so a mean of means would differ."""
    stream = open_stream(tmp_path, conversations=True)
    batch = stream.batch(range(6))
    model = tiny_decoder()
    logits = model(batch.tokens, positions=batch.positions, documents=batch.documents)
    expected = cross_entropy(logits.flatten(0, 1), batch.targets.flatten())
    expected.backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    for micro_batch in (1, 4, 6, 100):
        (metrics,) = run(trainer(stream, plan=ComputePlan(micro_batch=micro_batch)), 1)
        assert metrics["loss"] == pytest.approx(expected.item(), rel=1e-5)
        assert metrics["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)
        assert metrics["tokens"] == int((batch.targets != -100).sum())


def test_a_step_is_abandoned_between_micro_batches_with_nothing_changed(text):
    abandoned = trainer(text, plan=ComputePlan(micro_batch=2))
    run(abandoned, 1)
    before = whole_state(abandoned)
    answers = iter([False, False, True])
    assert abandoned.train_step(lambda: next(answers)) is False
    assert next(answers, None) is None  # asked before each of the three micro-batches
    assert abandoned.drain_metrics() == []
    assert_identical(whole_state(abandoned), before)

    run(abandoned, 1)
    unbroken = trainer(text, plan=ComputePlan(micro_batch=2))
    run(unbroken, 2)
    assert_identical(whole_state(abandoned), whole_state(unbroken))


@pytest.mark.parametrize("clip", [0.0, 0.5])
def test_the_gradient_is_clipped_to_its_global_norm_unless_clip_is_zero(text, clip):
    """AdamW's first moment after one step is (1 − β₁) times the gradient."""
    clipped = trainer(text, clip=clip)
    (metrics,) = run(clipped, 1)
    moments = [t for n, t in clipped.state().optimizer.items() if n.endswith(".exp_avg")]
    seen = torch.stack([moment.norm() for moment in moments]).norm().item() / 0.1
    assert metrics["grad_norm"] > 0.5
    assert seen == pytest.approx(clip or metrics["grad_norm"], rel=1e-4)


def test_weights_stay_fp32_under_bf16_and_learn(text):
    plan = ComputePlan(micro_batch=4, dtype="bfloat16")
    bf16 = trainer(text, plan=plan, steps=30, optimizer="muon")
    metrics = run(bf16, 30)
    assert all(tensor.dtype == torch.float32 for tensor in bf16.state().model.values())
    assert metrics[-1]["loss"] < 0.7 * metrics[0]["loss"]


# ---------------------------------------------------------------- metrics


def test_metrics_say_which_step_trained_on_which_rows_at_which_rate(text):
    metrics = run(trainer(text), 6)
    assert [m["step"] for m in metrics] == [1, 2, 3, 4, 5, 6]
    assert [m["rows"] for m in metrics] == [[i, i + 6] for i in range(0, 36, 6)]
    assert [m["lr"] for m in metrics[:3]] == [5e-3, 1e-2, 1e-2]
    assert metrics[-1]["lr"] == pytest.approx(1e-3)
    assert all(m["tokens"] == 6 * 23 for m in metrics)
    assert all(0 < m["mfu"] <= 1 and m["memory"] > 0 for m in metrics)


def test_throughput_counts_the_time_of_the_steps_and_not_what_the_caller_does_between(text):
    now = [100.0]
    timed = Trainer(
        tiny_decoder(), text, settings(), ComputePlan(micro_batch=6), clock=lambda: now[0]
    )

    def slow_step():
        now[0] += 2.0
        return False

    for _ in range(2):
        now[0] += 1000.0  # an evaluation, a checkpoint
        assert timed.train_step(slow_step)
        assert timed.train_step(slow_step)
        for metrics in timed.drain_metrics():
            assert metrics["tokens_per_second"] == 2 * 6 * 24 / 4.0
    assert timed.drain_metrics() == []


# ---------------------------------------------------------------- evaluation


def token_losses(model, batch):
    with torch.no_grad():
        logits = model(batch.tokens, positions=batch.positions, documents=batch.documents)
    return cross_entropy(logits.transpose(1, 2), batch.targets, reduction="none")


def test_evaluation_is_the_mean_per_token_whatever_the_micro_batch(tmp_path):
    stream = open_stream(tmp_path, conversations=True)
    batch = stream.batch(range(10, 30))
    model = trainer(stream)
    nll = token_losses(model.model, batch)
    tokens = (batch.targets != -100).sum()
    for micro_batch in (1, 7, 20):
        result = model.evaluate(stream, range(10, 30), micro_batch, end_of_text=0)
        assert result.loss == pytest.approx((nll.sum() / tokens).item(), rel=1e-5)
        assert (result.tokens, result.rows) == (int(tokens), 20)


@pytest.mark.parametrize("conversations", [True, False])
def test_the_standard_error_is_that_of_losses_over_samples_of_documents(tmp_path, conversations):
    """Compare it with the spread of the loss over bootstrap samples of the same documents."""
    stream = open_stream(tmp_path, rows=200, conversations=conversations)
    model, batch = trainer(stream), stream.batch(range(200))
    documents = torch.from_numpy(stream.document_numbers(range(200), end_of_text=20)).flatten()
    losses = token_losses(model.model, batch).double().flatten()
    learned = (batch.targets != -100).double().flatten()
    nll, tokens = (torch.bincount(documents, each) for each in (losses, learned))
    nll, tokens = nll[tokens > 0], tokens[tokens > 0]
    seeded = torch.Generator().manual_seed(0)
    draws = torch.randint(len(nll), (2000, len(nll)), generator=seeded)
    spread = (nll[draws].sum(dim=1) / tokens[draws].sum(dim=1)).std().item()
    found = model.evaluate(stream, range(200), 50, end_of_text=20)
    assert found.sem == pytest.approx(spread, rel=0.1)
    if not conversations:  # a single document is measured by its rows
        rows = losses.view(200, -1).sum(dim=1) / learned.view(200, -1).sum(dim=1)
        one = model.evaluate(stream, range(200), 50, end_of_text=10**6)
        assert one.sem == pytest.approx(rows.std().item() / 200**0.5, rel=1e-3)


def test_evaluating_moves_neither_mode_nor_random_numbers_nor_training(text):
    quiet, evaluating = trainer(text), trainer(text)
    run(quiet, 4)
    run(evaluating, 2)
    random = torch.get_rng_state()
    evaluating.evaluate(text, range(4), 2, end_of_text=0)
    assert torch.equal(torch.get_rng_state(), random)
    assert evaluating.model.training
    run(evaluating, 2)
    assert_identical(whole_state(evaluating), whole_state(quiet))


def test_evaluating_rows_without_a_target_is_refused(text):
    with pytest.raises(BadInput, match="held-out"):
        trainer(text).evaluate(text, range(0), 2, end_of_text=0)
