import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from pion.data.order import RowOrder
from pion.data.shards import IGNORED, Manifest, Rows, describe
from pion.data.stream import RowStream
from pion.errors import BadInput, PionError
from pion.evaluation.held_out import (
    Scorer,
    Scores,
    calibrate,
    score,
    summarize,
    summarize_responses,
)
from pion.evaluation.shares import ratio
from pion.model.decoder import Decoder
from tests.support.known_models import SEQ_LEN, VOCAB, OnSmallGpu, constant, decoder


def measure(model, data, rows, micro_batch, vocab_size=VOCAB):
    """Return the loss on the first rows of `data`; every id is one byte."""
    return summed(Scorer(model, vocab_size, micro_batch), data, np.ones(vocab_size), rows)


def summed(scorer, data, token_bytes, rows=10):
    scores = score(scorer, data, range(rows))
    documents = data.document_numbers(range(rows), VOCAB)
    return summarize(scores.nll, scores.targets, token_bytes, documents)


def stream(rows, folder, vocab_size=VOCAB, end_of_text=None):
    """Return the rows in order; each `end_of_text` in a row begins a document."""
    np.save(folder / "shard_00000.npy", rows.astype(np.uint16))
    shard = describe(folder / "shard_00000.npy", rows.shape[1])
    manifest = Manifest("tokens", rows.shape[1], vocab_size, (shard,))
    order = RowOrder([shard.rows], manifest.fingerprint, seed=0, window=1)
    return RowStream([(Rows(manifest, lambda s: folder / s.name), order)], documents=end_of_text)


def random_rows(rows=10, vocab_size=VOCAB, seed=0):
    return np.random.default_rng(seed).integers(0, vocab_size, (rows, SEQ_LEN))


# ---------------------------------------------------------------- text


def test_a_model_of_known_logits_gets_the_loss_worked_out_by_hand(tmp_path):
    log_odds = [0.3 * i + 1 for i in range(VOCAB)]
    rows = random_rows()
    measured = measure(constant(log_odds), stream(rows, tmp_path), 10, 4)
    log_p = np.array(log_odds) - np.log(np.exp(log_odds).sum())
    assert measured["loss"] == pytest.approx(-log_p[rows[:, 1:]].mean(), rel=1e-6)
    assert measured["perplexity"] == pytest.approx(math.exp(measured["loss"]))
    assert (measured["rows"], measured["tokens"]) == (10, 10 * (SEQ_LEN - 1))


def test_bits_per_byte_of_a_uniform_model_is_log2_of_the_vocabulary_per_byte(tmp_path):
    rows = random_rows()
    token_bytes = np.arange(VOCAB)  # id 0 is special: 0 bytes
    scorer = Scorer(constant([1.0] * VOCAB), VOCAB, 4)
    measured = summed(scorer, stream(rows, tmp_path), token_bytes)
    size = token_bytes[rows[:, 1:]].sum()
    assert measured["bytes"] == size
    assert measured["bits_per_byte"] == pytest.approx(math.log2(VOCAB) * measured["tokens"] / size)
    assert measured["loss_sem"] == pytest.approx(0, abs=1e-6)
    assert measured["bits_per_byte_sem"] > 0  # rows of equal loss differ in bytes


def test_embedding_rows_the_tokenizer_lacks_take_no_probability(tmp_path):
    data = stream(random_rows(vocab_size=8), tmp_path)
    uniform = constant([1.0] * 8 + [5.0] * 4)
    measured = measure(uniform, data, 10, 4, vocab_size=8)
    assert measured["loss"] == pytest.approx(math.log(8), rel=1e-6)
    assert measure(uniform, data, 10, 4, vocab_size=12)["loss"] > measured["loss"] + 1


def test_the_loss_is_the_one_the_decoder_trains_on(tmp_path):
    model, rows = decoder().train(), random_rows()
    measured = measure(model, stream(rows, tmp_path), 10, 3)
    assert model.training
    assert torch.is_grad_enabled()
    assert all(parameter.grad is None for parameter in model.parameters())
    tokens = torch.from_numpy(rows)
    expected = model.loss(tokens[:, :-1], tokens[:, 1:]).item()
    assert measured["loss"] == pytest.approx(expected, rel=1e-5)


def test_logits_of_weights_in_bf16_are_not_rounded(tmp_path):
    """The frozen weights of LoRA may be in bf16, the head too."""
    exact, rows = decoder(), random_rows()
    model = Decoder.from_state(exact.config, exact.state_dict(), torch.bfloat16)
    data = stream(rows, tmp_path)
    measured = summed(Scorer(model, VOCAB, 4, dtype=torch.bfloat16), data, np.ones(VOCAB))
    assert measured["loss"] == pytest.approx(measure(exact, data, 10, 4)["loss"], rel=1e-2)
    logits = model.logits_in_fp32(torch.randn(9, exact.config.d_model), VOCAB)
    assert logits.dtype == torch.float32
    assert not torch.equal(logits, logits.bfloat16().float())


def test_a_document_in_a_row_is_predicted_as_if_it_was_alone(tmp_path):
    model, row = decoder(), random_rows(rows=1)
    row[row == 3] = 4
    row[0, [5, 9]] = 3  # an end-of-text begins a document, and the one before predicts it
    nats = 0.0
    for first, stop in ((0, 5), (5, 9), (9, SEQ_LEN)):
        logits = model(torch.from_numpy(row[:, first:stop]))[0]
        targets = torch.from_numpy(row[0, first + 1 : stop + 1])
        nats += cross_entropy(logits[: len(targets)], targets, reduction="sum").item()
    within = stream(row, tmp_path, end_of_text=3)
    assert measure(model, within, 1, 1)["loss"] == pytest.approx(nats / (SEQ_LEN - 1), rel=1e-5)
    whole = measure(model, stream(row, tmp_path), 1, 1)
    assert whole["loss"] != pytest.approx(nats / (SEQ_LEN - 1), rel=1e-3)


def test_chunks_of_logits_and_batches_of_rows_change_nothing(tmp_path, monkeypatch):
    model, data = decoder(), stream(random_rows(), tmp_path)
    whole = measure(model, data, 10, 10)
    monkeypatch.setattr("pion.evaluation.held_out.LOGITS_AT_ONCE", 7 * VOCAB)
    parts = measure(model, data, 10, 1)
    assert parts["loss"] == pytest.approx(whole["loss"], rel=1e-6)
    assert parts["loss_sem"] == pytest.approx(whole["loss_sem"], rel=1e-4)


def test_ids_beyond_the_tokenizer_and_no_rows_are_refused(tmp_path):
    data = stream(random_rows(), tmp_path)
    with pytest.raises(BadInput, match="id 11 in the data is beyond the tokenizer's 8 ids"):
        measure(decoder(), data, 10, 4, vocab_size=8)
    with pytest.raises(BadInput, match="no held-out rows"):
        measure(decoder(), data, 0, 4)


def test_a_diverged_model_is_reported_as_such_instead_of_failing(tmp_path):
    hopeless = constant([0.0] * (VOCAB - 1) + [2000.0])
    measured = measure(hopeless, stream(np.zeros((2, SEQ_LEN), dtype=np.int64), tmp_path), 2, 4)
    assert measured["loss"] == pytest.approx(2000)
    assert measured["perplexity"] == math.inf


# ---------------------------------------------------------------- memory


def test_out_of_memory_halves_the_batch_and_gives_the_same_result(tmp_path):
    model, data = decoder(), stream(random_rows(11), tmp_path)
    small = OnSmallGpu(model, limit=2)
    measured = measure(small, data, 11, 8)
    assert measured["loss"] == pytest.approx(measure(model, data, 11, 8)["loss"], rel=1e-6)
    assert small.seen == [8, 4, 2, 2, 2, 2, 2, 1]
    with pytest.raises(PionError, match=r"single sequence .*3\.00 GiB.* checkpoints are safe"):
        measure(OnSmallGpu(model, 0), data, 10, 8)


# ---------------------------------------------------------------- standard errors


def test_the_standard_error_of_a_ratio_agrees_with_the_bootstrap():
    rng = np.random.default_rng(0)
    sizes = rng.integers(5, 50, 400)
    amounts = sizes * rng.normal(3, 0.5, 400) + rng.normal(0, 10, 400)
    value, sem = ratio(amounts, sizes)
    resampled = []
    for _ in range(2000):
        i = rng.integers(0, 400, 400)
        resampled.append(amounts[i].sum() / sizes[i].sum())
    assert value == pytest.approx(amounts.sum() / sizes.sum())
    assert sem == pytest.approx(np.std(resampled), rel=0.1)


def test_a_single_row_has_no_standard_error_and_ignored_targets_do_not_count():
    nll, targets = np.array([[1.0, 9.0, 3.0]]), np.array([[1, IGNORED, 1]])
    measured = summarize(nll, targets, np.array([0, 4]), np.zeros((1, 3)))
    assert (measured["loss"], measured["tokens"], measured["bytes"]) == (2.0, 2, 8)
    assert math.isnan(measured["loss_sem"])


def test_a_document_of_many_rows_is_one_unit_and_one_document_falls_back_to_its_rows():
    of_documents = np.random.default_rng(0).exponential(1, (50, 1))  # each of 8 rows
    nll = np.repeat(of_documents, 8, axis=0).repeat(4, axis=1)
    targets, rows = np.ones((400, 4), dtype=np.int64), np.arange(400)[:, None].repeat(4, axis=1)
    by_rows, by_documents, one = (
        summarize(nll, targets, np.ones(2), numbers) for numbers in (rows, rows // 8, rows * 0)
    )
    assert by_rows["loss"] == pytest.approx(by_documents["loss"])
    assert by_documents["loss_sem"] == pytest.approx(nll[::8, 0].std(ddof=1) / math.sqrt(50))
    assert by_documents["loss_sem"] == pytest.approx(math.sqrt(8) * by_rows["loss_sem"], rel=0.02)
    assert one["loss_sem"] == by_rows["loss_sem"]


def test_the_documents_of_a_stream_continue_over_rows_in_whatever_order_they_are_read(tmp_path):
    rows = np.array([[1, 2, 0, 3], [4, 5, 6, 7], [8, 0, 9, 0], [1, 1, 0, 2]])
    data = stream(rows, tmp_path)
    order = [int(np.flatnonzero((rows == data.row(i).tokens).all(axis=1))[0]) for i in range(4)]
    found = dict(zip(order, data.document_numbers(range(4), end_of_text=0).tolist(), strict=True))
    a, b, c, d, e = found[0][0], found[1][0], found[2][1], found[3][0], found[3][2]
    assert found[0] == [a, a, b, b]
    assert found[1] == [b] * 4
    assert found[2][:3] == [b, c, c]
    assert found[3] == [d, d, e, e]
    assert len({a, b, c, d, e}) == 5


# ---------------------------------------------------------------- conversations


class Conversations:
    """Rows in which only some targets are learned; 0 ends a turn."""

    def __init__(self, tokens, learned):
        self.tokens, self.learned = torch.tensor(tokens), torch.tensor(learned, dtype=torch.bool)

    def document_numbers(self, indices, end_of_text):
        return np.arange(2)[:, None].repeat(self.tokens.shape[1], axis=1)[list(indices)]

    def batch(self, indices):
        from pion.data.stream import Batch

        tokens = self.tokens[indices]
        targets = torch.full_like(tokens, IGNORED)
        targets[:, :-1] = tokens[:, 1:]
        targets[:, :-1][~self.learned[indices][:, 1:]] = IGNORED
        documents = torch.zeros_like(tokens)
        return Batch(tokens, targets, torch.arange(tokens.shape[1]).expand_as(tokens), documents)


CONVERSATIONS = Conversations(
    [[5, 6, 7, 0, 5, 8], [5, 9, 0, 7, 7, 0]], [[0, 1, 1, 1, 0, 0], [0, 1, 1, 0, 0, 0]]
)


def on_responses(model):
    scores = score(Scorer(model, VOCAB, 4), CONVERSATIONS, range(2))
    return summarize_responses(scores, 0, CONVERSATIONS.document_numbers(range(2), 0))


def test_response_loss_counts_only_learned_tokens():
    log_odds = [0.2 * i for i in range(VOCAB)]
    measured = on_responses(constant(log_odds))
    log_p = np.array(log_odds) - np.log(np.exp(log_odds).sum())
    assert measured["response_loss"] == pytest.approx(-log_p[[6, 7, 0, 9, 0]].mean(), rel=1e-6)
    assert measured["response_loss_sem"] > 0


def test_a_model_that_always_stops_has_every_stop_right_and_every_other_token_wrong():
    always = on_responses(constant([9.0] + [0.0] * 11))
    never = on_responses(constant([-9.0] + [0.0] * 11))
    assert (always["stop_accuracy"], always["false_stop_rate"]) == (1.0, 1.0)
    assert (never["stop_accuracy"], never["false_stop_rate"]) == (0.0, 0.0)
    # Two conversations are no certainty.
    assert always["stop_accuracy_sem"] == never["stop_accuracy_sem"] == pytest.approx(0.5 / 3)


# ---------------------------------------------------------------- calibration


ROW = 64  # tokens in a document


def calibration(confidence, right, documents=True):
    """Return the calibration of one token after the other; each ROW of them are a document."""
    said, hits = confidence.reshape(-1, ROW), right.reshape(-1, ROW).astype(np.int64)
    nothing = np.zeros(said.shape)
    numbers = np.arange(len(said))[:, None].repeat(ROW, axis=1) * documents
    # The likeliest id is 1, and so is the target where this is right.
    return calibrate(Scores(nothing, hits, np.ones_like(hits), said), numbers)


def said(rng, tokens=1000 * ROW):
    return rng.uniform(0.02, 1, tokens)


def test_a_model_that_says_70_and_is_right_62_times_of_100_is_8_points_off():
    right = np.arange(100 * ROW) % 100 < 62
    found = calibration(np.full(right.shape, 0.7), right)
    assert found["ece"] == pytest.approx(0.08)
    assert found["brier"] == pytest.approx(0.62 * 0.3**2 + 0.38 * 0.7**2)
    assert (found["confidence"], found["accuracy"]) == (pytest.approx(0.7), pytest.approx(0.62))
    assert found["near_70"]["accuracy"] == pytest.approx(0.62)
    assert found["near_70"]["tokens"] == found["tokens"] == len(right)


def test_a_model_that_is_right_as_often_as_it_says_has_almost_no_error():
    rng = np.random.default_rng(0)
    confidence = said(rng)
    found = calibration(confidence, rng.random(confidence.shape) < confidence)
    assert found["ece"] < 0.01
    assert found["brier"] == pytest.approx(np.mean(confidence * (1 - confidence)), abs=0.002)
    assert found["near_70"]["accuracy"] == pytest.approx(
        0.7, abs=4 * found["near_70"]["accuracy_sem"]
    )


def test_a_model_that_is_always_right_is_no_certainty():
    found = calibration(np.full(10 * ROW, 0.7), np.ones(10 * ROW))
    assert (found["accuracy"], found["near_70"]["accuracy"]) == (1, 1)
    assert found["accuracy_sem"] == found["near_70"]["accuracy_sem"] == pytest.approx(0.5 / 11)


def test_errors_of_opposite_sign_in_different_bins_do_not_cancel():
    confidence = np.tile([0.3, 0.9], 50 * ROW)
    right = np.tile([0, 0, 1, 1, 0, 1, 1, 1, 0, 1], 10 * ROW)  # 0.4 of the first, 0.8 of the others
    assert right[::2].mean() == pytest.approx(0.4)
    assert right[1::2].mean() == pytest.approx(0.8)
    found = calibration(confidence, right)
    assert found["confidence"] == pytest.approx(found["accuracy"])
    assert found["ece"] == pytest.approx(0.1)


def test_the_standard_errors_agree_with_the_bootstrap_over_documents():
    rng = np.random.default_rng(0)
    confidence = said(rng, 300 * ROW)
    harder = rng.uniform(0.5, 0.9, 300).repeat(ROW)  # documents in which the model is too sure
    right = rng.random(confidence.shape) < confidence * harder
    found = calibration(confidence, right)
    again = []
    for _ in range(300):
        chosen = rng.integers(0, 300, 300)
        rows = confidence.reshape(-1, ROW)[chosen], right.reshape(-1, ROW)[chosen]
        again.append(calibration(*rows))
    for name in ("ece", "brier", "confidence", "accuracy"):
        spread = np.std([each[name] for each in again])
        assert found[f"{name}_sem"] == pytest.approx(spread, rel=0.15)


def test_tokens_without_a_target_do_not_count():
    targets = np.array([[1, IGNORED, 1, 2]])
    confidence = np.array([[0.5, 0.9, 0.5, 0.5]])
    scores = Scores(np.zeros((1, 4)), targets, np.array([[1, IGNORED, 1, 1]]), confidence)
    found = calibrate(scores, np.zeros((1, 4), dtype=np.int64))
    assert found["tokens"] == 3
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert math.isnan(found["accuracy_sem"])  # of a single row
    assert found["near_70"] is None


def test_a_diverged_model_has_no_calibration_but_its_tokens_are_counted():
    found = calibration(np.full(2 * ROW, math.nan), np.zeros(2 * ROW))
    assert math.isnan(found["ece"])
    assert math.isnan(found["brier"])
    assert found["tokens"] == 2 * ROW


def test_probabilities_are_those_of_the_softmax_over_the_tokenizers_ids(tmp_path):
    log_odds = [0.3 * i for i in range(VOCAB)]
    data = stream(random_rows(vocab_size=8), tmp_path)
    scores = score(Scorer(constant(log_odds), 8, 4), data, range(10))
    expected = np.exp(0.3 * 7) / np.exp(log_odds[:8]).sum()
    assert scores.confidence[:, : SEQ_LEN - 1] == pytest.approx(expected, rel=1e-6)
    assert scores.confidence[scores.targets == IGNORED] == pytest.approx(0.0)
    # A sure model says 1 and not more.
    scores = score(Scorer(constant([0.0] * (VOCAB - 1) + [2000.0]), VOCAB, 4), data, range(10))
    assert scores.confidence[scores.targets != IGNORED] == pytest.approx(1.0, abs=0)
