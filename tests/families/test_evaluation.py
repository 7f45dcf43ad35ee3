"""Evaluation uses the softmax over the tokenizer's ids of the logits that the model computes."""

import numpy as np
import pytest
import torch

from pion.data.order import RowOrder
from pion.data.shard_writer import ShardWriter
from pion.data.shards import Manifest, Rows
from pion.data.stream import RowStream
from pion.evaluation.held_out import Scorer, calibrate, score, summarize
from tests.families.families import SEQ_LEN, each_family

IDS = 300  # that the tokenizer can produce


@each_family
def test_loss_and_calibration_are_those_of_the_softmax_worked_out_by_hand(family, tmp_path):
    model = family.decoder()
    ids = np.random.default_rng(0).integers(0, IDS, (6, SEQ_LEN))
    writer = ShardWriter(tmp_path, seq_len=SEQ_LEN, vocab_size=IDS, rows_per_shard=6)
    writer.append_rows(ids)
    manifest = Manifest("tokens", SEQ_LEN, IDS, writer.finish())
    order = RowOrder(manifest.shard_rows, manifest.fingerprint, seed=0, window=1)
    stream = RowStream([(Rows(manifest, lambda shard: tmp_path / shard.name), order)])
    scorer = Scorer(model, IDS, micro_batch=4)
    scores, documents = score(scorer, stream, range(6)), stream.document_numbers(range(6), 0)
    measured = summarize(scores.nll, scores.targets, np.ones(IDS), documents)
    calibration = calibrate(scores, documents)

    tokens = torch.from_numpy(ids)
    with torch.inference_mode():
        logits = model(tokens)[:, :-1, :IDS].double()
    likelihood = logits.exp() / logits.exp().sum(dim=-1, keepdim=True)
    expected = -likelihood.gather(2, tokens[:, 1:, None]).log().mean()
    assert measured.tokens == 6 * (SEQ_LEN - 1)
    assert measured.loss == pytest.approx(expected.item(), rel=1e-6)
    top = likelihood.max(dim=-1)
    right = (top.indices == tokens[:, 1:]).double()
    assert calibration.confidence == pytest.approx(top.values.mean().item(), rel=1e-5)
    assert calibration.accuracy == pytest.approx(right.mean().item())
    assert calibration.brier == pytest.approx((top.values - right).square().mean().item(), rel=1e-4)
