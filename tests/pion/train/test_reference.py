"""What counts as the numbers of a reference, and as those of a model."""

import dataclasses
import math

import pytest
import torch

from pion.errors import BadInput
from pion.model.decoder import Decoder
from pion.train.reference import (
    check_column,
    check_reference,
    column_of,
    numbers_in,
    sums_of,
    unchanged,
)
from pion.train.settings import ComputePlan
from tests.support.pair_rows import CONFIG, PairRows, random_pairs

PLAN = ComputePlan()


def test_each_row_has_its_own_numbers():
    column = column_of([[-1.0, -2.0], [-3.0]])
    check_column(column, "here")
    assert [*map(numbers_in, column)] == [[-1.0, -2.0], [-3.0]]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[-1.0], []], "without a number"),
        ([[], []], "without a number"),
        ([[-1.0], [math.nan]], "without a number"),
        ([[-1.0], [-math.inf]], "number 1 is -inf"),
        ([[0.1], [-1.0]], "number 0 is 0.1"),
    ],
)
def test_numbers_that_can_not_be_right_are_refused(rows, expected):
    with pytest.raises(BadInput, match="here: ") as refused:
        check_column(column_of(rows), "here")
    assert expected in str(refused.value)


def batch_of(model, off=0.0):
    """Return a batch with the model's own numbers, of which the last one is `off`."""
    batch = PairRows(random_pairs(3)).batch(range(3))
    reference = torch.zeros_like(batch.sequences.reference)
    for row, numbers in enumerate(sums_of(model, batch, PLAN)):
        reference[row, : len(numbers)] = torch.tensor(numbers, dtype=torch.float64)
        reference[row, len(numbers) - 1] += off
    sequences = dataclasses.replace(batch.sequences, reference=reference)
    return dataclasses.replace(batch, sequences=sequences)


@pytest.mark.parametrize(("dtype", "apart"), [("float32", 1e-3), ("bfloat16", 0.5)])
def test_numbers_may_be_off_by_rounding_alone(dtype, apart):
    torch.manual_seed(0)
    model, plan = Decoder(CONFIG), dataclasses.replace(PLAN, dtype=dtype)
    assert check_reference(model, batch_of(model), PLAN, "here") == 0
    if dtype == "float32":
        assert 0 < check_reference(model, batch_of(model, 5e-5), plan, "here") < 1
    with pytest.raises(BadInput, match="here: these reference numbers are not of these weights"):
        check_reference(model, batch_of(model, apart), plan, "here")
    with pytest.raises(BadInput, match="not of these weights"):
        check_reference(model, batch_of(model, math.nan), plan, "here")


def test_a_pass_changes_no_buffer_and_no_mode():
    model = Decoder(CONFIG).eval()
    model.register_buffer("counted", torch.zeros(2))
    with unchanged(model):
        assert model.training
        model.get_buffer("counted").add_(1)
    assert not model.training
    assert not model.get_buffer("counted").any()
