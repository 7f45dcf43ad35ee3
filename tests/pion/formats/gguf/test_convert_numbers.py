"""Rounding is found if it is more than a type allows."""

from __future__ import annotations

import numpy as np
import pytest

from pion.formats.gguf.convert import TYPES, Type, encoded, stored_bytes, stored_type, worst

VALUES = np.random.default_rng(0).normal(0, 0.02, (64, 96)).astype(np.float32)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("scale", [1e-9, 1e-4, 1.0, 1e4])
def test_honest_rounding_is_within_bounds(kind: Type, scale: float) -> None:
    values = VALUES * np.float32(scale)
    stored = encoded(values, kind)
    assert worst(values, stored, kind) <= 1
    assert stored.nbytes == stored_bytes(values.shape, kind)


@pytest.mark.parametrize("kind", TYPES)
def test_one_wrong_weight_is_found(kind: Type) -> None:
    other = VALUES.copy()
    other[3, 5] *= 1.02 if kind != "q8_0" else 0
    other[3, 5] += 0.001 if kind == "q8_0" else 0
    assert worst(VALUES, encoded(other, kind), kind) > 1


@pytest.mark.parametrize("kind", TYPES)
def test_not_a_number_is_never_within_bounds(kind: Type) -> None:
    stored = encoded(VALUES, kind).copy()  # of fp32, it is VALUES itself
    stored.view(np.uint8).reshape(-1)[:4] = 0xFF  # NaN in each type
    assert not worst(VALUES, stored, kind) <= 1


def test_vectors_and_odd_rows_are_stored_with_more_bits() -> None:
    assert stored_type((96,), "q8_0") == "f32"
    assert stored_type((4, 40), "q8_0") == "f16"
    assert stored_type((4, 64), "q8_0") == "q8_0"
    assert stored_type((4, 40), "f16") == "f16"
