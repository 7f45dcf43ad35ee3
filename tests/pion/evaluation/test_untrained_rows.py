import pytest
import torch

from pion.evaluation.untrained_rows import untrained_rows

VOCABULARY, WIDTH = 1000, 64
TURN_END = 950


def trained():
    return torch.randn(VOCABULARY, WIDTH, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_of_little_norm_is_found_and_no_row_that_was_trained(dtype):
    rows = trained()
    assert untrained_rows(rows, [TURN_END, 5]) == []
    rows[TURN_END] *= 0.05
    assert untrained_rows(rows.to(dtype), [TURN_END, 5]) == [TURN_END]
    with pytest.raises(IndexError):
        untrained_rows(rows, [VOCABULARY])
