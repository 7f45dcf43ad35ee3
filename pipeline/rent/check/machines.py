"""Checks of the machines a SkyPilot YAML accepts: rented out, at what price, large enough."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pion.errors import PionError
from pion.train.memory import HEADROOM
from pipeline.budget import over_budget
from pipeline.cost.machine import CPU, PRICE_VARIABLE
from pipeline.digest import digest_job
from pipeline.formats import duration
from pipeline.job import Job
from pipeline.plan import plan_stages
from pipeline.rent.check.row import CheckRow
from pipeline.rent.deadline import within
from pipeline.rent.plan.estimate import Estimate, estimate, gpus_that_fit
from pipeline.rent.plan.measured import SECONDS, measured_speeds
from pipeline.rent.plan.offers import NotOffered, Offer, look_up
from pipeline.rent.rental import Candidate, Rental
from pipeline.rent.skypilot import cloud_named, enabled_clouds, quiet, sky_module
from pipeline.state.head import RunState
from pipeline.state.stores import open_store

LISTED = 6
"""The smallest GPUs that would do, named where a candidate does not."""


def machines(job: Job, rental: Rental, *, force: bool) -> list[CheckRow]:
    """For each candidate: is it rented out, at what price, does the model fit; also the
    credentials and the budget."""
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
    return rows + _budget(job, rental, estimates)


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
    nodes = rental.num_nodes
    problem = _worker_problem(job, offer, nodes)
    if problem is not None:
        return CheckRow(title, False, problem)
    if offer.gpu is None:
        return CheckRow(title, None, f"no GPU: memory and speed can't be told{_cost(guess, nodes)}")
    if offer.gpu_memory is None:
        return CheckRow(title, None, offer.note or guess.problem or "")
    if not guess.fits:
        hint = "" if guess.stages else f" {_what_would_fit(job)}"
        return CheckRow(title, False, f"{guess.problem}.{hint}")
    words = f"{_memory(guess)}{_cost(guess, nodes)}"
    if offer.use_spot and offer.spot and offer.on_demand and offer.spot > offer.on_demand:
        dearer = (
            f"spot is ${nodes * offer.spot:.2f}/h, dearer than on demand at "
            f"${nodes * offer.on_demand:.2f}/h. Set use_spot: false, or pass --force"
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


def _cost(guess: Estimate, num_nodes: int) -> str:
    """The price of all nodes together, and what the job takes on them."""
    price = guess.offer.price
    of_all = f" for {num_nodes} nodes" if num_nodes > 1 else ""
    words = "" if price is None else f", ${num_nodes * price:.2f}/h{of_all}"
    if guess.hours is not None:
        words += f", about {duration(3600 * guess.hours)}"
    return words + ("" if guess.dollars is None else f", ${guess.dollars:.2f}")


def _budget(job: Job, rental: Rental, estimates: Sequence[Estimate]) -> list[CheckRow]:
    """Whether the run may begin there at all by its budget, and whether the cheapest and the
    fastest machine stay within it, as far as can be told."""
    dollars, hours = job.budget.dollars, job.budget.hours
    stops = _already_spent(job) or _price_missing(job, rental, estimates)
    if stops is not None:
        return [CheckRow("budget", False, stops)]
    above, within_it = [], []
    costs = [e.dollars for e in estimates if e.fits and e.dollars is not None]
    if dollars is not None and costs:
        least = min(costs)
        if least > dollars:
            above.append(f"the estimate, ${least:.2f}, is above budget.dollars {dollars:g}")
        within_it.append(f"${least:.2f} estimated of ${dollars:.2f}")
    times = [e.hours for e in estimates if e.fits and e.hours is not None]
    if hours is not None and times:
        least = min(times)
        if least > hours:
            above.append(f"the estimate, {duration(3600 * least)}, is above budget.hours {hours:g}")
        within_it.append(f"{duration(3600 * least)} estimated of {duration(3600 * hours)}")
    if above:
        return [CheckRow("budget", None, f"{'; '.join(above)}: it stops there")]
    return [CheckRow("budget", True, "; ".join(within_it))] if within_it else []


def _already_spent(job: Job) -> str | None:
    """Why the run would stop as soon as it came up: what it cost so far has reached its budget."""
    if job.budget.dollars is None and job.budget.hours is None:
        return None
    try:
        head = within(SECONDS, RunState(open_store(job.store), job.name).read)
    except (PionError, TimeoutError):  # the store's own check says so
        return None
    over = None if head is None else over_budget(job.budget, head.spent)
    if over is None or all(
        plan.state == "done" for plan in plan_stages(job, digest_job(job), head)
    ):
        return None  # a finished run says so, and ends with 0
    return over


def _price_missing(job: Job, rental: Rental, estimates: Iterable[Estimate]) -> str | None:
    """Why the run would refuse a machine: `budget.dollars` can't be kept without its price.

    `pion launch` tells the machine one price for each type of GPU, spot or on demand.
    """
    budget = job.budget
    told = budget.dollars_per_hour is not None or rental.envs.get(PRICE_VARIABLE)
    if budget.dollars is None or told:
        return None
    offers = [e.offer for e in estimates]
    priced = {offer.gpu for offer in offers if offer.price is not None}
    missing = sorted({offer.gpu or CPU for offer in offers if offer.gpu not in priced})
    if not missing:
        return None
    keys = " and ".join(f"prices.{gpu}" for gpu in missing)
    return (
        f"budget.dollars is {budget.dollars:g}, but the price of {', '.join(missing)} is not "
        f"known, so the run would end there before it began. Set {keys} in the job, or "
        "budget.dollars_per_hour"
    )
