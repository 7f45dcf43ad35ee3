"""Each text has rows of its own, and each of its tokens is predicted once."""

import pytest

from pion.data.shards import IGNORED
from pion.evaluation.one_text_per_row import own_rows
from tests.support.finished_run import tiny_tokenizer

TEXTS = ["Return a new header. " * 4, "The lazy dog.", "The quick brown fox jumps."]


def test_each_token_is_predicted_once_and_from_its_own_text_alone():
    tokenizer = tiny_tokenizer()
    rows = own_rows(tokenizer, TEXTS, seq_len=8)
    predicted, starts = [], 0
    for inputs, targets in zip(rows.tokens, rows.targets, strict=True):
        real = targets != IGNORED
        assert real.any()
        assert list(inputs[real][1:]) == list(targets[real][:-1])
        starts += int(inputs[0] == tokenizer.before_document)
        predicted += targets[real].tolist()
    assert predicted == [token for text in TEXTS for token in tokenizer.encode(text)]
    assert starts == len(TEXTS)
    assert rows.tokens.shape[1] == 8


def test_no_text_is_read_once_there_are_enough_rows():
    def texts():
        yield from TEXTS[:2]
        pytest.fail("read on")

    whole = own_rows(tiny_tokenizer(), TEXTS[:1], seq_len=8)
    rows = own_rows(tiny_tokenizer(), texts(), seq_len=8, most=whole.total_rows + 1)
    assert rows.total_rows == whole.total_rows + 1
    assert (rows.tokens[:-1] == whole.tokens).all()


def test_no_text_gives_no_rows():
    assert own_rows(tiny_tokenizer(), [], seq_len=8).total_rows == 0
