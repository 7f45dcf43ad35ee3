"""A budget stops a run when it is spent, and is refused if it can't be checked."""

import pytest

from pion.errors import BadInput, Stopped
from pipeline.cost.budget import check_budget, over_budget, pod_price, price_per_hour, true_price
from pipeline.job import Budget
from pipeline.state.head import Spent
from tests.support.runpod_api import API_KEY, CONFIG, RunPodApi, serve_runpod
from tests.support.whole_runs import ends_with, start, write_job


def test_a_job_without_a_budget_never_stops_for_it():
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
def test_a_spent_budget_says_what_was_spent_what_is_safe_and_how_to_continue(budget, spent, words):
    text = over_budget(budget, spent)
    assert "Every finished step is saved" in text
    for word in words:
        assert word in text


def test_a_budget_that_is_not_spent_lets_the_run_continue():
    assert over_budget(Budget(dollars=3, hours=5), Spent(4.999, 2.999)) is None


def test_the_rentals_price_wins_over_the_jobs():
    budget = Budget(dollars_per_hour=0.5)
    assert price_per_hour(budget, {}) == 0.5
    assert price_per_hour(budget, {"PION_DOLLARS_PER_HOUR": "0.44"}) == 0.44
    assert price_per_hour(budget, {"PION_DOLLARS_PER_HOUR": "0"}) == 0.0
    assert price_per_hour(Budget(), {}) is None


@pytest.mark.parametrize("text", ["", "cheap", "-1", "nan", "inf", "$2"])
def test_a_price_that_is_no_amount_is_refused(text):
    with pytest.raises(BadInput, match=r"PION_DOLLARS_PER_HOUR is .*must be an amount"):
        price_per_hour(Budget(), {"PION_DOLLARS_PER_HOUR": text})


def test_dollars_can_only_be_limited_where_the_price_is_known():
    with pytest.raises(BadInput, match=r"Set PION_DOLLARS_PER_HOUR .*budget\.dollars_per_hour"):
        check_budget(Budget(dollars=5), None)
    check_budget(Budget(dollars=5), 0.0)
    check_budget(Budget(hours=5), None)


def test_a_budget_that_is_spent_outside_training_stops_there_with_4(tmp_path):
    output = ends_with(4, start(write_job(tmp_path, sft=None), "budget.hours=1e-9"))
    assert "The budget is spent" in output
    assert "raise budget.hours" in output
    assert "prepare: done" not in output


# ---------------------------------------------------------------- what RunPod asks for a pod


@pytest.fixture
def api():
    api = RunPodApi()
    api.rent("pod1", "pion-demo")
    with serve_runpod(api) as api.url:
        yield api


@pytest.fixture
def pod(api, tmp_path):
    """The variables of a pod that costs $0.20 per hour."""
    return {
        "RUNPOD_POD_ID": "pod1",
        "RUNPOD_GPU_NAME": "NVIDIA+A40",
        "RUNPOD_API_BASE_URL": api.url,
        "RUNPOD_API_KEY": API_KEY,
        "SKYPILOT_NUM_GPUS_PER_NODE": "1",
        "HOME": str(tmp_path),
    }


def planned(pod, price):
    return {**pod, "PION_PRICES": f'{{"A40": {price}}}'}


@pytest.mark.parametrize(
    ("plan", "words"), [(0.40, ""), (0.20, ""), (0.191, ""), (0.18, "1.11 times the planned $0.18")]
)
def test_the_price_that_runpod_bills_counts_and_a_higher_one_is_said(pod, plan, words):
    said = []
    assert true_price(Budget(), said.append, planned(pod, plan)) == 0.2
    assert len(said) == bool(words)
    assert words in "".join(said)


def test_a_machine_at_four_times_the_price_is_refused_unless_the_budget_allows_it(pod):
    said = []
    with pytest.raises(Stopped, match=r"\$0\.20 per hour, 4\.00 times.*price_tolerance=4") as error:
        true_price(Budget(), said.append, planned(pod, 0.05))
    assert error.value.exit_code == 4
    assert not said
    assert true_price(Budget(price_tolerance=4.0), said.append, planned(pod, 0.05)) == 0.2
    assert said


def test_a_machine_above_the_limit_of_its_file_is_refused_at_any_tolerance(pod):
    limited = {**planned(pod, 0.2), "PION_MAX_HOURLY_COST": "0.19"}
    with pytest.raises(Stopped, match=r"\$0\.20 per hour, and max_hourly_cost .* is 0\.19"):
        true_price(Budget(price_tolerance=4.0), pytest.fail, limited)
    assert true_price(Budget(), pytest.fail, {**limited, "PION_MAX_HOURLY_COST": "0.2"}) == 0.2
    assert true_price(Budget(), pytest.fail, {**limited, "PION_MAX_HOURLY_COST": ""}) == 0.2


def test_a_price_that_a_person_has_set_or_nobody_can_tell_is_the_planned_one(pod, api):
    def ask(**other):
        return true_price(Budget(), pytest.fail, {**planned(pod, 0.05), **other})

    assert ask(PION_DOLLARS_PER_HOUR="0.07") == 0.07
    assert ask(RUNPOD_POD_ID="another") == 0.05
    assert ask(RUNPOD_API_KEY="refused") == 0.05
    assert ask(RUNPOD_API_KEY="") == 0.05
    assert ask(SKYPILOT_NUM_NODES="2") == 0.1
    assert ask(RUNPOD_API_BASE_URL="http://127.0.0.1:1") == 0.05
    api.error = "Something went wrong"
    assert ask() == 0.05


def test_the_key_that_skypilot_copies_is_used_if_the_pods_own_may_not_ask(pod, tmp_path):
    (tmp_path / ".runpod").mkdir()
    (tmp_path / ".runpod" / "config.toml").write_text(CONFIG)
    assert pod_price({**pod, "RUNPOD_API_KEY": "scoped"}) == 0.2
    (tmp_path / ".runpod" / "config.toml").write_text("[default")
    assert pod_price({**pod, "RUNPOD_API_KEY": "scoped"}) is None
