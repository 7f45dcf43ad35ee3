import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pion.errors import BadInput
from pion.evaluation import ngram


def distribution(model, context):
    """Return p(w | context) for every w of the vocabulary."""
    return np.exp(-model.nll(np.array([[*context, w] for w in range(model.vocab_size)]))[:, -1])


@settings(max_examples=40, deadline=None)
@given(
    order=st.integers(1, 6),
    vocab_size=st.integers(2, 7),
    shape=st.tuples(st.integers(1, 12), st.integers(1, 9)),
    seed=st.integers(0, 2**32 - 1),
)
def test_probabilities_of_the_vocabulary_sum_to_one_after_seen_and_unseen_contexts(
    order, vocab_size, shape, seed
):
    rng = np.random.default_rng(seed)
    model = ngram.fit(rng.integers(0, vocab_size, shape), vocab_size, order)
    for _ in range(5):
        p = distribution(model, rng.integers(0, vocab_size, rng.integers(1, 8)).tolist())
        assert p.min() > 0
        assert p.sum() == pytest.approx(1, abs=1e-12)


def test_a_bigram_gives_the_probabilities_worked_out_by_hand():
    # unigrams of 0 0 1 0 1 2: c = 3, 2, 1, so n1 = 1, n2 = 1 and D = 1/3
    # bigrams 00 01 10 01 12: c(01) = 2, the others once, so n1 = 3, n2 = 1 and D = 3/5
    model = ngram.fit(np.array([[0, 0, 1, 0, 1, 2]]), vocab_size=4, order=2)
    back = (1 / 3) * 3 / 6 * (1 / 4)
    unigram = [(3 - 1 / 3) / 6 + back, (2 - 1 / 3) / 6 + back, (1 - 1 / 3) / 6 + back, back]
    after_0 = [
        (1 - 3 / 5) / 3 + (3 / 5) * (2 / 3) * unigram[0],
        (2 - 3 / 5) / 3 + (3 / 5) * (2 / 3) * unigram[1],
        (3 / 5) * (2 / 3) * unigram[2],
        (3 / 5) * (2 / 3) * unigram[3],
    ]
    assert distribution(model, [0]) == pytest.approx(after_0)
    assert distribution(model, [2]) == pytest.approx(unigram)  # 2 occurs only at the end of the row
    assert distribution(model, [3]) == pytest.approx(unigram)  # 3 never occurs


def test_windows_do_not_span_rows():
    p = distribution(ngram.fit(np.array([[0, 1], [2, 3]]), vocab_size=4, order=2), [1])
    assert p[2] == pytest.approx(p[3])  # 1 → 2 happened only across the border


def test_a_longer_context_predicts_a_deterministic_text_better():
    text = np.tile([0, 1, 0, 2, 0, 3, 4, 3], 200).reshape(-1, 32)
    losses = [ngram.fit(text, 5, order).nll(text).mean() for order in (1, 2, 3)]
    assert losses[0] > losses[1] > losses[2]
    assert losses[2] < 0.05


def test_ids_of_65536_and_more_are_counted_apart():
    rows = np.array([[70_000, 1, 70_000, 1], [70_001, 2, 70_001, 2]], dtype=np.uint32)
    model = ngram.fit(rows, vocab_size=70_002, order=2)
    p = np.exp(-model.nll(np.array([[70_000, w] for w in (1, 2)]))[:, -1])
    assert p[0] > 10 * p[1]


def test_what_is_no_row_of_the_vocabulary_and_other_orders_are_refused():
    for rows, order, words in (
        (np.array([[0, 4]]), 4, "ids from 0 to 4 don't fit a vocabulary of 4"),
        (np.array([[0, 1]]), 0, "order 0 is outside 1–6"),
        (np.array([[0, 1]]), 7, "order 7 is outside 1–6"),
        (np.zeros((0, 8), dtype=np.int64), 4, "there are none"),
        (np.zeros((2, 8)), 4, "integer ids"),
    ):
        with pytest.raises(BadInput, match=words):
            ngram.fit(rows, vocab_size=4, order=order)
    model = ngram.fit(np.array([[0, 3]]), vocab_size=4)
    with pytest.raises(BadInput, match="ids from 0 to 9"):
        model.nll(np.array([[0, 9]]))
