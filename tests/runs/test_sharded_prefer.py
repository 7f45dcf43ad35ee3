"""Two workers that have the model in parts learn from preferences, and are killed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from pipeline.state.head import REFERENCE
from tests.support.preference_runs import killed_in_the_pass, prefer_job
from tests.support.whole_runs import (
    final_weights,
    finish,
    head_of,
    losses,
    rows_trained,
    start,
    wait_for,
)

WORKERS: dict[str, Any] = {
    "checkpoint__every_steps": 1,
    "log__every": 1,
    "hardware__workers": 2,
    "hardware__deterministic": True,
    "hardware__dtype": "float32",
    "prefer__steps": 30,
}
SHARDED = {**WORKERS, "hardware__fsdp": True}
CASES: dict[str, dict[str, Any]] = {
    "dpo": {},
    "lora": {"prefer__lora": {"rank": 4, "base_dtype": "bfloat16"}},
}
# Then the gradients of both answers have cancelled each other, and Adam has made their rounding as
# large as all else: one process and two that share it are as far apart.
CLOSE_STEPS = 2


@pytest.mark.soak
@pytest.mark.parametrize("case", CASES)
def test_kills_in_the_pass_and_in_the_stage_change_no_bit(tmp_path: Path, case: str) -> None:
    folders = [tmp_path / name for name in ("unbroken", "killed", "not_sharded")]
    for folder in folders:
        folder.mkdir()
    unbroken, killed, not_sharded = folders
    output = finish(prefer_job(unbroken, **SHARDED, **CASES[case]))
    assert "evaluate: prefer model on held-out preferences" in output
    job = prefer_job(killed, **SHARDED, **CASES[case])
    killed_in_the_pass(killed, job, 1)  # before the first chunk
    killed_in_the_pass(killed, job, 3)  # after that of the first split
    process = start(job)
    wait_for(process, ": saved")  # by prefer: the other stages have ended
    process.kill()
    assert "prefer: starts (continues after step" in finish(job)
    assert final_weights(killed) == final_weights(unbroken)
    assert rows_trained(killed, "prefer") == rows_trained(unbroken, "prefer")
    assert (
        head_of(killed).data[REFERENCE].split("/")[1]
        == (head_of(unbroken).data[REFERENCE].split("/")[1])
    )

    finish(prefer_job(not_sharded, **WORKERS, **CASES[case], hardware__fsdp=False))
    found, expected = (losses(folder, "prefer") for folder in (unbroken, not_sharded))
    assert found[0] == pytest.approx(math.log(2), abs=1e-5)  # the model is its own reference
    assert found[:CLOSE_STEPS] == pytest.approx(expected[:CLOSE_STEPS], abs=1e-5)
