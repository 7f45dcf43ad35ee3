"""A budget stops a run when it is spent, and is refused if it can't be checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from pion.errors import BadInput
from pipeline.cost.budget import check_budget, over_budget, price_per_hour
from pipeline.job import Budget
from pipeline.state.head import Spent
from tests.support.whole_runs import ends_with, start, write_job


def test_a_job_without_a_budget_never_stops_for_it() -> None:
    assert over_budget(Budget(), Spent(hours=1e6, dollars=1e6)) is None


@pytest.mark.parametrize(
    ("budget", "spent", "words"),
    [
        (Budget(dollars=3), Spent(4.0, 3.0), ["$3.00 of $3.00", "raise budget.dollars and run"]),
        (Budget(hours=2), Spent(2.5, 0.0), ["2.50 of 2 hours", "raise budget.hours and run"]),
        (
            Budget(hours=2, dollars=1),
            Spent(2.5, 9.0),
            ["$9.00 of $1.00 and 2.50 of 2 hours", "raise budget.dollars and budget.hours"],
        ),
        (Budget(hours=2, dollars=10), Spent(2.0, 9.99), ["2.00 of 2 hours", "raise budget.hours"]),
    ],
)
def test_a_spent_budget_says_what_was_spent_what_is_safe_and_how_to_continue(
    budget: Budget, spent: Spent, words: list[str]
) -> None:
    text = over_budget(budget, spent)
    assert text is not None
    assert "Every finished step is saved" in text
    for word in words:
        assert word in text


def test_a_budget_that_is_not_spent_lets_the_run_continue() -> None:
    assert over_budget(Budget(dollars=3, hours=5), Spent(4.999, 2.999)) is None


def test_the_rentals_price_wins_over_the_jobs() -> None:
    budget = Budget(dollars_per_hour=0.5)
    assert price_per_hour(budget, {}) == 0.5
    assert price_per_hour(budget, {"PION_DOLLARS_PER_HOUR": "0.44"}) == 0.44
    assert price_per_hour(budget, {"PION_DOLLARS_PER_HOUR": "0"}) == 0.0
    assert price_per_hour(Budget(), {}) is None


@pytest.mark.parametrize("text", ["", "cheap", "-1", "nan", "inf", "$2"])
def test_a_price_that_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match=r"PION_DOLLARS_PER_HOUR is .*must be an amount"):
        price_per_hour(Budget(), {"PION_DOLLARS_PER_HOUR": text})


def test_dollars_can_only_be_limited_where_the_price_is_known() -> None:
    with pytest.raises(BadInput, match=r"Set PION_DOLLARS_PER_HOUR .*budget\.dollars_per_hour"):
        check_budget(Budget(dollars=5), None)
    check_budget(Budget(dollars=5), 0.0)
    check_budget(Budget(hours=5), None)


def test_a_budget_that_is_spent_outside_training_stops_there_with_4(tmp_path: Path) -> None:
    output = ends_with(4, start(write_job(tmp_path, sft=None), "budget.hours=1e-9"))
    assert "The budget is spent" in output
    assert "raise budget.hours" in output
    assert "prepare: done" not in output
