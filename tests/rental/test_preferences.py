"""A rented run that learns from preferences loses its machine, and ends with the same weights."""

import re

import pytest

from tests.rental.rented import JOB, OVERRIDES, unbroken_run, wait_until
from tests.rental.window import window

pytestmark = pytest.mark.rental

STEPS = 300
# Few steps of pretraining: the machine is lost in the stage after it.
PREFER = (
    "pretrain.steps=60",
    "data.seq_len=256",
    f"prefer.steps={STEPS}",
    "prefer.seq_len=512",
    "prefer.global_batch=8",
    "prefer.lr=1e-4",
    "prefer.min_lr=1e-5",
    "prefer.sources=[{kind: python-docs-prefer, better: short}]",
)


def test_the_next_machine_continues_with_the_numbers_of_the_first_ones_reference(rented, tmp_path):
    overrides = [f"store={rented.store}", *OVERRIDES, *PREFER]
    with (
        unbroken_run(tmp_path, STEPS, PREFER) as unbroken,
        window(rented, "launch", JOB, "--on", "sky/runpod-spot.yaml", *overrides) as launch,
    ):
        first = rented.wait_for_machine(0)
        wait_until(lambda: re.search(r"prefer step \d+: saved", first.job_log()), "saves of prefer")
        assert "reference pass" in first.job_log()
        head = rented.head()
        rented.loopback.runpod.preempt(first, notice=0.0, leaves="gone")
        second = rented.wait_for_machine(1)
        wait_until(lambda: "prefer: starts" in second.job_log(), "the stage on the second machine")
        said = second.job_log()
        assert re.search(r"prefer: starts \(continues after step \d+", said), said
        assert "reference pass" not in said
        launch.ends_with(0)
        assert rented.head().data == head.data
        assert rented.final_model(STEPS) == unbroken()
