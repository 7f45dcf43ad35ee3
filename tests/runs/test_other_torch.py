"""A run that began under one torch continues under another, equal up to rounding."""

import os
import signal

import pytest
import torch

from tests.paths import REPOSITORY
from tests.runs.test_hops import JOB, STEPS
from tests.support.waiting import run_to_end
from tests.support.whole_runs import (
    ends_with,
    interrupt,
    losses,
    rows_trained,
    start,
    wait_for,
    write_job,
)

# A Python that has another torch, and everything else that Pion needs.
OTHER_PYTHON = os.environ.get("PION_TEST_OTHER_PYTHON", "")

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(
        not OTHER_PYTHON, reason="PION_TEST_OTHER_PYTHON names no Python with another torch"
    ),
]


@pytest.fixture
def other_torch():
    """The version of the other torch."""
    command = [OTHER_PYTHON, "-c", "import torch; print(torch.__version__)"]
    version = run_to_end(command, check=True).stdout.strip()
    assert version != str(torch.__version__), "PION_TEST_OTHER_PYTHON has the same torch"
    return version


@pytest.mark.parametrize("other_comes_first", [True, False])
def test_a_checkpoint_of_one_torch_is_resumed_under_another(
    tmp_path, whole, other_torch, other_comes_first
):
    unbroken = whole(**JOB)
    this = {"env": dict(os.environ)}
    other = {"env": os.environ | {"PYTHONPATH": str(REPOSITORY)}, "python": OTHER_PYTHON}
    first, second = (other, this) if other_comes_first else (this, other)
    versions = [other_torch, str(torch.__version__)]
    before, after = versions if other_comes_first else reversed(versions)

    job = write_job(tmp_path, **JOB)
    process = start(job, **first)
    wait_for(process, f"pretrain step {STEPS // 3}/")
    interrupt(process, signal.SIGTERM)
    output = ends_with(0, start(job, **second))

    assert f"torch {before} → {after}\nnot bit-identical" in output
    assert "ALARM" not in output
    assert rows_trained(tmp_path) == rows_trained(unbroken)
    assert losses(tmp_path) == pytest.approx(losses(unbroken), rel=1e-4)
