"""What counts as the numbers of a reference, and as those of a model."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from pion.errors import BadInput
from pion.model.decoder import Decoder
from pion.train.reference import ReferenceSums, check_reference, sums_of, unchanged
from pion.train.settings import ComputePlan
from tests.support.pair_rows import CONFIG, PairRows, random_pairs

PLAN = ComputePlan()


def sums(numbers, starts):
    return ReferenceSums(np.array(numbers), np.array(starts, dtype=np.int64))


def test_each_row_has_its_own_numbers():
    found = sums([-1.0, -2.0, -3.0], [0, 2, 3])
    found.check(2, "here")
    assert (found.of(0), found.of(1)) == ([-1.0, -2.0], [-3.0])


@pytest.mark.parametrize(
    ("numbers", "starts", "expected"),
    [
        ([-1.0, -2.0], [0, 1, 2, 3], "has 2 numbers for 3 rows"),
        ([-1.0, -2.0], [0, 2], "for 1 rows, and the data has 2 rows"),
        ([-1.0, -2.0], [0, 0, 2], "has 2 numbers"),
        ([-1.0, -2.0], [1, 1, 2], "has 2 numbers"),
        ([-1.0, math.nan], [0, 1, 2], "number 1 is nan"),
        ([-1.0, -math.inf], [0, 1, 2], "number 1 is -inf"),
        ([0.1, -1.0], [0, 1, 2], "number 0 is 0.1"),
    ],
)
def test_numbers_that_can_not_be_right_are_refused(numbers, starts, expected):
    with pytest.raises(BadInput, match="here: ") as refused:
        sums(numbers, starts).check(2, "here")
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
