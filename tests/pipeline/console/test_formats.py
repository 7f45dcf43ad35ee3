"""Numbers as text."""

from __future__ import annotations

import math

import pytest

from pipeline.console.formats import measured


@pytest.mark.parametrize("error", [None, math.nan, math.inf, 0.0])
def test_an_error_that_says_nothing_is_not_shown(error: float | None) -> None:
    assert measured(1.0, error) == "1.000"


def test_an_error_keeps_its_first_digit() -> None:
    assert measured(0.00042, 0.00011) == "0.0004 ± 0.0001"
