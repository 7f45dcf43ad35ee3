"""Evaluation uses the softmax over the tokenizer's ids of the logits that the model computes."""

import numpy as np
import pytest
import torch

from pion.evaluation.held_out import Scorer, calibrate, score, summarize
from tests.families.families import SEQ_LEN, each_family
from tests.pion.train.conftest import open_stream

IDS = 300  # that the tokenizer can produce


@each_family
def test_loss_and_calibration_are_those_of_the_softmax_worked_out_by_hand(family, tmp_path):
    model = family.decoder()
    stream = open_stream(tmp_path, rows=6, config=family.config(vocab_size=IDS))
    scorer = Scorer(model, IDS, micro_batch=4)
    scores, documents = score(scorer, stream, range(6)), stream.document_numbers(range(6), 0)
    measured = summarize(scores.nll, scores.targets, np.ones(IDS), documents)
    calibration = calibrate(scores, documents)

    tokens = stream.batch(range(6)).tokens
    with torch.inference_mode():
        logits = model(tokens)[:, :-1, :IDS].double()
    likelihood = logits.exp() / logits.exp().sum(dim=-1, keepdim=True)
    expected = -likelihood.gather(2, tokens[:, 1:, None]).log().mean()
    assert measured["tokens"] == 6 * (SEQ_LEN - 1)
    assert measured["loss"] == pytest.approx(expected.item(), rel=1e-6)
    top = likelihood.max(dim=-1)
    right = (top.indices == tokens[:, 1:]).double()
    assert calibration["confidence"] == pytest.approx(top.values.mean().item(), rel=1e-5)
    assert calibration["accuracy"] == pytest.approx(right.mean().item())
    assert calibration["brier"] == pytest.approx(
        (top.values - right).square().mean().item(), rel=1e-4
    )
