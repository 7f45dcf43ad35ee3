"""The experiment that decides `hardware.residual: auto`: its verdict, and what it continues."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import residual

EXACT = [2.1 + 0.01 * seed for seed in range(10)]


def rounded(mean: float, spread: float) -> list[float]:
    """Return values whose differences from EXACT have this mean, and lie `spread` around it."""
    return [b + mean + spread * (-1) ** seed for seed, b in enumerate(EXACT)]


@pytest.mark.parametrize(
    ("mean", "spread", "auto"),
    [
        (0.0, 0.005, "bfloat16"),
        (0.009, 0.0001, "bfloat16"),
        (0.009, 0.005, "float32"),  # better than the bound in the mean, but not in the interval
        (0.011, 0.0001, "float32"),
        (-0.02, 0.005, "bfloat16"),
    ],
)
def test_bfloat16_wins_if_the_whole_interval_is_below_the_bound(
    mean: float, spread: float, auto: str
) -> None:
    found = residual.verdict(rounded(mean, spread), EXACT)
    assert found is not None
    assert found["auto"] == auto
    assert found["difference"] == pytest.approx(mean, abs=1e-5)
    low, high = found["interval"]
    # Student's t of ten pairs is 2.262, and the standard error spread / 3.
    assert high - low == pytest.approx(2 * 2.262 * spread / 3, abs=2e-5)


def test_fewer_than_ten_pairs_decide_nothing() -> None:
    found = residual.verdict(rounded(-0.5, 0.001)[:9], EXACT[:9])
    assert found is not None
    assert (found["pairs"], found["auto"]) == (9, "float32")
    assert residual.verdict([2.0], [2.0]) is None


def test_what_was_measured_is_kept_and_another_experiment_is_not_continued(tmp_path: Path) -> None:
    file = tmp_path / "residual.json"
    nothing = {"float32": [], "bfloat16": []}
    assert residual.kept(file, 20) == nothing
    measured = {"float32": [2.5, 2.4], "bfloat16": [2.6]}  # cut short within the second pair
    residual.write(file, residual.report(measured, 20))
    assert residual.kept(file, 20) == measured
    assert residual.kept(file, 21) == nothing
    content = json.loads(file.read_text()) | {"torch": f"{torch.__version__}-other"}
    file.write_text(json.dumps(content))
    assert residual.kept(file, 20) == nothing


def test_a_finished_experiment_trains_nothing_again(tmp_path: Path) -> None:
    file = tmp_path / "residual.json"
    measured = {"float32": EXACT, "bfloat16": rounded(0, 0.001)}
    residual.write(file, residual.report(measured, 20))
    assert residual.run_all(file, 20, seeds=10) == measured
