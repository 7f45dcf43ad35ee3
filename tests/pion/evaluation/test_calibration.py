"""Calibration compares the probability of the likeliest token with how often it is right."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from pion.data.shards import IGNORED
from pion.evaluation.calibration import Calibration, calibrate
from pion.evaluation.held_out import Scorer, Scores, score
from tests.pion.evaluation.test_held_out import random_rows, stream
from tests.support.known_models import SEQ_LEN, VOCAB, constant

ROW = 64  # tokens in a document


def calibration(confidence: np.ndarray, right: np.ndarray, documents: bool = True) -> Calibration:
    """Return the calibration of one token after the other; each ROW of them are a document."""
    said, hits = confidence.reshape(-1, ROW), right.reshape(-1, ROW).astype(np.int64)
    nothing = np.zeros(said.shape)
    numbers = np.arange(len(said))[:, None].repeat(ROW, axis=1) * documents
    # The likeliest id is 1, and so is the target where this is right.
    return calibrate(Scores(nothing, hits, np.ones_like(hits), said), numbers)


def said(rng: np.random.Generator, tokens: int = 1000 * ROW) -> np.ndarray:
    return rng.uniform(0.02, 1, tokens)


def test_a_model_that_says_70_and_is_right_62_times_of_100_is_8_points_off() -> None:
    right = np.arange(100 * ROW) % 100 < 62
    found = calibration(np.full(right.shape, 0.7), right)
    assert found.ece == pytest.approx(0.08)
    assert found.brier == pytest.approx(0.62 * 0.3**2 + 0.38 * 0.7**2)
    assert (found.confidence, found.accuracy) == (pytest.approx(0.7), pytest.approx(0.62))
    assert found.near_70 is not None
    assert found.near_70.accuracy == pytest.approx(0.62)
    assert found.near_70.tokens == found.tokens == len(right)


def test_a_model_that_is_right_as_often_as_it_says_has_almost_no_error() -> None:
    rng = np.random.default_rng(0)
    confidence = said(rng)
    found = calibration(confidence, rng.random(confidence.shape) < confidence)
    assert found.ece < 0.01
    assert found.brier == pytest.approx(np.mean(confidence * (1 - confidence)), abs=0.002)
    assert found.near_70 is not None
    assert found.near_70.accuracy == pytest.approx(0.7, abs=4 * found.near_70.accuracy_sem)


def test_a_model_that_is_always_right_is_no_certainty() -> None:
    found = calibration(np.full(10 * ROW, 0.7), np.ones(10 * ROW))
    assert found.near_70 is not None
    assert (found.accuracy, found.near_70.accuracy) == (1, 1)
    assert found.accuracy_sem == found.near_70.accuracy_sem == pytest.approx(0.5 / 11)


def test_errors_of_opposite_sign_in_different_bins_do_not_cancel() -> None:
    confidence = np.tile([0.3, 0.9], 50 * ROW)
    right = np.tile([0, 0, 1, 1, 0, 1, 1, 1, 0, 1], 10 * ROW)  # 0.4 of the first, 0.8 of the others
    assert right[::2].mean() == pytest.approx(0.4)
    assert right[1::2].mean() == pytest.approx(0.8)
    found = calibration(confidence, right)
    assert found.confidence == pytest.approx(found.accuracy)
    assert found.ece == pytest.approx(0.1)


def test_the_standard_errors_agree_with_the_bootstrap_over_documents() -> None:
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
        spread = np.std([getattr(each, name) for each in again])
        assert getattr(found, f"{name}_sem") == pytest.approx(spread, rel=0.15)


def test_tokens_without_a_target_do_not_count() -> None:
    targets = np.array([[1, IGNORED, 1, 2]])
    confidence = np.array([[0.5, 0.9, 0.5, 0.5]])
    likeliest = np.array([[1, IGNORED, 1, 1]])
    scores = Scores(np.zeros((1, 4)), targets, likeliest, confidence)
    found = calibrate(scores, np.zeros((1, 4), dtype=np.int64))
    assert found.tokens == 3
    assert found.accuracy == pytest.approx(2 / 3)
    assert math.isnan(found.accuracy_sem)  # of a single row
    assert found.near_70 is None


def test_a_diverged_model_has_no_calibration_but_its_tokens_are_counted() -> None:
    found = calibration(np.full(2 * ROW, math.nan), np.zeros(2 * ROW))
    assert math.isnan(found.ece)
    assert math.isnan(found.brier)
    assert found.tokens == 2 * ROW


def test_probabilities_are_those_of_the_softmax_over_the_tokenizers_ids(tmp_path: Path) -> None:
    log_odds = [0.3 * i for i in range(VOCAB)]
    data = stream(random_rows(vocab_size=8), tmp_path)
    scores = score(Scorer(constant(log_odds), 8, 4), data, range(10))
    expected = np.exp(0.3 * 7) / np.exp(log_odds[:8]).sum()
    assert scores.confidence[:, : SEQ_LEN - 1] == pytest.approx(expected, rel=1e-6)
    assert scores.confidence[scores.targets == IGNORED] == pytest.approx(0.0)


def test_a_sure_model_says_1_and_not_more(tmp_path: Path) -> None:
    sure = constant([0.0] * (VOCAB - 1) + [2000.0])
    scores = score(Scorer(sure, VOCAB, 4), stream(random_rows(), tmp_path), range(10))
    assert scores.confidence[scores.targets != IGNORED] == pytest.approx(1.0, abs=0)
