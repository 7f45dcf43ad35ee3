from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pion.evaluation.untrained_rows import untrained_rows

VOCABULARY, WIDTH = 1000, 64
UNUSED = range(980, 1000)
TURN_END = 950


def trained() -> Tensor:
    return torch.randn(VOCABULARY, WIDTH, generator=torch.Generator().manual_seed(0))


def changed(rows: Tensor, tokens: range | list[int], spread: float, offset: float) -> Tensor:
    noise = torch.randn(len(tokens), WIDTH, generator=torch.Generator().manual_seed(1))
    rows[list(tokens)] = noise * spread + offset
    return rows


def test_a_row_that_was_trained_like_the_others_is_not_found() -> None:
    assert untrained_rows(trained(), [TURN_END, 5]) == []
    rows = changed(trained(), UNUSED, 0.01, 0.1)
    assert untrained_rows(rows, [TURN_END, 5], UNUSED) == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_of_little_norm_is_found(dtype: torch.dtype) -> None:
    rows = changed(trained(), [TURN_END], 0.05, 0.0).to(dtype)
    assert untrained_rows(rows, [TURN_END, 5]) == [TURN_END]


def test_a_row_like_those_that_are_known_to_be_unused_is_found() -> None:
    rows = changed(trained(), [TURN_END, *UNUSED], 0.02, 0.8)  # of the same norm as trained rows
    assert untrained_rows(rows, [TURN_END, 5]) == []
    assert untrained_rows(rows, [TURN_END, 5], UNUSED) == [TURN_END]


def test_unused_rows_that_look_like_trained_ones_prove_nothing() -> None:
    assert untrained_rows(trained(), [TURN_END, 5], UNUSED) == []
    assert untrained_rows(trained(), [TURN_END], [1, 2, 3]) == []


def test_a_token_without_a_row_is_an_error() -> None:
    with pytest.raises(IndexError):
        untrained_rows(trained(), [VOCABULARY])
