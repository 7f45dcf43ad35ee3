"""A compiled block is measured once for all models that have it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from pion.config.lora import Lora
from pion.train.memory_trace import step
from pion.train.memory_trace.known_blocks import forget_blocks
from pion.train.memory_trace.request import Traced
from pion.train.memory_trace.step import StepTrace
from tests.pion.train.memory_trace.test_step import TINY, traced


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """What was measured of each block, in order."""
    forget_blocks()
    found: list[Any] = []

    def measure(*given: Any) -> Any:
        found.append(real(*given))
        return found[-1]

    real = step.measure_compiled_block
    monkeypatch.setattr(step, "measure_compiled_block", measure)
    yield found
    forget_blocks()


@pytest.mark.slow
def test_models_that_differ_only_in_depth_and_vocabulary_have_the_same_blocks(
    measured: list[Any],
) -> None:
    few = StepTrace(traced(compiled=True))
    both = replace(TINY, n_layers=3, vocab_size=2 * TINY.vocab_size)
    assert StepTrace(traced(both, compiled=True)).blocks[0] == few.blocks[0]
    assert len(measured) == 1
    forget_blocks()
    assert StepTrace(traced(both, compiled=True)).blocks[0] == few.blocks[0]
    assert measured.pop() == measured[0], "what was remembered is what is measured"


@pytest.mark.slow
@pytest.mark.parametrize(
    "other",
    [
        traced(replace(TINY, softcap=30.0), compiled=True),
        pytest.param(traced(compiled=True, lora=Lora(rank=4)), marks=pytest.mark.soak),
    ],
    ids=["softcap", "lora"],
)
def test_what_changes_the_block_is_measured(other: Traced, measured: list[Any]) -> None:
    for known, what in enumerate((traced(compiled=True), other)):
        StepTrace(what)
        assert len(measured) == known + 1
