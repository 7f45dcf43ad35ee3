"""A cap over many runs: what the next run is expected to take, and what is left for it."""

import pytest

from pion.errors import BadInput, Stopped
from pipeline.job import Budget
from pipeline.search.cap import Cap, budget_of, check_cap, reached, refuse_beyond
from pipeline.state.head import Spent


def test_a_run_gets_what_the_others_leave_and_at_most_what_its_job_allows():
    cap, others = Cap(hours=2.0, dollars=10.0), Spent(0.5, 4.0, 1.0)
    assert budget_of(Budget(), cap, others) == {"budget.hours": 1.5, "budget.dollars": 6.0}
    own = Budget(hours=1.0, dollars_per_hour=1.0)
    assert budget_of(own, cap, others) == {"budget.hours": 1.0, "budget.dollars": 6.0}
    assert budget_of(own, Cap(), others) == {}
    assert budget_of(Budget(), Cap(hours=0.1), others)["budget.hours"] > 0


def test_a_run_that_would_exceed_the_cap_is_refused_in_hours_and_in_dollars():
    spent = Spent(1.0, 2.0, 1.0)
    refuse_beyond(Cap(hours=2.0), spent, "a", 0.9, None)
    refuse_beyond(Cap(hours=2.0), spent, "a", None, None)
    with pytest.raises(Stopped, match="run a would exceed the cap over all runs"):
        refuse_beyond(Cap(hours=2.0), spent, "a", 1.1, None)
    with pytest.raises(Stopped, match=r"\$2\.00 of \$3 are spent"):
        refuse_beyond(Cap(dollars=3.0), spent, "a", 0.6, 2.0)
    refuse_beyond(Cap(dollars=3.0), spent, "a", 0.4, 2.0)


def test_a_cap_is_reached_a_moment_early_because_heads_count_at_commits():
    assert reached(Cap(hours=1.0), Spent(0.995, 0.0, 1.0))
    assert not reached(Cap(hours=1.0), Spent(0.9, 0.0, 1.0))
    assert not reached(Cap(), Spent(1e6, 1e6, 1.0))


@pytest.mark.parametrize("cap", [Cap(hours=0.0), Cap(hours=float("nan")), Cap(dollars=2e9)])
def test_a_cap_out_of_bounds_is_refused(cap):
    with pytest.raises(BadInput, match="Nothing was started"):
        check_cap(cap, Budget(dollars_per_hour=1.0))
