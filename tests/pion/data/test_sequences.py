"""The answers of rows: their sides, their sums, and the rows that have no answers."""

import numpy as np
import pytest
import torch

from pion.data.row_flags import (
    LEARNED,
    PADDING,
    PREFERRED,
    STARTS,
    require_pairs,
    sequences_of,
    sides_of,
)
from pion.data.sequences import Sequences, sequence_sums, sequences_of_rows
from pion.data.stream import Batch, map_batch
from pion.errors import BadInput

# Two pairs in the first row, one in the second. −1 is padding.
DOCUMENTS = torch.tensor([[0, 0, 1, 1, 1, 2, 2, 3, 3, -1], [0, 0, 0, 1, 1, 1, -1, -1, -1, -1]])
TARGETS = torch.tensor(
    [[1, 0, 0, 1, 1, 1, 0, 1, 1, 0], [0, 1, 1, 1, 0, 0, 0, 0, 0, 0]], dtype=torch.bool
)
SIDES = [[1, -1, 1, -1], [1, -1]]


def test_sequences_have_the_sides_and_tokens_of_their_documents():
    reference = [[-1.0, -2.0, -3.0, -4.0], [-5.0, -6.0]]
    found = sequences_of_rows(SIDES, DOCUMENTS, TARGETS, reference, paired=True)
    assert found.side.tolist() == [[1, -1, 1, -1], [1, -1, 0, 0]]
    assert found.tokens.tolist() == [[1, 2, 1, 2], [2, 1, 0, 0]]
    assert found.reference.tolist() == [[-1, -2, -3, -4], [-5, -6, 0, 0]]
    assert found.side.dtype == torch.int8
    assert found.reference.dtype == torch.float64


@pytest.mark.parametrize(("most", "size"), [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8)])
def test_the_number_of_sequences_is_a_power_of_two(most, size):
    documents = torch.arange(most)[None]
    learned = torch.ones_like(documents, dtype=torch.bool)
    found = sequences_of_rows([[1] * most], documents, learned, paired=False)
    assert found.side.shape == (1, size)


def test_an_answer_without_a_token_is_refused():
    learned = TARGETS & (DOCUMENTS != 2)
    with pytest.raises(BadInput, match="sequence 2 in row 0 of the batch has no token to learn"):
        sequences_of_rows(SIDES, DOCUMENTS, learned, paired=True)


def test_a_reference_with_too_few_numbers_is_refused():
    reference = [[-1.0] * 4, [-1.0]]
    with pytest.raises(BadInput, match=r"row 1 .* 2 sequences, and numbers of the reference for 1"):
        sequences_of_rows(SIDES, DOCUMENTS, TARGETS, reference, paired=True)


def test_sums_are_those_of_each_document_alone():
    log_probs = torch.randn(2, 10)
    sums = sequence_sums(log_probs, DOCUMENTS, 4)
    assert sums.dtype == torch.float64
    for row in range(2):
        for number in range(4):
            own = log_probs[row][DOCUMENTS[row] == number].double().sum()
            assert sums[row, number].item() == pytest.approx(own.item(), abs=1e-12)


def test_a_sum_of_2048_tokens_is_as_exact_as_in_fp64():
    """A sum in fp32, or a difference of running sums, is off by 1e-5 and more."""
    torch.manual_seed(0)
    log_probs = -5 * torch.rand(1, 2048)
    documents = torch.arange(2048)[None] // 1024
    exact = log_probs.double().view(2, 1024).sum(dim=1)
    assert (sequence_sums(log_probs, documents, 2)[0] - exact).abs().max() < 1e-10
    by_running_sums = log_probs.cumsum(dim=1)[0, [1023, 2047]].diff()
    assert (by_running_sums - exact[1]).abs() > 1e-5


def test_another_answer_changes_no_bit_of_a_sum():
    log_probs = torch.randn(2, 10)
    changed = torch.where(DOCUMENTS == 1, 7.0, log_probs)
    before, after = (sequence_sums(each, DOCUMENTS, 4) for each in (log_probs, changed))
    assert torch.equal(before[:, [0, 2, 3]], after[:, [0, 2, 3]])
    assert not torch.equal(before[:, 1], after[:, 1])


def test_the_gradient_of_a_token_is_that_of_its_sequence():
    log_probs = torch.randn(2, 10, requires_grad=True)
    weights = torch.tensor([[1.0, -2.0, 3.0, -4.0], [5.0, -6.0, 7.0, 8.0]], dtype=torch.float64)
    (sequence_sums(log_probs, DOCUMENTS, 4) * weights).sum().backward()
    assert log_probs.grad[0].tolist() == [1, 1, -2, -2, -2, 3, 3, -4, -4, 0]
    assert log_probs.grad[1].tolist() == [5, 5, 5, -6, -6, -6, 0, 0, 0, 0]


def test_a_function_of_a_batch_reaches_its_sequences():
    sequences = sequences_of_rows(SIDES, DOCUMENTS, TARGETS, paired=True)
    batch = Batch(DOCUMENTS, DOCUMENTS, DOCUMENTS, DOCUMENTS, sequences)
    mapped = map_batch(lambda tensor: tensor + 1, batch).sequences
    assert isinstance(mapped, Sequences)
    for name in ("reference", "tokens", "side"):
        assert torch.equal(getattr(mapped, name), getattr(sequences, name) + 1)
    assert map_batch(torch.clone, Batch(DOCUMENTS, DOCUMENTS, None, None)).sequences is None


# ---------------------------------------------------------------- flags


CHOSEN = [STARTS | PREFERRED, 0, LEARNED, LEARNED]
REJECTED = [STARTS, 0, LEARNED]
# Two pairs, one pair and padding, no sequence at all.
ROWS = np.array(
    [
        [*CHOSEN, *REJECTED, *CHOSEN, *REJECTED],
        [*CHOSEN, *REJECTED, *[PADDING] * 7],
        [PADDING] * 14,
    ],
    dtype=np.uint8,
)


def test_sides_are_per_row_and_0_where_a_row_has_fewer_sequences():
    sides = sides_of(ROWS)
    assert sides.dtype == np.int8
    assert sides.tolist() == [[1, -1, 1, -1], [1, -1, 0, 0], [0, 0, 0, 0]]


def test_sequences_have_their_row_tokens_targets_and_side():
    found = sequences_of(ROWS)
    assert found.rows.tolist() == [0, 0, 0, 0, 1, 1]
    assert found.tokens.tolist() == [4, 3, 4, 3, 4, 3]  # without the padding after the last one
    assert found.targets.tolist() == [2, 1, 2, 1, 2, 1]
    assert found.preferred.tolist() == [True, False] * 3


def test_the_first_token_of_a_sequence_is_never_a_target():
    flags = np.array([[STARTS | LEARNED, LEARNED]], dtype=np.uint8)
    assert sequences_of(flags).targets.tolist() == [1]


def test_rows_without_sequences_have_none():
    empty = np.zeros((0, 8), dtype=np.uint8)
    assert sides_of(empty).shape == (0, 0)
    assert len(sequences_of(empty).tokens) == len(sequences_of(ROWS[2:]).tokens) == 0


@pytest.mark.parametrize(
    "sequences",
    [CHOSEN, [*REJECTED, *CHOSEN], [*CHOSEN, *CHOSEN], [*CHOSEN, *REJECTED, *CHOSEN]],
    ids=["one", "rejected first", "both chosen", "three"],
)
def test_sequences_that_are_not_pairs_are_refused(sequences):
    with pytest.raises(BadInput, match="some row: its sequences are not pairs"):
        require_pairs(np.array(sequences, dtype=np.uint8), "some row")
