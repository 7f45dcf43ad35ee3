"""What a longer context is worth: known exactly of models whose predictions are known."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import pion.evaluation.long_context as measured
from pion.data.order import RowOrder
from pion.data.phased_order import MixPhase, PhasedOrder
from pion.data.shard_writer import ShardWriter
from pion.data.shards import IGNORED, Manifest, Rows
from pion.data.stream import RowStream
from pion.evaluation import long_context as measures
from pion.evaluation.held_out import Scorer, score
from pion.evaluation.long_context import long_context
from pion.model.decoder import Decoder
from tests.support.tiny_config import tiny_config

SHORT, LENGTH, END = 8, 4, 0
VOCAB = 40
BYTES = np.ones(VOCAB, np.int64)


@pytest.fixture
def stream(tmp_path):
    """Ten rows of 32 tokens, each of 4 rows: documents of 5 to 60 tokens."""
    rng = np.random.default_rng(0)
    ids, size = [], 10 * LENGTH * SHORT
    while len(ids) < size:
        ids += [END, *rng.integers(1, VOCAB, rng.integers(5, 60))]
    writer = ShardWriter(tmp_path, seq_len=SHORT, vocab_size=VOCAB, rows_per_shard=20)
    writer.append_rows(np.array(ids[:size]).reshape(-1, SHORT))
    manifest = Manifest("tokens", SHORT, VOCAB, writer.finish())
    rows = Rows(manifest, lambda shard: tmp_path / shard.name)
    order = RowOrder(manifest.shard_rows, manifest.fingerprint, seed=0, window=2)
    phases = [MixPhase(0, 10 * LENGTH, {"a": 1}, LENGTH)]
    return RowStream([(rows, order)], PhasedOrder({"a": order}, phases, 0), documents=END)


HEADS = range(0, 10 * LENGTH, LENGTH)


def scorer(**changes):
    torch.manual_seed(0)
    return Scorer(Decoder(tiny_config(vocab_size=VOCAB, seq_len=512, **changes)), VOCAB, 4)


def test_the_numbers_of_documents_continue_inside_longer_rows(stream):
    numbers = stream.document_numbers(HEADS, END)
    batch = stream.batch(HEADS)
    assert numbers.shape == batch.tokens.shape
    changes = np.diff(numbers, axis=1) != 0
    assert np.array_equal(changes, (batch.tokens == END).numpy()[:, 1:])


def test_the_worth_is_the_same_tokens_loss_with_less_context_less_that_with_all(
    stream, monkeypatch
):
    model = scorer()
    monkeypatch.setattr(measured, "FEWEST_TOKENS", 1)
    found = long_context(model, stream, HEADS, SHORT, BYTES, END)
    full, more, distances = score(model, stream, HEADS), [], []
    for row, (tokens, targets) in enumerate(zip(stream.batch(HEADS).tokens, full.targets)):
        begun = 0
        for place, token in enumerate(tokens.tolist()):
            begun = place if token == END else begun
            if place - begun + 1 > SHORT and targets[place] != IGNORED:
                first = place // (SHORT // 2) * (SHORT // 2) - SHORT // 2
                seen = tokens[None, first : place + 1]
                logits = model.model.logits(model.model.hidden(seen))[0, -1]
                less = -logits.log_softmax(-1)[targets[place]].item()
                more.append((less - full.nll[row, place]) / math.log(2))
                distances.append(place - begun + 1)
    assert found["tokens"] == len(more) > 50
    assert found["worth"] == pytest.approx(np.mean(more), abs=1e-5)
    assert found["worth_sem"] > 0
    assert list(found["by_distance"]) == ["8", "16"]
    for at, own in found["by_distance"].items():
        here = [bits for bits, far in zip(more, distances) if int(at) < far <= 2 * int(at)]
        assert own["bits"] == pytest.approx(np.mean(here), abs=1e-5)
        assert own["bits_sem"] > 0


def test_of_too_few_tokens_the_worth_is_not_measured(stream):
    found = long_context(scorer(), stream, HEADS, SHORT, BYTES, END)
    assert math.isnan(found["worth"])
    assert 0 < found["tokens"] < measures.FEWEST_TOKENS


def test_a_model_that_copies_saves_the_bits_of_a_text_that_comes_again(stream, monkeypatch):
    """Its predictions are certain where the same text was a distance before, else even."""
    monkeypatch.setattr(measures, "COPIED", 4)
    monkeypatch.setattr(measures, "NEAREST", 2)

    def copying(scorer, rows, numbers):
        ids = torch.cat([rows.batch(numbers).tokens, rows.batch(numbers).targets[:, -1:]], 1)
        nll = np.full(rows.batch(numbers).targets.shape, math.log(VOCAB))
        for distance in (2, 4, 8, 16):
            if ids.shape[1] == 2 * 4 + distance:
                nll[:, -3:] = 0.0
        return SimpleNamespace(nll=nll, targets=rows.batch(numbers).targets.numpy())

    monkeypatch.setattr(measures, "score", copying)
    found = long_context(scorer(), stream, HEADS, SHORT, BYTES, END)
    assert list(found["copies"]) == ["2", "4", "8", "16"]
    assert [copy["bits"] for copy in found["copies"].values()] == [
        pytest.approx(math.log2(VOCAB))
    ] * 4


def test_the_copied_text_is_the_same_and_the_text_between_is_another_rows(stream, monkeypatch):
    monkeypatch.setattr(measures, "COPIED", 4)
    monkeypatch.setattr(measures, "NEAREST", 16)
    seen = []

    def noting(scorer, rows, numbers):
        seen.append(rows)
        return score(scorer, rows, numbers)

    monkeypatch.setattr(measures, "score", noting)
    long_context(scorer(), stream, HEADS, SHORT, BYTES, END)
    tokens, own = stream.batch(HEADS).tokens.numpy(), seen[-1]
    assert np.array_equal(own.tokens[:, :4], tokens[:, :4])
    assert np.array_equal(own.tokens[1:, 4:20], tokens[:-1, 4:20])
    assert np.array_equal(own.targets[:, -3:], tokens[:, 1:4])
    assert (own.targets[:, 3:-3] == IGNORED).all()


def test_the_loss_of_the_first_positions_stands_next_to_both(stream):
    model = scorer()
    found, full = long_context(model, stream, HEADS, SHORT, BYTES, END), score(model, stream, HEADS)
    assert found["short_loss"] == pytest.approx(full.nll[:, :SHORT].mean())
