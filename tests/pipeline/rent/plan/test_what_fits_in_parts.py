"""Plans for cards that divide a model among them: memory, and which machines hold it."""

from __future__ import annotations

import dataclasses

import pytest

from pipeline.job import Job
from pipeline.job.file import load_job
from pipeline.rent.check.machines import _problem, _worker_problem
from pipeline.rent.plan import what_fits
from pipeline.rent.plan.estimate import Estimate, estimate
from pipeline.rent.plan.prices import Offer
from pipeline.rent.plan.what_fits import fewest_that_fit, what_several_would_fit
from tests.paths import JOBS
from tests.pipeline.rent.plan.test_estimate import offer
from tests.support.jobs import tiny_job

# Two rows for each of four cards, so that one micro-batch has them all.
FIELDS = {
    "model": "pion-small",
    "data__seq_len": 96,
    "pretrain__global_batch": 8,
    "hardware__compile": False,
}
GIB = 2**30


def small(**fields: object) -> Job:
    return tiny_job(**{**FIELDS, "sft": None, "prefer": None, **fields})


def cards(count: int, gib: float = 1.9) -> Offer:
    """Return a machine whose cards have so little memory that four must divide the model."""
    return dataclasses.replace(offer("A40", count=count), gpu_memory=int(gib * GIB))


# ---------------------------------------------------------------- memory


def test_the_cards_of_a_machine_divide_a_model_only_if_it_does_not_fit_otherwise() -> None:
    divided, whole = estimate(small(), cards(4)), estimate(small(), cards(4, gib=8))
    assert divided.fits
    assert divided.sharded
    assert divided.peak_bytes <= 0.9 * 1.9 * GIB
    assert not whole.sharded
    assert estimate(small(hardware__fsdp=True), cards(4, gib=8)).sharded


def test_a_machine_whose_cards_are_too_small_says_what_each_would_need() -> None:
    guess = estimate(small(), cards(4, gib=0.9))
    assert guess.problem is not None
    assert "GiB on each of 4 workers that divide the weights, and 0.8 of 0.9 GiB" in guess.problem
    alone = estimate(small(hardware__fsdp=False), cards(4))
    assert alone.problem is not None
    assert "divide" not in alone.problem


@pytest.mark.soak
def test_the_largest_preset_fits_on_four_a40_and_not_on_eight_a4000() -> None:
    job = load_job(JOBS / "tachyon-large.yaml", ())
    fits, too_small = (estimate(job, offer(g, count=n)) for g, n in (("A40", 4), ("RTXA4000", 8)))
    assert fits.sharded
    assert "on each of 8 workers that divide the weights, and 14.1 of 15.7 GiB" in str(
        too_small.problem
    )
    (words,) = what_several_would_fit(job, ["A40"])
    assert "it fits on 4 × A40 (" in words
    assert "write accelerators: A40:4 in the rental" in words


def test_machines_with_more_gpus_than_a_step_has_rows_are_not_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(what_fits, "estimate", lambda job, offer: _as_small(job, offer))
    """It fits on four; two are too few."""
    assert fewest_that_fit(small(pretrain__global_batch=3), "A40") is None


def test_a_job_that_fits_on_a_common_gpu_is_told_of_no_machine_with_several(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(what_fits, "gpus_that_fit", lambda job: ["A100-80GB", "H200"])
    assert what_several_would_fit(small(), ["A40"]) == []


# ---------------------------------------------------------------- what is said


def test_a_machine_with_one_gpu_is_refused_if_the_job_divides_the_model() -> None:
    job = small(hardware__fsdp=True)
    assert "set workers to at least 2" in str(_worker_problem(job, cards(1), 1))
    assert _worker_problem(job, cards(2), 1) is None


def test_a_machine_that_is_too_small_is_told_of_one_with_several_gpus(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(what_fits, "gpus_that_fit", lambda job: [])
    monkeypatch.setattr(what_fits, "estimate", lambda job, offer: _as_small(job, offer))
    _, advice = _problem(small(), estimate(small(), cards(1)), 1, force=False)
    assert "On several GPUs of one machine, it fits on 4 × A40 (" in advice


def _as_small(job: Job, machine: Offer) -> Estimate:
    return estimate(job, dataclasses.replace(machine, gpu_memory=int(1.9 * GIB)))
