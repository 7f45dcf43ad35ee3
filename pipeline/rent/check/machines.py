"""Checks of the machines a SkyPilot YAML accepts: rented out, at what price, large enough."""

from __future__ import annotations

from collections.abc import Iterable

from pion.train.memory import HEADROOM
from pipeline.formats import duration
from pipeline.job import Job
from pipeline.rent.check.row import CheckRow
from pipeline.rent.plan.estimate import Estimate, estimate, gpus_that_fit
from pipeline.rent.plan.measured import measured_speeds
from pipeline.rent.plan.offers import NotOffered, Offer, look_up
from pipeline.rent.rental import Candidate, Rental
from pipeline.rent.skypilot import cloud_named, enabled_clouds, quiet, sky_module

LISTED = 6
"""The smallest GPUs that would do, named where a candidate does not."""


def machines(job: Job, rental: Rental, *, force: bool) -> list[CheckRow]:
    """For each candidate: is it rented out, at what price, does the model fit; and credentials."""
    rows = [_credentials_of(cloud) for cloud in dict.fromkeys(c.cloud for c in rental.candidates)]
    speeds = measured_speeds(job)
    estimates = []
    answers = [look_up(candidate, rental.num_nodes, job.prices) for candidate in rental.candidates]
    nothing = all(isinstance(found, NotOffered) for found in answers)
    for candidate, found in zip(rental.candidates, answers, strict=True):
        if isinstance(found, NotOffered):
            ok = False if nothing or found.misnamed else None
            rows.append(CheckRow(str(candidate), ok, found.why))
            continue
        guess = estimate(job, found, speeds, num_nodes=rental.num_nodes)
        estimates.append(guess)
        rows.append(_candidate_row(job, rental, candidate, guess, force))
    return rows + _budget(job, estimates)


def _credentials_of(name: str | None) -> CheckRow:
    """Whether machines can be rented from a cloud with what is set up here."""
    sky_module()
    from sky.clouds import CloudCapability
    from sky.server import common

    title = name or "any cloud"
    if not common.is_api_server_local():
        where = common.get_server_url()
        return CheckRow(
            title, None, f"the SkyPilot server {where} holds the credentials: sky check"
        )
    if name is None:
        enabled = [str(cloud) for cloud in enabled_clouds()]
        if enabled:
            return CheckRow(title, True, f"enabled: {', '.join(enabled)}")
        return CheckRow(title, False, "no cloud is enabled. Set one up, then run: sky check")
    try:
        with quiet():
            ok, reason = cloud_named(name).check_credentials(CloudCapability.COMPUTE)
    except Exception as error:  # SkyPilot's clouds raise whatever they like
        return CheckRow(title, None, f"can't be checked: {type(error).__name__}: {error}")
    if ok:
        return CheckRow(title, True, "credentials are set up")
    first = " ".join(str(reason).split()) if reason else "no credentials"
    if any(sign in first for sign in ("ConnectionError", "Timeout", "Max retries", "resolve")):
        return CheckRow(title, None, f"can't be reached: {first[:200]}")
    fix = "runpod config" if name == "RunPod" else f"sky check {name.lower()}"
    return CheckRow(title, False, f"{first.partition('Credentials can be')[0].strip()} Run: {fix}")


def _candidate_row(
    job: Job, rental: Rental, candidate: Candidate, guess: Estimate, force: bool
) -> CheckRow:
    offer, title = guess.offer, str(candidate)
    problem = _worker_problem(job, offer, rental.num_nodes)
    if problem is not None:
        return CheckRow(title, False, problem)
    if offer.gpu is None:
        return CheckRow(title, None, f"no GPU: memory and speed can't be told{_cost(guess)}")
    if offer.gpu_memory is None:
        return CheckRow(title, None, offer.note or guess.problem or "")
    if not guess.fits:
        hint = "" if guess.stages else f" {_what_would_fit(job)}"
        return CheckRow(title, False, f"{guess.problem}.{hint}")
    words = f"{_memory(guess)}{_cost(guess)}"
    if offer.use_spot and offer.spot and offer.on_demand and offer.spot > offer.on_demand:
        dearer = (
            f"spot is ${offer.spot:.2f}/h, dearer than on demand at ${offer.on_demand:.2f}/h. "
            "Set use_spot: false, or pass --force"
        )
        return CheckRow(title, force or False, f"{words}; {dearer}" if force else dearer)
    if offer.price is None:
        note = offer.note or "SkyPilot lists no price"
        return CheckRow(title, None, f"{words}; {note}: state it as prices.{offer.gpu} in the job")
    return CheckRow(title, True, words)


def _what_would_fit(job: Job) -> str:
    fitting = gpus_that_fit(job)
    if not fitting:
        return "It fits on no GPU known here."
    return f"It fits on {', '.join(fitting[:LISTED])}{' …' if len(fitting) > LISTED else ''}."


def _worker_problem(job: Job, offer: Offer, num_nodes: int) -> str | None:
    """Why the machine's GPUs and the job's workers do not go together."""
    gpus = offer.count * num_nodes
    workers = gpus if job.hardware.workers is None else job.hardware.workers
    if gpus and workers > gpus:
        return f"hardware.workers {workers}: it has {gpus} GPUs, and each worker needs one"
    for stage in job.train_stages:
        batch = job.section(stage).global_batch
        if batch < workers:
            return f"{stage}.global_batch {batch} is smaller than its {workers} workers"
    return None


def _memory(guess: Estimate) -> str:
    assert guess.offer.gpu_memory is not None
    usable = guess.offer.gpu_memory * (1 - HEADROOM)
    batches = ", ".join(dict.fromkeys(f"{s.micro_batch}×{s.grad_accum}" for s in guess.stages))
    return f"{batches} sequences, {guess.peak_bytes / 2**30:.1f} of {usable / 2**30:.1f} GiB"


def _cost(guess: Estimate) -> str:
    price = guess.offer.price
    words = "" if price is None else f", ${price:.2f}/h"
    if guess.hours is not None:
        words += f", about {duration(3600 * guess.hours)}"
    return words + ("" if guess.dollars is None else f", ${guess.dollars:.2f}")


def _budget(job: Job, estimates: Iterable[Estimate]) -> list[CheckRow]:
    """Whether the cheapest machine stays within the job's budget, as far as can be told."""
    costs = [e.dollars for e in estimates if e.fits and e.dollars is not None]
    if job.budget.dollars is None or not costs:
        return []
    least, limit = min(costs), job.budget.dollars
    if least > limit:
        words = f"the estimate, ${least:.2f}, is above budget.dollars {limit:g}: it stops there"
        return [CheckRow("budget", None, words)]
    return [CheckRow("budget", True, f"${least:.2f} estimated of ${limit:.2f}")]
