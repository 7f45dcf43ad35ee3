"""A rented machine asks RunPod what it costs, and refuses a run for which it is too expensive."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pion.errors import Stopped
from pipeline.cost.budget import pod_price, true_price
from pipeline.job import Budget
from tests.support.runpod_api import API_KEY, CONFIG, RunPodApi, serve_runpod


@pytest.fixture
def api() -> Iterator[RunPodApi]:
    api = RunPodApi()
    api.rent("pod1", "pion-demo")
    with serve_runpod(api) as api.url:  # type: ignore[attr-defined]
        yield api


@pytest.fixture
def pod(api: RunPodApi, tmp_path: Path) -> dict[str, str]:
    """The variables of a pod that costs $0.20 per hour."""
    return {
        "RUNPOD_POD_ID": "pod1",
        "RUNPOD_GPU_NAME": "NVIDIA+A40",
        "RUNPOD_API_BASE_URL": api.url,  # type: ignore[attr-defined]
        "RUNPOD_API_KEY": API_KEY,
        "SKYPILOT_NUM_GPUS_PER_NODE": "1",
        "HOME": str(tmp_path),
    }


def planned(pod: dict[str, str], price: float) -> dict[str, str]:
    return {**pod, "PION_PRICES": f'{{"A40": {price}}}'}


@pytest.mark.parametrize(
    ("plan", "words"),
    [(0.40, ""), (0.20, ""), (0.191, ""), (0.18, "1.11 times the planned $0.18")],
)
def test_the_price_that_runpod_bills_counts_and_a_higher_one_is_said(
    pod: dict[str, str], plan: float, words: str
) -> None:
    said: list[str] = []
    assert true_price(Budget(), said.append, planned(pod, plan)) == 0.2
    assert len(said) == bool(words)
    assert words in "".join(said)


def test_a_machine_at_four_times_the_price_is_refused_unless_the_budget_allows_it(
    pod: dict[str, str],
) -> None:
    said: list[str] = []
    with pytest.raises(Stopped, match=r"\$0\.20 per hour, 4\.00 times.*price_tolerance=4") as error:
        true_price(Budget(), said.append, planned(pod, 0.05))
    assert error.value.exit_code == 4
    assert not said
    assert true_price(Budget(price_tolerance=4.0), said.append, planned(pod, 0.05)) == 0.2
    assert said


def test_a_price_that_a_person_has_set_or_nobody_can_tell_is_the_planned_one(
    pod: dict[str, str], api: RunPodApi
) -> None:
    def ask(**other: str) -> float | None:
        return true_price(Budget(), pytest.fail, {**planned(pod, 0.05), **other})

    assert ask(PION_DOLLARS_PER_HOUR="0.07") == 0.07
    assert ask(RUNPOD_POD_ID="another") == 0.05
    assert ask(RUNPOD_API_KEY="refused") == 0.05
    assert ask(RUNPOD_API_KEY="") == 0.05
    assert ask(SKYPILOT_NUM_NODES="2") == 0.1
    assert ask(RUNPOD_API_BASE_URL="http://127.0.0.1:1") == 0.05
    api.error = "Something went wrong"
    assert ask() == 0.05


def test_the_key_that_skypilot_copies_is_used_if_the_pods_own_may_not_ask(
    pod: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / ".runpod").mkdir()
    (tmp_path / ".runpod" / "config.toml").write_text(CONFIG)
    assert pod_price({**pod, "RUNPOD_API_KEY": "scoped"}) == 0.2
    (tmp_path / ".runpod" / "config.toml").write_text("[default")
    assert pod_price({**pod, "RUNPOD_API_KEY": "scoped"}) is None
