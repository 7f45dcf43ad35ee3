"""A step of Pion-small moves no more bytes, and starts no more kernels, than its committed count.

The committed counts are in benchmarks/results/roofline.json, which benchmarks/roofline.py writes.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from benchmarks.roofline import MOST_WORSE, RESULT, checked_steps, worse
from tests.cuda_rehearsal.environment import pinned_torch
from tests.cuda_rehearsal.report import handed_back

COMMITTED = json.loads(RESULT.read_text(encoding="utf-8"))
CHECKED = COMMITTED["checked"]


@pytest.fixture(scope="module")
def counts(run_on_pretended_card: Callable[..., str]) -> dict[str, Any]:
    counted: dict[str, Any] = handed_back(run_on_pretended_card("tests.cuda_rehearsal.count_again"))
    return counted


def test_the_committed_counts_are_of_the_pinned_torch() -> None:
    assert COMMITTED["torch"] == pinned_torch()
    assert CHECKED.keys() == checked_steps().keys()


@pytest.mark.soak
def test_a_step_is_not_worse_than_the_committed_count(counts: dict[str, Any]) -> None:
    assert counts["now"].keys() == CHECKED.keys()
    assert worse(counts["now"], CHECKED) == []


@pytest.mark.soak
def test_the_loss_reads_each_logit_once(counts: dict[str, Any]) -> None:
    # Inductor counts one read however often a kernel passes through a row.
    assert counts["passes"] == [1, 1]


@pytest.mark.parametrize("key", next(iter(CHECKED.values())))
@pytest.mark.parametrize("name", CHECKED)
def test_each_count_that_grows_by_more_than_five_percent_is_reported(name: str, key: str) -> None:
    def with_factor(factor: float) -> dict[str, Any]:
        return CHECKED | {name: CHECKED[name] | {key: CHECKED[name][key] * factor}}

    assert worse(with_factor(MOST_WORSE - 0.01), CHECKED) == []
    (found,) = worse(with_factor(MOST_WORSE + 0.01), CHECKED)
    assert found.startswith(f"{name}: {key} is ")
